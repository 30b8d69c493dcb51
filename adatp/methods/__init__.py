"""The methods that prune a video's tokens, AdaTP and those it is compared with, behind one interface."""

from adatp.checks.values import require, shown
from adatp.errors import InputTypeError
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
        InputTypeError: `method` is neither a name nor a method.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise InputTypeError(f"method must be a name or a method such as AdaTP(p=1.5), got {shown(method)}")
    require(method.lower() in METHODS, "method", method, f"one of {', '.join(METHODS)}")
    return METHODS[method.lower()]()
