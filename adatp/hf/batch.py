"""The prompts of a call, read before anything is computed."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from adatp.errors import Unsupported
from adatp.layout import PromptLayout
from adatp.models.family import Family


@dataclass(frozen=True)
class Batch:
    """B prompts. Host values.

    Attributes:
        ids: ids of each prompt, without padding and draft.
        padding: number of left padding tokens of each prompt.
        layouts: layout of each prompt, including the draft; None for a prompt without a video.
        draft: number of draft tokens after every prompt (assisted decoding). They do not score, and they are not cut.
    """

    ids: list[Tensor]
    padding: list[int]
    layouts: list[PromptLayout | None]
    draft: int

    @classmethod
    def read(
        cls, family: Family, ids: Tensor, mask: Any, *, prompt_length: int | None = None, prepared: bool = False
    ) -> "Batch":
        """Read the prompts, and find their videos.

        Args:
            family: the family of the model.
            ids: `[B, L]` on the host.
            mask: `[B, L]` or None; or `[B, 1, L, slots]`, which `generate` makes for a cache of fixed size.
            prompt_length: L without the draft; None if there is no draft.
            prepared: whether `generate` may have changed the mask.

        Raises:
            Unsupported: a prompt cannot be pruned.
        """
        length = ids.shape[1]
        draft = length - (prompt_length or length)
        padding = _left_padding(mask, length, prepared) or [0] * len(ids)
        layouts = []
        for row, pad in zip(ids, padding, strict=True):
            layout = family.layout(row[pad:])
            if layout is not None:
                layout = replace(layout, rows=layout.rows[layout.rows < length - pad - draft])
                layout.check()
            layouts.append(layout)
        return cls([row[pad : length - draft] for row, pad in zip(ids, padding, strict=True)], padding, layouts, draft)


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
