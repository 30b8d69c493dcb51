"""What several commands take, and how they load it."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from adatp.errors import InputError
from adatp_kernels.dispatch import resolve

if TYPE_CHECKING:  # the command line starts without torch
    from adatp.evaluation.session import Loaded
    from adatp.methods import Method
    from adatp.video import Clip

ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("auto", "float32", "bfloat16", "float16")
METHODS = ("adatp", "fastv", "pyramiddrop", "visionzip", "dycoke", "random", "uniform", "pool", "none")


def add_video(parser: argparse.ArgumentParser) -> None:
    """A video file and a question about it."""
    parser.add_argument("video", metavar="VIDEO", help="path of a video file")
    parser.add_argument("--question", required=True, help="what to ask")
    parser.add_argument("--frames", type=int, default=32, help="frames to sample (default 32)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """A model and where it runs."""
    parser.add_argument(
        "--model", metavar="ID_OR_PATH", help="LLaVA-OneVision or LLaVA-Video checkpoint; default: a small built-in one"
    )
    parser.add_argument(
        "--relevance", default="auto", metavar="ID_OR_PATH", help="aligned SigLIP checkpoint, or 'none'"
    )
    parser.add_argument("--attention", default="sdpa", choices=ATTENTION, help="implementation (default sdpa)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of a checkpoint's weights (default: its own)")
    parser.add_argument(
        "--impl", default="auto", choices=("auto", "reference", "triton"), help="of the pruning kernels"
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """A method and its settings."""
    parser.add_argument(
        "--method", default="adatp", type=str.lower, choices=METHODS, help="how tokens are dropped (default adatp)"
    )
    parser.add_argument(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method, such as tau_s=0.9 or segments=false; may be given several times",
    )
    parser.add_argument("--p", help="AdaTP's compression setting, scales every ratio (default 1.0)")
    parser.add_argument("--last", help="AdaTP's layer after which p * 12 %% stay (default N - 12)")


def add_methods(parser: argparse.ArgumentParser, default: Sequence[str], help: str) -> None:
    """Several methods at their own settings, or all at one cost."""
    parser.add_argument("--methods", type=names, default=list(default), metavar="M,M,...", help=help)
    add_flops(parser)


def add_flops(parser: argparse.ArgumentParser) -> None:
    """A cost instead of settings."""
    parser.add_argument(
        "--flops",
        type=float,
        metavar="SHARE",
        help="share of the unpruned prefill's FLOPs to cost, instead of settings",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """What a program reads."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")


def setting(text: str) -> tuple[str, str]:
    """A `NAME=VALUE` argument."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, such as tau_s=0.9, got {text!r}")
    return name, value


def numbers(text: str) -> list[int]:
    """An `L,L,...` argument of layer numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be layer numbers such as 2,5,12, got {text!r}") from None


def names(text: str) -> list[str]:
    """An `M,M,...` argument of methods."""
    chosen = text.lower().split(",")
    for name in chosen:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(METHODS)}, got {name!r}")
    return list(dict.fromkeys(chosen))


def method_of(arguments: argparse.Namespace) -> "Method":
    """The method that was asked for.

    Raises:
        InputError: a setting that the method does not have, a value out of its range, or one given twice.
    """
    from adatp.methods.settings import configure

    given = [*arguments.set, *((name, getattr(arguments, name)) for name in ("p", "last") if getattr(arguments, name))]
    twice = {name for name, _ in given if [n for n, _ in given].count(name) > 1}
    if twice:
        raise InputError(f"{', '.join(sorted(twice))} is set twice")
    return configure(arguments.method, dict(given))


def require_positive(arguments: argparse.Namespace, *options: str) -> None:
    """Raise a ValueError for one of the options below 1."""
    for option in options:
        if getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise InputError(f"--{name} must be at least 1, got {getattr(arguments, option)}")


def require_question(question: str) -> None:
    """Raise a ValueError for a question that says nothing."""
    if not question.strip():
        raise InputError("--question is empty; say what to ask")


def require_matplotlib(wanted: object, what: str) -> None:
    """Raise a ValueError where a picture is wanted and there is nothing to draw it with."""
    if wanted is not None and find_spec("matplotlib") is None:
        raise InputError(f"{what} needs matplotlib: pip install 'adatp[overlay]'")


def require_world() -> None:
    """Raise a ValueError where there is nothing to draw the world's digits with."""
    if find_spec("sklearn") is None:
        raise InputError("the videos made by code show scikit-learn's digits: pip install 'adatp[world]'")


class Progress(NamedTuple):
    """What a command has to say on the way.

    Attributes:
        tell: names the step that begins, on stderr.
        notes: what the user should know of the text relevance, as it comes up.
    """

    tell: Callable[[str], None]
    notes: list[str]


@contextmanager
def progress() -> Iterator[Progress]:
    """Show on stderr what a command is at, and collect its warnings."""
    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("loading libraries") as status, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from transformers.utils import logging

        from adatp.relevance import NoRelevanceWarning

        logging.set_verbosity_error()

        def tell(step: str) -> None:
            status.update(step)
            if not errors.is_terminal:
                print(f"{step} ...", file=sys.stderr, flush=True)

        notes: list[str] = []
        yield Progress(tell, notes)
    notes += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, NoRelevanceWarning))


def load_clip(arguments: argparse.Namespace, tell: Callable[[str], None]) -> "tuple[Clip, float]":
    """The frames of the video, and the seconds it took to decode them."""
    from adatp.evaluation.session import decode

    tell("decoding the video")
    return decode(arguments.video, arguments.frames)


def loader_of(arguments: argparse.Namespace) -> "Callable[[], Loaded]":
    """What loads the model, its processor and its aligned SigLIP, here or in another process."""
    from adatp.evaluation.session import load

    return partial(
        load,
        arguments.model,
        device=device_of(arguments),
        dtype=arguments.dtype,
        attention=arguments.attention,
        relevance=None if arguments.relevance == "none" else arguments.relevance,
    )


def load_model(arguments: argparse.Namespace, tell: Callable[[str], None]) -> "Loaded":
    """The model, its processor and its aligned SigLIP."""
    loader = loader_of(arguments)
    tell("loading the model")
    try:
        return loader()
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--model {arguments.model} cannot be loaded: {error}") from error


def device_of(arguments: argparse.Namespace) -> str:
    """Where to run; checked, with `--impl`.

    Raises:
        InputError: no such device, or the implementation cannot run there.
    """
    import torch

    device: str = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind: Any = torch.device(device).type
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda, cuda:1, ..., got {device!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device} cannot be used: this PyTorch finds no CUDA device")
    try:
        resolve(arguments.impl, torch.device(device))
    except RuntimeError as error:
        raise InputError(str(error)) from error
    return device
