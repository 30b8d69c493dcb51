"""The small Video LLM that comes with the package: LLaVA-OneVision's classes, trained on `adatp.world`."""
