"""PyramidDrop: drop a share of the tokens after each stage, scored by the prompt's last token (arXiv 2410.17247)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adatp.checks.values import require
from adatp.layout import PromptLayout
from adatp.methods.method import BetweenLayers


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(BetweenLayers):
    """Divides the decoder into stages of equal depth; after each but the last, `int(keep ** stage * N_v)` tokens stay.

    The attention of the prompt's last token scores a cut. Two details follow the authors' code; their paper does not
    mention them. The attention is that of the layer after the cut: its norm and its projections run on all tokens
    before the cut. And kept tokens are renumbered: they, and the tokens that follow them, get consecutive positions.
    The FLOPs do not include the keys that a cut computes for the tokens that it drops, as the authors count.

    Attributes:
        stages: number of stages, >= 2 (the authors' default is 4: cuts after 8, 16 and 24 of 32 layers).
        keep: lambda, the share that each cut keeps, in (0, 1] (the authors' default is 0.5).

    Raises:
        InputError: a setting is outside its range.
    """

    name: ClassVar[str] = "pyramiddrop"
    source: ClassVar[str] = "arXiv 2410.17247"
    knob: ClassVar[str] = "keep"
    scores_itself: ClassVar[bool] = True
    renumbers: ClassVar[bool] = True

    stages: int = 4
    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stages >= 2, "stages", self.stages, "at least 2: the first stage sees all tokens")
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")

    def check(self, layers: int) -> None:
        require(self.stages <= layers, "stages", self.stages, f"at most the model's {layers} layers")

    def cuts(self, layers: int) -> dict[int, float]:
        self.check(layers)
        return {stage * layers // self.stages: self.keep**stage for stage in range(1, self.stages)}

    def tokens(self, ratio: float, visual_tokens: int) -> int:
        return int(ratio * visual_tokens)

    def rows(self, layout: PromptLayout) -> Tensor:
        return layout.rows[-1:]
