"""AdaTP: attention-debiased token pruning for Video LLMs (arXiv 2505.20100), as a drop-in for Hugging Face models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adatp.config import AdaTPConfig
    from adatp.patch import Pruned, apply
    from adatp.relevance import NoRelevanceWarning, Relevance
    from adatp.report import PruningReport

__all__ = ["AdaTPConfig", "NoRelevanceWarning", "Pruned", "PruningReport", "Relevance", "apply"]

_HOME = {
    "AdaTPConfig": "adatp.config",
    "NoRelevanceWarning": "adatp.relevance",
    "Pruned": "adatp.patch",
    "PruningReport": "adatp.report",
    "Relevance": "adatp.relevance",
    "apply": "adatp.patch",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: transformers takes seconds, which `adatp --help` need not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
