"""The small Video LLM of the package: it has the classes of LLaVA-OneVision and was trained on `adatp.world`."""
