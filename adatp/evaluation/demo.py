"""Questions about one held-out video file, with a method and without."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from adatp.evaluation.answers import answer_length
from adatp.evaluation.heldout import paper_of
from adatp.evaluation.measure import EncodedClip, answer, with_relevance
from adatp.evaluation.session import Loaded
from adatp.methods import Method
from adatp.report import PruningReport
from adatp.video import sample_frames
from adatp.world.clips import FRAMES
from adatp.world.files import write_mp4
from adatp.world.questions import KINDS, Asked
from adatp_kernels.dispatch import Impl


class Shown(NamedTuple):
    """A question and its answers.

    Attributes:
        asked: the question, open.
        unpruned, pruned: the model's answers.
        report: the method's report.
    """

    asked: Asked
    unpruned: str
    pruned: str
    report: PruningReport


def demonstrate(
    loaded: Loaded, number: int, file: Path, method: Method, *, impl: Impl, tell: Callable[[str], None]
) -> list[Shown]:
    """Write a held-out clip to a file, read the file as any video, and ask about it.

    Args:
        loaded: the model.
        number: number of the clip.
        file: path to write the clip to.
        method: the method to prune with.
        impl: implementation of the three operations.
        tell: called with the name of each step as it begins.
    """
    loaded = with_relevance(loaded)
    paper = paper_of("heldout", number, questions=len(KINDS), options=False)
    tell(f"writing {file}")
    write_mp4(file, paper.clip().frames)
    encoded = EncodedClip(loaded, sample_frames(file, FRAMES))
    shown = []
    for i, asked in enumerate(paper.questions, 1):
        tell(f"question {i} of {len(paper.questions)}")
        inputs = encoded.inputs(asked.text)
        length = answer_length(loaded.processor.tokenizer, asked.answer)
        plain = answer(loaded, inputs, None, tokens=length, impl=impl)
        pruned = answer(loaded, inputs, method, tokens=length, impl=impl)
        assert pruned.report is not None
        shown.append(Shown(asked, plain.text, pruned.text, pruned.report))
    return shown
