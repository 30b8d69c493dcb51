"""`adatp ablate`: run the paper's ablations on a question set."""

import argparse
import json
from pathlib import Path
from typing import Any

from adatp.cli import options

_QUESTIONS = """\
QUESTIONS is a JSON list, or a JSON lines file (one object on each line).
Example of an object:

  {"video": "street.mp4", "question": "Who rides by?",
   "options": ["A child", "A cyclist"], "answer": "B"}

"video" is a path relative to the file. "options" and "answer" may be left out.

With "options", "answer" is the letter or the text of one option. The prompt is
that of LMMs-Eval. The model's answer is the letter with the highest next-token
logit.

Without "options", the model answers freely (greedy decoding). Its answer is
right if it equals "answer"; case, spaces and a full stop at the end do not
count.
"""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    ablate = commands.add_parser(
        "ablate",
        help="Run the paper's ablations (Tab. 2 to 4) on a set of questions.",
        description="Run the ablations of the paper's Tab. 2, 3 and 4 on a set of questions.\n"
        "Print FLOPs, accuracy, and agreement with the unpruned model.",
        epilog=_QUESTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ablate.add_argument(
        "questions", type=Path, metavar="QUESTIONS", help="JSON or JSON lines file with the questions; format below."
    )
    ablate.add_argument(
        "--table",
        default="all",
        choices=("2", "3", "4", "all"),
        help="Number of the paper's table to run (default: all).",
    )
    ablate.add_argument(
        "--p",
        type=options.real,
        default=1.0,
        help="AdaTP's compression setting p for all rows; a larger p keeps more tokens (default: 1.0).",
    )
    ablate.add_argument(
        "--frames", type=options.whole, default=32, help="Number of frames to sample from each video (default: 32)."
    )
    options.add_limits(ablate)
    options.add_json(ablate)
    options.add_model(ablate)
    ablate.set_defaults(command=_ablate)


def _ablate(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "frames")
    with options.progress() as progress:
        from adatp.checks.markup import refuse_markup
        from adatp.evaluation.ablation import plan, run
        from adatp.evaluation.machine import describe_machine
        from adatp.evaluation.measure import with_relevance
        from adatp.evaluation.paper.rows import load_paper
        from adatp.evaluation.questions import load_questions
        from adatp.methods import AdaTP
        from adatp.models import family_of
        from adatp.tables.ablation import Ablated, ablations_to_dict, print_ablations
        from adatp_kernels.dispatch import resolve

        AdaTP(p=arguments.p)  # raises for a p that no model can run
        options.device_of(arguments)
        questions = load_questions(arguments.questions)
        loaded = with_relevance(options.load_model(arguments, progress.tell))
        for number, question in enumerate(questions, 1):
            refuse_markup(f"question {number} of {arguments.questions}", question.prompt, loaded.processor)
        layers = len(family_of(loaded.model).decoder.layers)
        found, told = plan(load_paper(), arguments.table, layers, arguments.p)
        methods = [variant.method for ablation in found for variant in ablation.variants]
        outcomes = run(
            loaded,
            questions,
            methods,
            frames=arguments.frames,
            limits=options.limits_of(arguments),
            impl=arguments.impl,
            tell=progress.tell,
        )
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
