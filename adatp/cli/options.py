"""Options that several commands share, and the code that checks and loads them."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from adatp.checks.values import integer, shown, text
from adatp.errors import InputError
from adatp_kernels.dispatch import resolve

if TYPE_CHECKING:  # the command line starts without torch
    from adatp.evaluation.session import Loaded
    from adatp.methods import Method
    from adatp.video import Clip, Limits

ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("auto", "float32", "bfloat16", "float16")
LIMITS = {
    "pixels": "pixels of a frame, width x height",
    "duration": "length of the video, in seconds",
    "packets": "packets that are read to find the frames",
    "seconds": "time for sampling the frames, in seconds",
}
METHODS = ("adatp", "fastv", "pyramiddrop", "visionzip", "dycoke", "random", "uniform", "pool", "none")


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the options for a video file and a question about it."""
    parser.add_argument("video", metavar="VIDEO", help="Path of a video file.")
    parser.add_argument("--question", required=True, help="Question to ask about the video (required).")
    parser.add_argument(
        "--frames", type=whole, default=32, help="Number of frames to sample from the video (default: 32)."
    )
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a video file may cost."""
    from adatp.video.limits import Limits

    limits = Limits()
    for name, what in LIMITS.items():
        default = getattr(limits, name)
        parser.add_argument(
            f"--max-{name}",
            type=real,
            default=default,
            metavar="N",
            help=f"Refuse a video beyond this: {what} (default: {default}).",
        )


def limits_of(arguments: argparse.Namespace) -> "Limits":
    """Return the limits that the arguments set.

    Raises:
        InputError: a limit is not a finite number above 0.
    """
    from adatp.video.limits import Limits

    return Limits(**{name: getattr(arguments, f"max_{name}") for name in LIMITS})


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options for a model and where it runs."""
    parser.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help="LLaVA-OneVision or LLaVA-Video checkpoint: a Hugging Face name or a folder (default: a small built-in "
        "model, which knows only the videos of 'adatp demo' and 'adatp world').",
    )
    parser.add_argument(
        "--relevance",
        default="auto",
        metavar="ID_OR_PATH",
        help="SigLIP checkpoint that compares frames with the question; 'auto' takes the one that fits the model, "
        "'none' does not compare (default: auto).",
    )
    parser.add_argument(
        "--attention",
        default="sdpa",
        choices=ATTENTION,
        help="Attention implementation of the model in transformers (default: sdpa).",
    )
    parser.add_argument(
        "--device", help="Device to run on: cpu, cuda, cuda:1, ... (default: cuda if PyTorch finds it, else cpu)."
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="Data type of the model's weights; 'auto' takes the checkpoint's own, and float32 for the built-in model "
        "(default: auto).",
    )
    parser.add_argument(
        "--impl",
        default="auto",
        choices=("auto", "reference", "triton"),
        help="Implementation of the pruning operations: 'triton' for GPUs, 'reference' for PyTorch on any device; "
        "'auto' takes Triton on a GPU if it is installed (default: auto).",
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add the options for a method and its settings."""
    parser.add_argument(
        "--method",
        default="adatp",
        type=str.lower,
        choices=METHODS,
        help="Method that chooses the tokens to drop; 'none' drops nothing (default: adatp).",
    )
    parser.add_argument(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="A setting of the method, such as tau_s=0.9 or segments=false. May be given several times (default: the "
        "published settings).",
    )
    parser.add_argument("--p", help="AdaTP's compression setting p; a larger p keeps more tokens (default: 1.0).")
    parser.add_argument(
        "--last",
        help="Last layer of AdaTP's gradual schedule; after it, p * 12 %% of the visual tokens stay (default: N - 12 "
        "for a model of N layers).",
    )


def add_methods(parser: argparse.ArgumentParser, default: Sequence[str], help: str) -> None:
    """Add the options for several methods, at their own settings or all at one cost."""
    parser.add_argument("--methods", type=names, default=list(default), metavar="M,M,...", help=help)
    add_flops(parser)


def add_flops(parser: argparse.ArgumentParser) -> None:
    """Add the option for a cost, which replaces the method's main setting."""
    parser.add_argument(
        "--flops",
        type=real,
        metavar="SHARE",
        help="Share of the unpruned prefill's FLOPs that pruning should cost, such as 0.3. The main setting of the "
        "method (AdaTP's p, FastV's keep, ...) is then searched (default: no search).",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option for JSON output."""
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object on stdout, for programs (default: text and tables)."
    )


def whole(text: str) -> int:
    """Parse an argument that is a whole number."""
    try:
        return integer("it", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**63, got {shown(text)}") from None


def real(text: str) -> float:
    """Parse an argument that is a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {shown(text)}") from None


def setting(text: str) -> tuple[str, str]:
    """Parse a `NAME=VALUE` argument."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, such as tau_s=0.9, got {shown(text)}")
    return name, value


def numbers(text: str) -> list[int]:
    """Parse an `L,L,...` argument of layer numbers."""
    try:
        return [whole(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be layer numbers, such as 2,5,12, got {shown(text)}") from None


def names(text: str) -> list[str]:
    """Parse an `M,M,...` argument of method names."""
    chosen = text.lower().split(",")
    for name in chosen:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"each name must be one of {', '.join(METHODS)}, got {shown(name)}")
    return list(dict.fromkeys(chosen))


def method_of(arguments: argparse.Namespace) -> "Method":
    """Return the method that the arguments ask for.

    Raises:
        InputError: the method lacks a setting, a value is out of range, or a setting is given twice.
    """
    from adatp.methods.settings import configure

    own = {name: getattr(arguments, name) for name in ("p", "last")}
    given = [*arguments.set, *((name, value) for name, value in own.items() if value is not None)]
    twice = {name for name, _ in given if [n for n, _ in given].count(name) > 1}
    if twice:
        raise InputError(f"{', '.join(sorted(twice))} is set twice; set it once")
    return configure(arguments.method, dict(given))


def require_positive(arguments: argparse.Namespace, *options: str) -> None:
    """Raise an InputError if one of the options is below 1."""
    for option in options:
        if getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise InputError(f"--{name} must be at least 1, got {getattr(arguments, option)}")


def require_question(question: str) -> None:
    """Raise an InputError if the question is empty, or not text."""
    if not question.strip():
        raise InputError("--question is empty; say what to ask")
    text("--question", question)


def require_matplotlib(wanted: object, what: str) -> None:
    """Raise an InputError if a picture is wanted and matplotlib is not installed.

    Args:
        wanted: path of the picture or its folder; None if no picture is wanted.
        what: the option, for the message.
    """
    if wanted is not None and find_spec("matplotlib") is None:
        raise InputError(f"{what} needs matplotlib: pip install 'adatp[overlay]'")


def require_world() -> None:
    """Raise an InputError if scikit-learn, whose digits the synthetic videos show, is not installed."""
    if find_spec("sklearn") is None:
        raise InputError("the synthetic videos need scikit-learn (they show its digits): pip install 'adatp[world]'")


class Progress(NamedTuple):
    """The messages of a running command.

    Attributes:
        tell: prints on stderr the name of the step that begins.
        notes: warnings about the text relevance; filled when the `with` block of `progress` ends.
    """

    tell: Callable[[str], None]
    notes: list[str]


@contextmanager
def progress() -> Iterator[Progress]:
    """Show on stderr the current step of a command, and collect its warnings."""
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
    """Return the sampled frames of the video, and the seconds that decoding took."""
    from adatp.evaluation.session import decode

    tell("decoding the video")
    return decode(arguments.video, arguments.frames, limits_of(arguments))


def loader_of(arguments: argparse.Namespace) -> "Callable[[], Loaded]":
    """Return a function that loads the model, its processor and its aligned SigLIP. It can be pickled."""
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
    """Load the model and its processor.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    loader = loader_of(arguments)
    tell("loading the model")
    return loader()


def device_of(arguments: argparse.Namespace) -> str:
    """Return the device to run on. Check it, and check that `--impl` can run there.

    Raises:
        InputError: the device does not exist, or the implementation cannot run there.
    """
    import torch

    device: str = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind: Any = torch.device(device).type
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda, cuda:1, ..., got {shown(device)}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device} cannot be used: this PyTorch finds no CUDA device")
    try:
        torch.zeros(1, device=device).item()  # "meta" and devices that this PyTorch was not built for fail here
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    try:
        resolve(arguments.impl, torch.device(device))
    except RuntimeError as error:
        raise InputError(str(error)) from error
    return device
