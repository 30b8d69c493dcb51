"""The command line: arguments in, report out."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from adatp.config import AdaTPConfig
from adatp_kernels.dispatch import resolve

ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `adatp`. Returns the exit code: 0, or 2 for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"adatp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adatp", description="Attention-debiased token pruning for Video LLMs (arXiv 2505.20100)."
    )
    parser.add_argument("--version", action="version", version=f"adatp {version('adatp')}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="answer a question about a video, pruned")
    run.add_argument("video", metavar="VIDEO", help="path of a video file")
    run.add_argument("--question", required=True, help="what to ask")
    run.add_argument(
        "--model", metavar="ID_OR_PATH", help="LLaVA-OneVision or LLaVA-Video checkpoint; default: a small built-in one"
    )
    run.add_argument("--p", type=float, default=1.0, help="compression setting, scales every ratio (default 1.0)")
    run.add_argument("--last", type=int, help="layer after which p * 12 %% stay (default N - 12)")
    run.add_argument("--frames", type=int, default=32, help="frames to sample (default 32)")
    run.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default 64)")
    run.add_argument("--compare", action="store_true", help="run the unpruned model beside it")
    run.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    run.add_argument("--overlay", type=Path, metavar="FILE.png", help="draw the frames, dropped tokens veiled in white")
    run.add_argument("--layers", type=_layers, metavar="L,L,...", help="layers to draw (default: first and last cut)")
    run.add_argument("--relevance", default="auto", metavar="ID_OR_PATH", help="aligned SigLIP checkpoint, or 'none'")
    run.add_argument("--attention", default="sdpa", choices=ATTENTION, help="implementation (default sdpa)")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    run.add_argument("--dtype", default="auto", choices=DTYPES, help="of a checkpoint's weights (default: its own)")
    run.add_argument("--impl", default="auto", choices=("auto", "reference", "triton"), help="of the pruning kernels")
    run.set_defaults(command=_run)

    flops = commands.add_parser("flops", help="prefill FLOPs of a published model with and without pruning")
    flops.add_argument("--model", required=True, choices=("onevision-0.5b", "onevision-7b", "llava-video-7b"))
    flops.add_argument("--p", type=float, default=1.0, help="compression setting (default 1.0)")
    flops.add_argument("--last", type=int, help="layer after which p * 12 %% stay (default N - 12)")
    flops.add_argument("--text-tokens", type=int, help="prompt tokens beside the visual ones (default: the paper's)")
    flops.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    flops.set_defaults(command=_flops)
    convert = commands.add_parser("convert", help="an original LLaVA-Video checkpoint to one that --model reads")
    convert.add_argument("source", type=Path, metavar="SOURCE", help="folder of the original checkpoint")
    convert.add_argument("target", type=Path, metavar="TARGET", help="folder to write; absent or empty")
    convert.add_argument(
        "--pool", choices=("average", "bilinear"), help="of a frame's features (default: config.json's)"
    )
    convert.set_defaults(command=_convert)
    return parser


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be layer numbers such as 2,5,12, got {text!r}") from None


def _flops(arguments: argparse.Namespace) -> int:
    from adatp.flops import MODEL_SHAPES, shape_flops
    from adatp.tables import print_flops

    shape = MODEL_SHAPES[arguments.model]
    config = AdaTPConfig(p=arguments.p, last=arguments.last)
    text_tokens = shape.text_tokens if arguments.text_tokens is None else arguments.text_tokens
    if text_tokens < 0:
        raise ValueError(f"--text-tokens must be at least 0, got {text_tokens}")
    flops, lengths = shape_flops(shape, config, text_tokens)
    visual = shape.frames * shape.tokens_per_frame
    if arguments.json:
        settings = {"model": arguments.model, "p": config.p, "visual_tokens": visual, "text_tokens": text_tokens}
        print(json.dumps({**settings, **flops.to_dict(), "tokens_per_layer": lengths}))
    else:
        print_flops(arguments.model, flops, lengths, visual, text_tokens)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    from transformers.utils import logging

    from adatp.convert import convert

    logging.set_verbosity_error()
    columns = TextColumn("writing weights"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        convert(
            arguments.source,
            arguments.target,
            pool=arguments.pool,
            tell=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    config = AdaTPConfig(p=arguments.p, last=arguments.last)
    for option in ("frames", "max_new_tokens"):
        if getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, option)}")
    if not arguments.question.strip():
        raise ValueError("--question is empty; say what to ask")
    if arguments.layers and arguments.overlay is None:
        raise ValueError("--layers says what --overlay draws; give --overlay FILE.png too")
    _check_overlay(arguments.overlay)

    from rich.console import Console

    errors = Console(stderr=True)
    with errors.status("loading libraries") as status, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch
        from transformers.utils import logging

        from adatp.models import family_of
        from adatp.overlay import default_layers, draw_overlay
        from adatp.relevance import NoRelevanceWarning
        from adatp.run import decode, load, run
        from adatp.tables import print_run, run_to_dict

        logging.set_verbosity_error()

        def tell(step: str) -> None:
            status.update(step)
            if not errors.is_terminal:
                print(f"{step} ...", file=sys.stderr, flush=True)

        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        resolve(arguments.impl, torch.device(device))
        tell("decoding the video")
        clip, decoding = decode(arguments.video, arguments.frames)
        tell("loading the model")
        try:
            loaded = load(
                arguments.model,
                device=device,
                dtype=arguments.dtype,
                attention=arguments.attention,
                relevance=None if arguments.relevance == "none" else arguments.relevance,
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"--model {arguments.model} cannot be loaded: {error}") from error
        depth = len(family_of(loaded.model).decoder.layers)
        config.last_of(depth)
        if any(not 0 <= layer < depth for layer in arguments.layers or ()):
            raise ValueError(f"--layers must be from 0 to {depth - 1}, got {arguments.layers}")
        result = run(
            clip,
            decoding,
            arguments.question,
            loaded,
            config,
            max_new_tokens=arguments.max_new_tokens,
            compare=arguments.compare,
            impl=arguments.impl,
            tell=tell,
        )
    notes = [n for n in (loaded.note, clip.note) if n]
    notes += [str(w.message) for w in caught if issubclass(w.category, NoRelevanceWarning)]
    if arguments.json:
        print(json.dumps(run_to_dict(loaded.name, arguments.question, clip, result, notes), allow_nan=False))
    else:
        print_run(loaded.name, arguments.question, clip, result, notes)
    if arguments.overlay:
        with errors.status("drawing"):
            sample = result.report.samples[0]
            layers = arguments.layers or default_layers(sample)
            draw_overlay(arguments.overlay, clip.frames, clip.times.tolist(), sample, layers)
        print(f"overlay written to {arguments.overlay}", file=sys.stderr)
    return 0


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda, cuda:1, ..., got {device!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device} cannot be used: this PyTorch finds no CUDA device")


def _check_overlay(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise ValueError(f"--overlay must name a .png file, got {path}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"--overlay cannot be written: {error}") from error
    if not existed:
        path.unlink()
    if find_spec("matplotlib") is None:
        raise ValueError("--overlay needs matplotlib: pip install 'adatp[overlay]'")
