"""What belongs to one call of the model."""

import threading
from collections.abc import Sequence

from adatp.hf.batch_prefill import BatchPrefill
from adatp.report import PruningReport

Question = str | list[str] | None  # for all prompts, or one a prompt; None to read it from the prompt


class Call(threading.local):
    """What belongs to the call that a thread is in.

    Attributes:
        prefill: in which it is, or None.
        prompt_length: of the `generate` it is in, or None.
        unasked: questions whose features are wanted once the vision tower is queued, or None.
        report: of the thread's last prefill.
        question: that the thread has set, see `adatp.Pruned.question`; empty where it has set none.
    """

    prefill: BatchPrefill | None = None
    prompt_length: int | None = None
    unasked: Sequence[str | None] | None = None
    report: PruningReport | None = None
    question: tuple[Question, ...] = ()
