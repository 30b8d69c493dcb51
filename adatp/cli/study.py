"""`adatp study`: measure the accuracy of all methods on held-out questions."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from adatp.cli import options


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    study = commands.add_parser(
        "study",
        help="Measure the accuracy of all methods at three costs.",
        description="Ask questions about held-out synthetic videos, unpruned and with every method at three costs. Run "
        "the paper's ablations too, and look for its two biases in the model's attention.",
    )
    study.add_argument("--clips", type=options.whole, default=64, help="Number of held-out videos (default: 64).")
    study.add_argument(
        "--questions", type=options.whole, default=8, help="Largest number of questions about each video (default: 8)."
    )
    study.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Folder to write study.json, study.md and accuracy.png to; needs matplotlib (default: no files).",
    )
    options.add_json(study)
    options.add_model(study)
    study.set_defaults(command=_study)


def _study(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "clips", "questions")
    options.require_matplotlib(arguments.out, "--out")
    options.require_world()
    with options.progress() as progress:
        from adatp.evaluation.ablation import plan
        from adatp.evaluation.accuracy import Trial, examine, trials, workers_for
        from adatp.evaluation.accuracy_summary import summarise
        from adatp.evaluation.machine import describe_machine
        from adatp.evaluation.paper.rows import load_paper
        from adatp.hf.stopwatch import now
        from adatp.models import family_of
        from adatp.tables.accuracy import markdown, print_study
        from adatp.world.clips import FRAMES
        from adatp_kernels.dispatch import resolve

        begin = now()
        options.device_of(arguments)
        loaded = options.load_model(arguments, progress.tell)
        ablations, told = plan(load_paper(), "all", len(family_of(loaded.model).decoder.layers), 1.0)
        tried, varied = trials(), [Trial(row.method) for ablation in ablations for row in ablation.variants]
        workers = workers_for(loaded.model.device.type)
        examined = list(
            examine(
                options.loader_of(arguments) if workers > 1 else lambda: loaded,
                list(dict.fromkeys([*tried, *varied])),
                clips=arguments.clips,
                questions=arguments.questions,
                workers=workers,
                impl=arguments.impl,
                tell=progress.tell,
            )
        )
        study = {
            "model": loaded.name,
            "machine": describe_machine(loaded.model, resolve(arguments.impl, loaded.model.device)),
            "clips": arguments.clips,
            "frames": FRAMES,
            "seconds": now() - begin,
            **summarise(examined, tried, ablations),
        }
    notes = [*([loaded.note] if loaded.note else []), *told, *progress.notes]
    if arguments.out:
        from adatp.figures.accuracy import draw_accuracy

        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "study.json").write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "study.md").write_text(markdown(study), encoding="utf-8")
        draw_accuracy(arguments.out / "accuracy.png", study)
        print(f"written to {arguments.out}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({**study, "notes": notes}, allow_nan=False))
    else:
        print_study(study, notes)
    return 0
