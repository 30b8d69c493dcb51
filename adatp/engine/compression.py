"""Pruning of one prompt's videos before the decoder."""

import torch
from torch import Tensor

from adatp.errors import Unsupported
from adatp.layout import PromptLayout
from adatp.methods.method import BeforeDecoder, Video


class Compression:
    """The pruning of one prompt by a method that works before the decoder.

    Args:
        method: chooses the tokens that are kept.
        layout: the layout of the prompt.
        saliency: `[n, P]`, see `adatp.methods.method.Video`; None unless the method wants it.
        keys: `[n, P, d]`, see `adatp.methods.method.Video`; None unless the method wants them.

    Attributes:
        kept: number of visual tokens that are kept.
        left: `[W]` int64 index of each kept token in the whole prompt; a merged or pooled token has the index of the
            token that it stands for. None before `apply`.

    Raises:
        Unsupported: there are other tokens between the tokens of a video.
    """

    def __init__(
        self, method: BeforeDecoder, layout: PromptLayout, saliency: Tensor | None, keys: Tensor | None
    ) -> None:
        self.method = method
        self.layout = layout
        self.left: Tensor | None = None
        self._saliency = saliency
        self._keys = keys
        self._begins: list[int] = []  # of every video
        c, frame = layout.tokens_per_frame, 0
        for frames in layout.videos:
            begins = layout.begins[frame : frame + frames]
            if begins != tuple(range(begins[0], begins[0] + frames * c, c)):
                raise Unsupported(
                    f"method {method.name!r} needs videos without other tokens between their own; use a method that "
                    "works between the layers, such as 'adatp' or 'fastv'"
                )
            self._begins.append(begins[0])
            frame += frames
        self._counts = [method.count(frames, layout.grid) for frames in layout.videos]
        self.kept = sum(self._counts)

    def apply(self, hidden: Tensor) -> Tensor:
        """Prune the prompt's `[1, L, D]` embeddings, and return the `[1, W, D]` that the decoder is given."""
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
        self.left = torch.cat([*origins, index[end:]])
        return torch.cat([*parts, hidden[0, end:]])[None]

    def slots(self) -> Tensor:
        """Return `[W]` bool on the host, True for the kept tokens that are visual."""
        visual = torch.zeros(self.layout.length - self.layout.visual_tokens + self.kept, dtype=torch.bool)
        gone = 0
        for begin, count, frames in zip(self._begins, self._counts, self.layout.videos, strict=True):
            visual[begin - gone : begin - gone + count] = True
            gone += frames * self.layout.tokens_per_frame - count
        return visual
