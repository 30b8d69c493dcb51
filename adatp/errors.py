"""What is raised for input that cannot be used. Anything else that is raised is a bug, or the machine's trouble."""


class InputError(ValueError):
    """Input that cannot be used; the message names it, its value, and what would be right."""


class Unsupported(InputError):  # noqa: N818  what users read, and a state more than an error
    """A model, a prompt or a setting that cannot be pruned; the message says why, and the way out."""


class UnsupportedModel(Unsupported, TypeError):  # noqa: N818
    """A model of a family, or of a make, that is not known."""
