"""Results as tables for people, and as plain values for programs."""
