"""PyramidDrop: a share goes after each of a few stages, by the prompt's last token (arXiv 2410.17247)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adatp.layout import PromptLayout
from adatp.methods.method import BetweenLayers, require


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(BetweenLayers):
    """The decoder in stages of equal depth; after each but the last, `int(keep ** stage * N_v)` visual tokens stay.

    A cut ranks by the attention of the prompt's last token. As the authors' code has it, it is that of the layer
    behind the cut, its norm and projections run on all that enters it, and the tokens left are renumbered: they take
    consecutive positions, and so does what follows them (their paper says neither). The keys that a cut computes for
    what it drops are not in the FLOPs, as the authors count.

    Attributes:
        stages: into which the layers are divided, >= 2 (the authors' default 4: 8, 16 and 24 of 32 layers).
        keep: lambda, the share that survives each cut, in (0, 1] (the authors' default 0.5).

    Raises:
        ValueError: a field outside its range.
    """

    name: ClassVar[str] = "pyramiddrop"
    source: ClassVar[str] = "arXiv 2410.17247"
    knob: ClassVar[str] = "keep"
    scores_itself: ClassVar[bool] = True
    renumbers: ClassVar[bool] = True

    stages: int = 4
    keep: float = 0.5

    def __post_init__(self) -> None:
        require(self.stages >= 2, "stages", self.stages, "at least 2: the first sees everything")
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
