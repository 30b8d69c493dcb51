"""Time to the first token, end to end: `python -m bench.e2e`."""
