"""What belongs to one call of the model."""

import threading
from collections.abc import Sequence

from adatp.hf.batch_prefill import BatchPrefill
from adatp.report import PruningReport

Question = str | list[str] | None  # for all prompts, or one per prompt; None to read it from the prompt


class Call(threading.local):
    """The state of a thread's current call of the model.

    Attributes:
        prefill: the current prefill, or None.
        prompt_length: length of the prompts in the current `generate`, or None.
        unasked: questions whose features are computed after the vision tower is queued, or None.
        report: report of the thread's last prefill.
        question: the question that the thread has set, see `adatp.Pruned.question`; empty if it has set none.
    """

    prefill: BatchPrefill | None = None
    prompt_length: int | None = None
    unasked: Sequence[str | None] | None = None
    report: PruningReport | None = None
    question: tuple[Question, ...] = ()
