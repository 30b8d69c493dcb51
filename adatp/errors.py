"""Errors for input that cannot be used. Any other error is a bug, or a problem of the machine."""


class InputError(ValueError):
    """Input that cannot be used; the message names the argument, its value, and what would be right."""


class InputTypeError(InputError, TypeError):
    """A value of the wrong type."""


class CheckpointError(InputError, OSError):
    """A checkpoint that cannot be loaded: it is missing, incomplete, damaged, or of another kind."""


class Unsupported(InputError):  # noqa: N818  users read the name, and it describes a state
    """A model, a prompt or a setting that cannot be pruned; the message says why, and what to do instead."""


class UnsupportedType(Unsupported, InputTypeError):  # noqa: N818
    """A model or a cache whose family or class is not supported."""
