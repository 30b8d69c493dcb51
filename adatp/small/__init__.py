"""A small Video LLM of our own: LLaVA-OneVision's classes, trained on `adatp.world`."""
