"""The positions whose logits a caller asks for (`logits_to_keep`), in prompts of which tokens are dropped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatp.errors import InputError, Unsupported, UnsupportedType
from adatp.hf.batch import Batch

Left = Sequence[Tensor | None]  # of each prompt: `[W]` indices in the whole prompt of the tokens left; None for all


class AskedLogits:
    """The positions of a batch whose logits the caller asks for.

    A number n asks for the last n positions, 0 for all that are left. A tensor is `[n]` int64 positions in all prompts
    (negative ones count from the end), `[B, n]` int64 positions in each, or bool `[L]` or `[B, L]`. Positions count as
    in the unpruned model, with padding and dropped tokens.

    Args:
        wanted: `logits_to_keep`.
        batch: the prompts.
        length: L, with padding and draft.

    Raises:
        InputError: a position is outside of the prompts, or is padding.
        UnsupportedType: `wanted` is neither a number nor a tensor of positions.
    """

    def __init__(self, wanted: Any, batch: Batch, length: int) -> None:
        self._padding = torch.tensor(batch.padding)
        self._by_position = isinstance(wanted, Tensor)
        self._asked = _mask(wanted, len(batch.ids), length)  # [B, L] bool
        is_padding = torch.arange(length) < self._padding[:, None]
        if self._by_position:
            self._refuse(self._asked & is_padding, InputError, "is padding")
        self._may_be_dropped = any(
            layout is not None and bool(asked[: padding + layout.end].any())
            for asked, padding, layout in zip(self._asked, batch.padding, batch.layouts, strict=True)
        )

    def check(self, left: Left) -> None:
        """Refuse positions of dropped tokens. Reads the device only if it may have to.

        Raises:
            Unsupported: the token at a position was dropped.
        """
        if not self._may_be_dropped:
            return
        dropped = self._asked & (torch.arange(self._asked.shape[1]) >= self._padding[:, None])
        for own, padding, kept in zip(dropped, self._padding.tolist(), left, strict=True):
            own[padding:] &= False if kept is None else ~_holds(len(own) - padding, kept)
        self._refuse(dropped, Unsupported, "was dropped: ask for the text, or for 0, which gives all that are left")

    def place(self, hidden: Sequence[Tensor], left: Left) -> Tensor | None:
        """Move the tokens that are left to their old places, for a model that selects positions itself.

        Args:
            hidden: `[1, W, D]` of each prompt.
            left: see `check`.

        Returns:
            `[B, L, D]`, 0 at dropped tokens and padding; None if the caller has not asked by position.
        """
        if not self._by_position:
            return None
        whole = hidden[0].new_zeros(*self._asked.shape, hidden[0].shape[2])
        for row, padding, own, kept in zip(whole, self._padding.tolist(), hidden, left, strict=True):
            row[padding:] = own[0] if kept is None else row[padding:].index_copy(0, kept.to(own.device), own[0])
        return whole

    @staticmethod
    def _refuse(wrong: Tensor, error: type[InputError], reason: str) -> None:
        if bool(wrong.any()):
            b, position = wrong.nonzero()[0].tolist()
            raise error(f"logits_to_keep asks for position {position} of sample {b}, which {reason}")


def _holds(length: int, kept: Tensor) -> Tensor:
    """Return `[length]` bool, True at the indices in `kept`."""
    return torch.zeros(length, dtype=torch.bool).index_fill(0, kept.cpu(), True)


def _mask(wanted: Any, batch: int, length: int) -> Tensor:
    """Return the `[B, L]` positions that are asked for; refuse what is none."""
    if isinstance(wanted, int):
        if wanted < 0:
            raise InputError(f"logits_to_keep must be 0 or more, or a tensor of positions, got {wanted}")
        return (torch.arange(length) >= length - wanted).expand(batch, length)
    if not isinstance(wanted, Tensor) or wanted.is_floating_point() or wanted.is_complex():
        kind = wanted.dtype if isinstance(wanted, Tensor) else type(wanted).__name__
        raise UnsupportedType(f"logits_to_keep must be a number or a tensor of positions, int64 or bool, got {kind}")
    positions, shape = wanted.cpu(), tuple(wanted.shape)
    if positions.dtype == torch.bool:
        if shape not in ((length,), (batch, length)):
            raise InputError(f"logits_to_keep must be [{length}] or [{batch}, {length}] if it is bool, got {shape}")
        return positions.expand(batch, length)
    if positions.ndim > 2 or (positions.ndim == 2 and len(positions) != batch):
        raise InputError(f"logits_to_keep must be [n] or [{batch}, n], got {shape}")
    lowest = 0 if positions.ndim == 2 else -length  # transformers takes no negative positions in [B, n]
    outside = positions[(positions < lowest) | (positions >= length)]
    if len(outside):
        raise InputError(
            f"logits_to_keep must hold positions from {lowest} to {length - 1}, as the prompts have {length} tokens "
            f"with padding, got {int(outside[0])}"
        )
    positions = positions.long().remainder(length)
    each = positions if positions.ndim == 2 else positions.flatten().expand(batch, -1)
    return torch.zeros(batch, length, dtype=torch.bool).scatter(1, each, True)
