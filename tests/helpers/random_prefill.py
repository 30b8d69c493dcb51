"""A whole prefill on random tensors, without a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from adatp.engine.cuts import Cuts
from adatp.engine.scoring import Scoring
from adatp.engine.tokens import Tokens
from adatp.layout import Grid, PromptLayout, VideoSize
from adatp.methods import AdaTP
from adatp.methods.method import BetweenLayers
from adatp_kernels.dispatch import Impl

SEVEN = Grid(7, 7)
LAYERS, HEADS, GROUPS, DIM, WIDTH = 28, 28, 4, 128, 3584  # of OneVision-7B


def layout(frames: int, text: int, videos: int = 1, *, before: int = 5, grid: Grid = SEVEN) -> PromptLayout:
    """A prompt: `before` tokens, then each video of `frames` with a newline, then `text` tokens."""
    c = grid.tokens
    each = frames * c + 1
    begins = [before + video * each + frame * c for video in range(videos) for frame in range(frames)]
    end = before + videos * each
    return PromptLayout(end + text, tuple(begins), torch.arange(end, end + text), (VideoSize(frames, grid),) * videos)


def prefill(
    layout: PromptLayout,
    device: str,
    *,
    impl: Impl = "auto",
    method: BetweenLayers = AdaTP(),  # noqa: B008  frozen
    watch: Callable[[], AbstractContextManager] = nullcontext,
) -> list[tuple[Tokens, object]]:
    """The tokens after every cut, and what a `watch()` around it gave. All that is random is made on the device."""
    length = layout.length

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    similarity = torch.rand(layout.frames, device=device) - 0.4
    frames, scoring = random(layout.frames, 32), Scoring(impl)
    cuts = Cuts(method, LAYERS, layout, frames=frames, similarity=similarity, scoring=scoring)
    tokens = cuts.tokens(random(1, length, WIDTH), random(1, length, DIM), random(1, length, DIM))
    after = []
    for layer in cuts.ratios:
        query, key = random(1, HEADS, tokens.places.rows.shape[1], DIM), random(1, GROUPS, tokens.width, DIM)
        with watch() as seen:
            tokens = cuts.cut(layer, tokens, query, key, DIM**-0.5)
        after.append((tokens, seen))
    return after
