"""Loading of checkpoints: what is wrong with a checkpoint is told as a CheckpointError, whichever library found it."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adatp.checks.values import cut
from adatp.errors import CheckpointError, InputError

_SHOWN = 3  # names of tensors in a message


@contextmanager
def loading(kind: str, checkpoint: str, name: str = "") -> Iterator[None]:
    """Raise a CheckpointError for what libraries raise in the `with` block, which reads a checkpoint.

    Libraries tell a damaged file by whatever fails first: a ValueError, a KeyError, an error of their own. What this
    package raises itself passes unchanged: it is an InputError, or a bug.

    Args:
        kind: what is loaded, for the message: "model".
        checkpoint: its name or path.
        name: how the message calls it; by default `checkpoint`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError | MemoryError) or _is_raised_here(error):
            raise
        missing = checkpoint.startswith(("/", "./", "../")) and not os.path.exists(checkpoint)
        reason = "there is no such folder" if missing else _reason(error)
        raise CheckpointError(f"{kind} {cut(name or checkpoint)} cannot be loaded: {reason}") from error


def load_weights(model: Any, kind: str, checkpoint: str, name: str = "", **options: Any) -> Any:
    """Load a model; refuse weights that are not whole, which transformers would complete at random.

    Args:
        model: a class with Hugging Face's `from_pretrained`.
        kind, checkpoint, name: as in `loading`.
        **options: further arguments of `from_pretrained`.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    with loading(kind, checkpoint, name):
        loaded, info = model.from_pretrained(checkpoint, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join([*missing[:_SHOWN], *(["..."] if len(missing) > _SHOWN else [])])
        told = f"{len(missing)} of its tensors are missing: {some}"
        raise CheckpointError(f"{kind} {cut(name or checkpoint)} cannot be loaded: {told}")
    return loaded


def _is_raised_here(error: Exception) -> bool:
    """Tell whether a line of this package raised the error, not a library that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == __name__.split(".")[0]


def _reason(error: Exception) -> str:
    """Return a library's message in one line, after the error's class if that says what is wrong."""
    told = " ".join(str(error).split())
    if not told or not isinstance(error, OSError | ValueError | ImportError):
        told = f"{type(error).__name__}: {told}"
    return cut(told, most=400)
