"""The prompts of a call, as far as they can be read before anything is computed."""

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
        ids: each prompt's, without padding.
        padding: left padding of each.
        layouts: one a prompt, draft included; None for a prompt without a video.
        draft: tokens at the end of every prompt that a draft proposes: no part of it, they neither score nor are cut.
    """

    ids: list[Tensor]
    padding: list[int]
    layouts: list[PromptLayout | None]
    draft: int

    @classmethod
    def read(
        cls, family: Family, ids: Tensor, mask: Any, *, prompt_length: int | None = None, prepared: bool = False
    ) -> "Batch":
        """Find the videos.

        Args:
            family: of the model.
            ids: `[B, L]` on the host.
            mask: `[B, L]`, or None; or what `generate` makes of it for a cache of fixed size, `[B, 1, L, slots]`.
            prompt_length: L without the draft; None for no draft.
            prepared: whether `generate` may have made it.

        Raises:
            Unsupported: prompts that cannot be pruned.
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
    """Left padding of each prompt, refused where the mask is anything else; empty for no padding."""
    if isinstance(mask, dict):
        mask = mask["full_attention"]
    if mask is None:
        return []
    if prepared and mask.ndim == 4:
        last = mask[:, 0, -1, :length]  # sees all there is
        mask = last == 0 if last.is_floating_point() else last
    if mask.ndim != 2:
        raise Unsupported(f"attention_mask must be [B, L] or None to be pruned, got {tuple(mask.shape)}")
    mask = mask.cpu().bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise Unsupported("attention_mask must be padded on the left only; set padding_side='left'")
    return [int(padding) for padding in (~mask).sum(1)]
