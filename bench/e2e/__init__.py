"""Time to first token, end to end: `python -m e2e`."""
