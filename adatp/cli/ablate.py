"""`adatp ablate`: the paper's ablations on a question set."""

import argparse
import json
from pathlib import Path
from typing import Any

from adatp.cli import options

_QUESTIONS = """\
QUESTIONS is a JSON list, or one JSON object a line:

  {"video": "street.mp4", "question": "Who rides by?", "options": ["A child", "A cyclist"], "answer": "B"}

"video" is a path relative to the file. "options" and "answer" may be left out. With options, the answer is the letter
or the text of one; the model is asked as LMMs-Eval asks, and answers by the letter with the highest next-token logit.
Without, its greedy answer must be the known one but for case, spaces and a full stop at the end.
"""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    ablate = commands.add_parser(
        "ablate",
        help="the paper's ablations (Tab. 2 to 4) on a set of questions",
        epilog=_QUESTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ablate.add_argument("questions", type=Path, metavar="QUESTIONS", help="a JSON or JSON lines file, see below")
    ablate.add_argument("--table", default="all", choices=("2", "3", "4", "all"), help="of the paper (default all)")
    ablate.add_argument("--p", type=float, default=1.0, help="compression setting of all rows (default 1.0)")
    ablate.add_argument("--frames", type=int, default=32, help="frames to sample of each video (default 32)")
    options.add_json(ablate)
    options.add_model(ablate)
    ablate.set_defaults(command=_ablate)


def _ablate(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "frames")
    with options.progress() as progress:
        from adatp.evaluation.ablation import plan, run
        from adatp.evaluation.machine import describe_machine
        from adatp.evaluation.measure import with_relevance
        from adatp.evaluation.paper.rows import load_paper
        from adatp.evaluation.questions import load_questions
        from adatp.methods import AdaTP
        from adatp.models import family_of
        from adatp.tables.ablation import Ablated, ablations_to_dict, print_ablations
        from adatp_kernels.dispatch import resolve

        AdaTP(p=arguments.p)  # refuses what no model could run
        options.device_of(arguments)
        questions = load_questions(arguments.questions)
        loaded = with_relevance(options.load_model(arguments, progress.tell))
        layers = len(family_of(loaded.model).decoder.layers)
        found, told = plan(load_paper(), arguments.table, layers, arguments.p)
        methods = [variant.method for ablation in found for variant in ablation.variants]
        outcomes = run(loaded, questions, methods, frames=arguments.frames, impl=arguments.impl, tell=progress.tell)
        machine = describe_machine(loaded.model, resolve(arguments.impl, loaded.model.device))
    notes = [*([loaded.note] if loaded.note else []), *told, *progress.notes, *outcomes.notes]
    done = Ablated(
        model=loaded.name,
        machine=machine,
        questions=questions,
        frames=arguments.frames,
        p=arguments.p,
        ablations=found,
        outcomes=outcomes,
        notes=notes,
    )
    if arguments.json:
        print(json.dumps(ablations_to_dict(done), allow_nan=False))
    else:
        print_ablations(done)
    return 0
