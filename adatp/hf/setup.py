"""The values that do not change while a method is applied."""

from dataclasses import dataclass
from typing import Any

from adatp.engine.scoring import Scoring
from adatp.methods.method import Method
from adatp.models.family import Family
from adatp.relevance import Questions, Relevance


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
    relevance: Relevance | None
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
