"""A prompt whose videos are thinned out before the decoder."""

import torch
from torch import Tensor

from adatp.layout import PromptLayout
from adatp.methods.method import BeforeDecoder, Video


class Compression:
    """What a method leaves of one prompt.

    Args:
        method: which tokens go.
        layout: the prompt.
        saliency: `[n, P]`, see `adatp.methods.method.Video`; None unless the method wants it.
        keys: `[n, P, d]`, likewise.

    Attributes:
        kept: visual tokens that are left.
        origin: `[W]` int64, once applied: where each token that is left stands, or what it is made of began, in the
            whole prompt.

    Raises:
        ValueError: other tokens stand among those of a video.
    """

    def __init__(
        self, method: BeforeDecoder, layout: PromptLayout, saliency: Tensor | None, keys: Tensor | None
    ) -> None:
        self.method = method
        self.layout = layout
        self.origin: Tensor | None = None
        self._saliency = saliency
        self._keys = keys
        self._begins: list[int] = []  # of every video
        c, frame = layout.tokens_per_frame, 0
        for frames in layout.videos:
            begins = layout.begins[frame : frame + frames]
            if begins != tuple(range(begins[0], begins[0] + frames * c, c)):
                raise ValueError(
                    f"method {method.name!r} takes videos without other tokens among their own; use one that works "
                    "between the layers, such as 'adatp' or 'fastv'"
                )
            self._begins.append(begins[0])
            frame += frames
        self._counts = [method.count(frames, layout.grid) for frames in layout.videos]
        self.kept = sum(self._counts)

    def apply(self, hidden: Tensor) -> Tensor:
        """`[1, L, D]` embeddings of the prompt to the `[1, W, D]` that the decoder is given."""
        c, device = self.layout.tokens_per_frame, hidden.device
        index = torch.arange(hidden.shape[1], device=device)
        origins, parts, end, frame = [], [], 0, 0
        for begin, frames in zip(self._begins, self.layout.videos, strict=True):
            stop = begin + frames * c
            members = slice(frame, frame + frames)
            chosen, tokens = self.method.compress(
                Video(
                    tokens=hidden[0, begin:stop].unflatten(0, (frames, c)),
                    grid=self.layout.grid,
                    saliency=None if self._saliency is None else self._saliency[members],
                    keys=None if self._keys is None else self._keys[members],
                )
            )
            origins += [index[end:begin], begin + chosen]
            parts += [hidden[0, end:begin], tokens]
            end, frame = stop, frame + frames
        self.origin = torch.cat([*origins, index[end:]])
        return torch.cat([*parts, hidden[0, end:]])[None]

    def slots(self) -> Tensor:
        """`[W]` bool on the host: which of the tokens that are left are visual."""
        visual = torch.zeros(self.layout.length - self.layout.visual_tokens + self.kept, dtype=torch.bool)
        gone = 0
        for begin, count, frames in zip(self._begins, self._counts, self.layout.videos, strict=True):
            visual[begin - gone : begin - gone + count] = True
            gone += frames * self.layout.tokens_per_frame - count
        return visual
