"""The training of the small model. It is not in the wheel."""
