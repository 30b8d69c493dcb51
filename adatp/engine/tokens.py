"""The tokens of one prompt that enter a layer, and where they came from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the text rows and the prunable tokens are among the W tokens that enter a layer.

    Attributes:
        rows: `[1, T]` int64, on the device: the text rows.
        columns: begin and end of the range that holds all prunable tokens.
        begin: `[1, n]` int64, on the device. Before the first cut: the first token of each frame. After it, when
            tokens are missing from the frames: the first token of each segment.
    """

    rows: Tensor
    columns: tuple[int, int]
    begin: Tensor

    def to(self, device: torch.device) -> "Places":
        """Return the same places with their tensors on `device`."""
        return Places(self.rows.to(device), self.columns, self.begin.to(device))


@dataclass(frozen=True)
class Tokens:
    """The W tokens of the prompt that enter a layer.

    Attributes:
        hidden: `[1, W, D]` hidden states; or `[1, W]` their indices, for a caller that moves hidden states itself.
        tables: rotary tables of the tokens' original positions, cos and sin `[1, W, d]`; empty with indices.
        position: `[1, W]` int64 index of a prunable token within its frame; `FIXED` for a token that always stays.
        origin: `[1, W]` int64 index in the whole prompt.
        places: where the text rows and the prunable tokens are.
    """

    hidden: Tensor
    tables: tuple[Tensor, ...]
    position: Tensor
    origin: Tensor
    places: Places

    @property
    def width(self) -> int:
        return self.hidden.shape[1]

    def follow(self, hidden: Tensor) -> "Tokens":
        """Return the same tokens with the output of a layer as their hidden states, all on the output's device."""
        device = hidden.device
        if device == self.origin.device:
            return replace(self, hidden=hidden)
        return Tokens(
            hidden,
            tuple(table.to(device) for table in self.tables),
            self.position.to(device),
            self.origin.to(device),
            self.places.to(device),
        )
