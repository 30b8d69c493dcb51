"""AdaTP: attention-debiased token pruning for Video LLMs (arXiv 2505.20100), as a drop-in for Hugging Face models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adatp.errors import Unsupported
    from adatp.methods import AdaTP, DyCoke, FastV, Pool, PyramidDrop, Random, Uniform, Unpruned, VisionZip
    from adatp.models import families, load_processor
    from adatp.pruning import Pruned, apply
    from adatp.relevance import NoRelevanceWarning, Relevance, SecondTower
    from adatp.report import PruningReport
    from adatp.video import sample_frames

__version__ = "0.1.0"

_HOME = {
    "AdaTP": "adatp.methods",
    "DyCoke": "adatp.methods",
    "FastV": "adatp.methods",
    "NoRelevanceWarning": "adatp.relevance",
    "Pool": "adatp.methods",
    "Pruned": "adatp.pruning",
    "PruningReport": "adatp.report",
    "PyramidDrop": "adatp.methods",
    "Random": "adatp.methods",
    "Relevance": "adatp.relevance",
    "SecondTower": "adatp.relevance",
    "Uniform": "adatp.methods",
    "Unpruned": "adatp.methods",
    "Unsupported": "adatp.errors",
    "VisionZip": "adatp.methods",
    "apply": "adatp.pruning",
    "families": "adatp.models",
    "load_processor": "adatp.models",
    "sample_frames": "adatp.video",
}
__all__ = [
    "AdaTP",
    "DyCoke",
    "FastV",
    "NoRelevanceWarning",
    "Pool",
    "Pruned",
    "PruningReport",
    "PyramidDrop",
    "Random",
    "Relevance",
    "SecondTower",
    "Uniform",
    "Unpruned",
    "Unsupported",
    "VisionZip",
    "apply",
    "families",
    "load_processor",
    "sample_frames",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing transformers takes seconds, and `adatp --help` needs none."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
