"""FastV: one cut after the first layers, by the attention of the prompt's last token (arXiv 2403.06764)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adatp.checks.values import require
from adatp.layout import PromptLayout
from adatp.methods.method import BetweenLayers


@dataclass(frozen=True, kw_only=True)
class FastV(BetweenLayers):
    """Keeps, from `layer` on, the visual tokens with the most attention from the last prompt token.

    The attention is that of the layer before `layer`, averaged over heads. Kept tokens keep their order and their
    positions. As in the authors' code, their number is `round(keep * N_v)`. The authors' code runs the scoring layer
    with eager attention and keeps the attention matrix; here the kernel for scores computes one row of it.

    Attributes:
        layer: K, the layer with the cut before it, >= 1 (the authors' default is 2).
        keep: share of the visual tokens that is kept, in (0, 1] (the authors drop R = 50 %).

    Raises:
        InputError: a setting is outside its range.
    """

    name: ClassVar[str] = "fastv"
    source: ClassVar[str] = "arXiv 2403.06764"
    knob: ClassVar[str] = "keep"

    layer: int = 2
    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layer >= 1, "layer", self.layer, "at least 1: the layer before it scores")
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")

    def check(self, layers: int) -> None:
        require(self.layer < layers, "layer", self.layer, f"a layer of the model, at most {layers - 1}")

    def cuts(self, layers: int) -> dict[int, float]:
        self.check(layers)
        return {self.layer: self.keep}

    def tokens(self, ratio: float, visual_tokens: int) -> int:
        return round(ratio * visual_tokens)

    def rows(self, layout: PromptLayout) -> Tensor:
        return layout.rows[-1:]
