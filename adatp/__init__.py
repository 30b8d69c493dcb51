"""AdaTP: attention-debiased token pruning for Video LLMs (arXiv 2505.20100), as a drop-in for Hugging Face models."""

from adatp.config import AdaTPConfig
from adatp.patch import Pruned, apply
from adatp.relevance import NoRelevanceWarning, Relevance
from adatp.report import PruningReport

__all__ = ["AdaTPConfig", "NoRelevanceWarning", "Pruned", "PruningReport", "Relevance", "apply"]
