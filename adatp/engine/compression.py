"""Pruning of one prompt's videos before the decoder."""

from itertools import pairwise

import torch
from torch import Tensor

from adatp.layout import PromptLayout
from adatp.methods.method import BeforeDecoder, Video
from adatp.tensors.transfer import send


class Compression:
    """The pruning of one prompt by a method that works before the decoder.

    There may be other tokens between the frames of a video. Then each kept token stays among the frames around the
    token that it is or stands for.

    Args:
        method: chooses the tokens that are kept.
        layout: the layout of the prompt.
        saliency: `[n, P]`, see `adatp.methods.method.Video`; None unless the method wants it.
        keys: `[n, P, d]`, see `adatp.methods.method.Video`; None unless the method wants them.

    Attributes:
        kept: number of visual tokens that are kept.
        left: `[W]` int64 index of each kept token in the whole prompt; a merged or pooled token has the index of the
            token that it stands for. None before `apply`.
    """

    def __init__(
        self, method: BeforeDecoder, layout: PromptLayout, saliency: Tensor | None, keys: Tensor | None
    ) -> None:
        self.method = method
        self.layout = layout
        self.kept = sum(method.count(video.frames, video.grid) for video in layout.videos)
        self.left: Tensor | None = None
        self._saliency = saliency
        self._keys = keys

    def apply(self, hidden: Tensor) -> Tensor:
        """Prune the prompt's `[1, L, D]` embeddings, and return the `[1, W, D]` that the decoder is given."""
        layout, device = self.layout, hidden.device
        is_text = torch.ones(layout.length, dtype=torch.bool)
        is_text[layout.visual] = False
        text = send(is_text.nonzero().flatten(), device)
        origins, parts, places = [text], [hidden[0, text]], [text]
        run = send(_runs(layout), device)  # [N_v]
        frame = token = 0
        for video, visual in zip(layout.videos, layout.visual_of_videos(), strict=True):
            members, own = slice(frame, frame + video.frames), slice(token, token + video.tokens)
            index = send(visual, device)
            chosen, tokens = self.method.compress(
                Video(
                    tokens=hidden[0, index],
                    grid=video.grid,
                    saliency=None if self._saliency is None else self._saliency[members],
                    keys=None if self._keys is None else self._keys[members],
                )
            )
            origins.append(index.flatten()[chosen])
            parts.append(tokens)
            places.append(run[own][chosen])
            frame, token = members.stop, own.stop
        order = torch.cat(places).argsort(stable=True)
        self.left = torch.cat(origins)[order]
        return torch.cat(parts)[order][None]

    def visual(self) -> Tensor:
        """Return `[W]` bool on the device, True for the kept tokens that are visual."""
        assert self.left is not None, "the prompt has been compressed"
        is_visual = torch.zeros(self.layout.length, dtype=torch.bool)
        is_visual[self.layout.visual] = True
        return send(is_visual, self.left.device)[self.left]


def _runs(layout: PromptLayout) -> Tensor:
    """Return `[N_v]` int64: for each visual token the first token of the run of neighbouring frames that it is in."""
    starts = [layout.begins[0]]
    for (begin, following), tokens in zip(pairwise(layout.begins), layout.frame_tokens, strict=False):
        starts.append(starts[-1] if following == begin + tokens else following)
    return torch.tensor(starts).repeat_interleave(torch.tensor(layout.frame_tokens))
