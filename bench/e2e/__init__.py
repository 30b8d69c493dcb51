"""Time to first token, end to end: `python -m bench.e2e`."""
