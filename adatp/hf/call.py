"""What belongs to one call of the model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from adatp.hf.batch_prefill import BatchPrefill
from adatp.layout import VideoSize
from adatp.report import PruningReport

Question = str | list[str] | None  # for all prompts, or one per prompt; None to read it from the prompt


class Call(threading.local):
    """The state of a thread's current call of the model.

    Attributes:
        prefill: the current prefill, or None.
        prompts: `[B, L]` ids of the prompts of the current `generate`, on the host; None outside of it.
        sizes: sizes of the videos of these prompts; None if the ids tell them.
        is_own: whether the current prefill is of these prompts. `generate` may run others, such as a negative prompt.
        reported: whether `report` is already that of the current `generate`; its other prefills do not change it.
        unasked: questions whose features are computed after the vision tower is queued, or None.
        report: report of the thread's last prefill.
        question: the question that the thread has set, see `adatp.Pruned.question`; empty if it has set none.
    """

    prefill: BatchPrefill | None = None
    prompts: Tensor | None = None
    sizes: Sequence[VideoSize] | None = None
    is_own: bool = False
    reported: bool = False
    unasked: Sequence[str | None] | None = None
    report: PruningReport | None = None
    question: tuple[Question, ...] = ()

    @contextmanager
    def generating(
        self, prompts: Tensor | None, sizes: Sequence[VideoSize] | None, *, continued: bool
    ) -> Iterator[None]:
        """Mark the `with` block as a `generate`.

        Args:
            prompts: `[B, L]` its prompts, on the host; None if there are none.
            sizes: sizes of their videos; None if the ids tell them.
            continued: whether it continues a cache, so that it has no prefill of its own.
        """
        outer = self.prompts, self.sizes, self.reported
        self.prompts, self.sizes, self.reported = prompts, sizes, continued
        try:
            yield
        finally:
            self.prompts, self.sizes, self.reported = outer
            self.unasked = None

    def prompt_length(self, ids: Tensor) -> int | None:
        """Return L if `[B, L + draft]` ids begin with the prompts of `generate`, or with copies of them; else None."""
        if self.prompts is None:
            return None
        length = self.prompts.shape[1]
        copies, rest = divmod(len(ids), len(self.prompts))
        begins = rest == 0 and torch.equal(ids[:, :length], self.prompts.repeat_interleave(copies, 0))
        return length if begins else None
