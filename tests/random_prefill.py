"""A whole prefill on random tensors, without a model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from adatp import AdaTPConfig
from adatp.prefill import Prefill, PromptLayout, Tokens
from adatp_kernels.dispatch import Impl
from adatp_kernels.select import FIXED, PADDING

LAYERS, HEADS, GROUPS, DIM, WIDTH = 28, 28, 4, 128, 3584  # of OneVision-7B


def layout(frames: int, text: int, paddings: Sequence[int] = (0,), tokens_per_frame: int = 49) -> PromptLayout:
    """Prompts of one length: padding, text, a video of `frames`, a newline, `text` tokens."""
    visual = frames * tokens_per_frame
    rows = []
    for padding in paddings:
        before = 5 + max(paddings) - padding
        around = [PADDING] * padding + [FIXED] * before
        frame = around + [i // tokens_per_frame for i in range(visual)] + [FIXED] * (1 + text)
        position = [0] * len(around) + [i % tokens_per_frame for i in range(visual)] + [0] * (1 + text)
        rows.append((frame, position, [False] * (len(frame) - text) + [True] * text))
    frame, position, is_text = (torch.tensor(column) for column in zip(*rows, strict=True))
    return PromptLayout(frame, position, is_text, frames, tokens_per_frame)


def prefill(
    layout: PromptLayout,
    device: str,
    *,
    impl: Impl = "auto",
    watch: Callable[[], AbstractContextManager] = nullcontext,
) -> list[tuple[Tokens, object]]:
    """The tokens after every cut, and what a `watch()` around it gave. All that is random is made on the device."""
    batch, length = layout.frame.shape

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    similarity = torch.rand(batch, layout.frames, device=device) - 0.4
    cuts = Prefill(AdaTPConfig(), LAYERS, layout, random(batch, layout.frames, 32), similarity, impl)
    tokens = cuts.tokens(random(batch, length, WIDTH), random(1, length, DIM), random(1, length, DIM))
    after = []
    for layer in cuts.cuts:
        query, key = random(batch, HEADS, tokens.places.rows.shape[1], DIM), random(batch, GROUPS, tokens.width, DIM)
        with watch() as seen:
            tokens = cuts.cut(layer, tokens, query, key, DIM**-0.5)
        after.append((tokens, seen))
    return after
