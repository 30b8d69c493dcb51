"""The values that do not change while a method is applied."""

from dataclasses import dataclass
from typing import Any

from adatp.engine.scoring import Scoring
from adatp.methods.method import BeforeDecoder, BetweenLayers, Method
from adatp.models.family import Family
from adatp.relevance import Aligned, Questions


@dataclass(frozen=True)
class Setup:
    """A method on a model.

    Attributes:
        family: the model, as its family.
        method: the method with its settings.
        flops: target cost of every prompt's prefill, as a share of the unpruned FLOPs; None for the method's settings.
        scoring: how scores are computed.
        relevance: the aligned SigLIP, or None.
        questions: cache of the text features of questions; None without a SigLIP.
        tokenizer: the tokenizer that reads questions from prompts; None if they are not read.
    """

    family: Family
    method: Method
    flops: float | None
    scoring: Scoring
    relevance: Aligned | None
    questions: Questions | None
    tokenizer: Any

    @property
    def layers(self) -> int:
        """Number of decoder layers, N."""
        return len(self.family.decoder.layers)

    @property
    def attention(self) -> str:
        """Name of the attention implementation."""
        name: str = self.family.decoder.config._attn_implementation
        return name

    @property
    def renumbers(self) -> bool:
        """Whether the kept tokens get consecutive positions: the method asks for it, and the model's positions can."""
        return self.method.renumbers and self.family.scalar_positions

    @property
    def wants_tower(self) -> bool:
        """Whether the method reads the attention of the vision tower."""
        return isinstance(self.method, BeforeDecoder) and self.method.wants_tower

    @property
    def asked(self) -> set[int]:
        """Indices of the layers whose queries are needed, in the prefill or in decoding."""
        method = self.method
        if method.decoding is not None:
            return {method.decoding.layer - 1}
        if isinstance(method, BetweenLayers) and not method.scores_itself:
            return {cut - 1 for cut in method.cuts(self.layers)}
        return set()
