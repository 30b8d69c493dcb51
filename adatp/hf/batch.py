"""The prompts of a call, read before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from adatp.errors import Unsupported
from adatp.layout import PromptLayout, VideoSize
from adatp.models.family import Family


@dataclass(frozen=True)
class Batch:
    """B prompts. Host values.

    Attributes:
        ids: ids of each prompt, without padding and draft.
        padding: number of left padding tokens of each prompt.
        layouts: layout of each prompt, including the draft; None for a prompt without a video.
        draft: number of draft tokens after every prompt (assisted decoding). They do not score, and they are not cut.
        sizes: sizes of the videos that are encoded, in order; None if the ids tell them. Copies of a prompt share them.
    """

    ids: list[Tensor]
    padding: list[int]
    layouts: list[PromptLayout | None]
    draft: int
    sizes: Sequence[VideoSize] | None = None

    @classmethod
    def read(
        cls,
        family: Family,
        ids: Tensor,
        mask: Any,
        *,
        sizes: Sequence[VideoSize] | None = None,
        prompt_length: int | None = None,
        prepared: bool = False,
    ) -> "Batch":
        """Read the prompts, and find their videos.

        Args:
            family: the family of the model.
            ids: `[B, L]` on the host.
            mask: `[B, L]` or None; or `[B, 1, L, slots]`, which `generate` makes for a cache of fixed size.
            sizes: sizes of all videos, in order, or of those of one copy of each prompt; None if the ids tell them.
            prompt_length: L without the draft; None if there is no draft.
            prepared: whether `generate` may have changed the mask.

        Raises:
            Unsupported: a prompt cannot be pruned.
        """
        length = ids.shape[1]
        draft = length - (prompt_length or length)
        padding = _left_padding(mask, length, prepared) or [0] * len(ids)
        layouts = []
        own: Sequence[Sequence[VideoSize] | None] = [None] * len(ids)
        if sizes is not None:
            own = _share(sizes, [int(count) for count in family.is_video(ids).sum(1)])
        for row, pad, given in zip(ids, padding, own, strict=True):
            layout = family.layout(row[pad:], given)
            if layout is not None:
                layout = replace(layout, rows=layout.rows[layout.rows < length - pad - draft])
                layout.check()
            layouts.append(layout)
        prompts = [row[pad : length - draft] for row, pad in zip(ids, padding, strict=True)]
        return cls(prompts, padding, layouts, draft, sizes)


def _share(sizes: Sequence[VideoSize], tokens: Sequence[int]) -> list[list[VideoSize]]:
    """Return the sizes of each prompt's own videos.

    Copies of a prompt (for beams) are side by side. They may share one set of videos.

    Args:
        sizes: sizes of all videos, in order.
        tokens: number of video tokens in each prompt.

    Raises:
        Unsupported: the videos do not fit the prompts.
    """
    told = sum(size.tokens for size in sizes)
    copies, rest = divmod(sum(tokens), told) if told else (0, 1)
    shares: list[list[VideoSize]] = []
    left = list(sizes)
    for b, wanted in enumerate(tokens):
        if copies > 1 and b % copies:
            shares.append(shares[-1])
            continue
        shares.append([])
        while left and wanted > 0:
            shares[-1].append(left.pop(0))
            wanted -= shares[-1][-1].tokens
        if wanted or rest:
            grids = ", ".join(f"{size.frames} x {size.grid}" for size in sizes)
            raise Unsupported(
                f"the prompts hold {list(tokens)} video tokens, but the grids of the videos say {told}: {grids}; the "
                "whole videos must be in one prefill (chunked prefill cannot be pruned), in the order of their grids"
            )
    return shares


def _left_padding(mask: Any, length: int, prepared: bool) -> list[int]:
    """Return the left padding of each prompt, or [] without a mask; refuse a mask that is anything else."""
    if isinstance(mask, dict):
        mask = mask["full_attention"]
    if mask is None:
        return []
    if prepared and mask.ndim == 4:
        last = mask[:, 0, -1, :length]  # the last token sees all tokens
        mask = last == 0 if last.is_floating_point() else last
    if mask.ndim != 2:
        raise Unsupported(f"attention_mask must be [B, L] or None to be pruned, got {tuple(mask.shape)}")
    mask = mask.cpu().bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise Unsupported("attention_mask must be padded on the left only; set padding_side='left'")
    return [int(padding) for padding in (~mask).sum(1)]
