"""`adatp world`: write synthetic videos, and questions about them with their answers."""

import argparse
import json
from pathlib import Path
from typing import Any

from adatp.cli import options
from adatp.world.things import SPLITS


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    world = commands.add_parser(
        "world",
        help="Write synthetic videos and questions about them.",
        description="Write synthetic videos as MP4 files, and questions.json with questions and answers about them. "
        "'adatp ablate' reads that file.",
    )
    world.add_argument("folder", type=Path, metavar="DIR", help="Folder to write the videos and questions.json to.")
    world.add_argument("--clips", type=options.whole, default=8, help="Number of videos (default: 8).")
    world.add_argument(
        "--questions", type=options.whole, default=8, help="Largest number of questions about each video (default: 8)."
    )
    world.add_argument(
        "--options",
        action="store_true",
        help="Give every second question answer options, for models that can answer by letter; the built-in model "
        "cannot (default: no options).",
    )
    world.add_argument(
        "--split",
        default="heldout",
        choices=SPLITS,
        help="Data split that the videos come from; the built-in model was trained on 'train' (default: heldout).",
    )
    world.set_defaults(command=_world)


def _world(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "clips", "questions")
    options.require_world()
    from adatp.evaluation.heldout import paper_of
    from adatp.world.files import write_mp4

    arguments.folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(arguments.clips):
        paper = paper_of(arguments.split, number, questions=arguments.questions, options=arguments.options)
        video = f"{arguments.split}-{paper.number}.mp4"
        write_mp4(arguments.folder / video, paper.clip().frames)
        for asked in paper.questions:
            own = {"options": list(asked.options)} if asked.options else {}
            entries.append({"video": video, "question": asked.text, **own, "answer": asked.said})
    file = arguments.folder / "questions.json"
    file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.clips} videos and {len(entries)} questions about them written to {arguments.folder}")
    return 0
