"""The figures of the paper, and ours for the same settings."""
