"""What stays the same while a method is applied."""

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
        family: the model.
        method: which tokens go, and where.
        flops: share of the unpruned prefill's FLOPs that every prompt's shall cost; None for the method's settings.
        scoring: how scores are computed.
        relevance: the aligned SigLIP, or None.
        questions: the text features of questions, remembered; None without a SigLIP.
        tokenizer: with which questions are read from prompts; None where they are not.
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
        """Decoder layers, N."""
        return len(self.family.decoder.layers)

    @property
    def attention(self) -> str:
        """Name of the attention implementation."""
        name: str = self.family.decoder.config._attn_implementation
        return name
