"""Methods and settings measured against each other."""
