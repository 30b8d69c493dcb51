"""The methods that prune a video's tokens, AdaTP and those it is compared with, behind one interface."""

from adatp.errors import InputError
from adatp.methods.adatp import AdaTP
from adatp.methods.baselines import Pool, Random, Uniform, Unpruned
from adatp.methods.dycoke import DyCoke
from adatp.methods.fastv import FastV
from adatp.methods.method import Method
from adatp.methods.pyramiddrop import PyramidDrop
from adatp.methods.visionzip import VisionZip

__all__ = [
    "METHODS",
    "AdaTP",
    "DyCoke",
    "FastV",
    "Method",
    "Pool",
    "PyramidDrop",
    "Random",
    "Uniform",
    "Unpruned",
    "VisionZip",
    "method_of",
]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (AdaTP, FastV, PyramidDrop, VisionZip, DyCoke, Random, Uniform, Pool, Unpruned)
}


def method_of(method: str | Method) -> Method:
    """Return the given method, or the method of that name with its default settings.

    Args:
        method: a method, or the name of one in upper or lower case.

    Raises:
        InputError: there is no method of that name.
        TypeError: `method` is neither a name nor a method.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a method such as AdaTP(p=1.5), got {method!r}")
    if method.lower() not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS[method.lower()]()
