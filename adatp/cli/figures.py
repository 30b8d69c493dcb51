"""`adatp figures`: draw the model's attention to the video, and the tokens that each method keeps."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatp.cli import options
from adatp.errors import InputError

if TYPE_CHECKING:  # the command line starts without torch
    from adatp.evaluation.bias import Biases
    from adatp.evaluation.session import Loaded
    from adatp.figures.page import Study
    from adatp.video import Clip
    from adatp_kernels.dispatch import Impl

METHODS = ("adatp", "fastv", "visionzip", "dycoke")
LONGEST_ANSWER = 64  # tokens


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "figures",
        help="Draw the attention to a video and the tokens that methods keep.",
        description="Draw where the text attends in the video, and which tokens each method keeps. Write four PNGs and "
        "an HTML page (needs matplotlib), and print the numbers that the paper quotes.",
    )
    options.add_video(parser)
    options.add_methods(
        parser, METHODS, f"Methods to draw side by side, separated by commas (default: {','.join(METHODS)})."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), metavar="DIR", help="Folder to write to (default: figures)."
    )
    options.add_model(parser)
    parser.set_defaults(command=figures)


def figures(arguments: argparse.Namespace) -> int:
    """Run the command."""
    options.require_positive(arguments, "frames")
    options.require_question(arguments.question)
    options.require_matplotlib(arguments.out, "--out")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out cannot be written: {error}") from error
    with options.progress() as progress:
        from dataclasses import replace

        from adatp.evaluation.bias import measure
        from adatp.figures.overlay import patch_note
        from adatp.figures.page import write_page

        options.device_of(arguments)
        clip, _ = options.load_clip(arguments, progress.tell)
        loaded = options.load_model(arguments, progress.tell)
        study = _study(
            clip,
            Path(arguments.video).name,
            arguments.question,
            loaded,
            arguments.methods,
            flops=arguments.flops,
            impl=arguments.impl,
            tell=progress.tell,
        )
        progress.tell("drawing")
        found = measure(study.attention.scores, study.attention.grid)
        written = _draw(arguments.out, study, found)
    (size,) = study.attention.videos
    patches = [f"a frame is a temporal patch; {patch_note(size)}"] if size.temporal_patch > 1 else []
    known = (loaded.note, clip.note, *patches, *progress.notes, *study.notes)
    study = replace(study, notes=tuple(dict.fromkeys(note for note in known if note)))
    page = arguments.out / "index.html"
    write_page(page, study)
    _print(study, found, [page, *written])
    return 0


def _study(
    clip: "Clip",
    video: str,
    question: str,
    loaded: "Loaded",
    methods: Sequence[str],
    *,
    flops: float | None,
    impl: "Impl",
    tell: Callable[[str], None],
) -> "Study":
    """Answer the question without pruning, and then with each method."""
    from adatp.evaluation.measure import EncodedClip
    from adatp.evaluation.session import generate
    from adatp.figures.page import Run, Study
    from adatp.hf.attention_map import visual_attention
    from adatp.methods.settings import describe
    from adatp.pruning import apply

    tell("encoding the clip")
    inputs = EncodedClip(loaded, clip).inputs(question)

    def answer() -> str:
        return generate(loaded, inputs, LONGEST_ANSWER)[0]

    tell("looking where the model looks")
    attention = visual_attention(loaded.model, inputs, loaded.processor)
    tell("answering without pruning")
    unpruned = answer()
    runs: dict[str, Run] = {}
    notes: list[str] = []
    for name in methods:
        tell(f"answering with {name}")
        with apply(loaded.model, loaded.processor, name, flops=flops, relevance=loaded.relevance, impl=impl) as pruned:
            text, report = answer(), pruned.report
        (sample,) = report.samples
        method = sample.method
        assert method is not None, "the prompt has a video"
        changed = describe(method).removeprefix(method.name).strip(" ()")
        runs[name] = Run(
            name=type(method).__name__,
            settings=changed or "its published settings",
            answer=text,
            flops=report.flops.ratio,
            sample=sample,
        )
        notes += [f"{type(method).__name__}: {note}" for note in report.notes]
    return Study(
        model=loaded.name,
        video=video,
        question=question,
        answer=unpruned,
        clip=clip,
        attention=attention,
        runs=runs,
        notes=tuple(notes),
    )


def _draw(folder: Path, study: "Study", found: "Biases") -> list[Path]:
    """Draw the four PNGs and return their paths."""
    from adatp.figures.drawings import draw_kept, draw_per_frame, draw_per_position, draw_top_tokens
    from adatp.figures.overlay import first_frames

    attention, grid, title = study.attention, study.attention.grid, f"{study.question}  ({study.model}, {study.video})"
    paths = [folder / f"{name}.png" for name in ("attention_per_frame", "attention_per_position", "top_tokens", "kept")]
    draw_per_frame(paths[0], found.per_frame.numpy(), title)
    draw_per_position(paths[1], found.per_position.numpy(), title, newlines=grid.newlines)
    draw_top_tokens(paths[2], attention.scores.numpy(), found.kinds.numpy(), title)
    last = len(attention.scores) - 1
    kept = {run.name: run.sample.kept_mask(last).view(-1, *grid.shape).numpy() for run in study.runs.values()}
    what = f"{title}: what enters layer {last}, the last"
    (size,) = attention.videos
    drawn = study.clip.frames[first_frames(size, len(study.clip.frames))]
    draw_kept(paths[3], drawn, kept, what, newlines=grid.newlines)
    return paths


def _print(study: "Study", found: "Biases", paths: Sequence[Path]) -> None:
    """Print, for every layer, the numbers that the paper quotes; then the paths of the written files."""
    from rich.console import Console

    from adatp.evaluation.bias import LAST_FRAMES, Bias, shares
    from adatp.tables.heading import print_notes
    from adatp.tables.tabulate import print_table

    attention = study.attention
    console = Console(highlight=False)
    print_notes(console, study.notes)
    last = min(LAST_FRAMES, attention.frames)
    head = ("layer", f"last {last} frames", "ends", "position", "both", "peak", "row", "column")
    lines = []
    for layer, share in enumerate(shares(found.kinds)):
        kinds = dict(zip(list(Bias)[1:], share.tolist(), strict=True))
        factor, row, column = (values[layer].item() for values in found.peak)
        line = [str(layer), f"{found.in_last[layer]:.1%}"]
        line += [f"{kinds[kind]:.1%}" for kind in (Bias.ENDS, Bias.POSITION, Bias.BOTH)]
        lines.append(
            [*line, f"{factor:.2f}", str(row), str(column) if column < attention.grid.patch_columns else "newline"]
        )
    print_table(head, lines, title="Where the top 10 % by attention are; the peak position, over the mean", left=0)
    for path in paths:
        print(path)
