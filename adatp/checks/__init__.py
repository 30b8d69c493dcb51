"""Checks of what users give: values, checkpoints, and texts for prompts."""
