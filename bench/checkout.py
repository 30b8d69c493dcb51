"""Support for a plain checkout without installation: it makes the folder `kernels/` importable as `adatp_kernels`."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOT = Path(__file__).parent.parent


def find_kernels() -> None:
    """Make `import adatp_kernels` find `kernels/`, unless the package is installed."""
    if importlib.util.find_spec("adatp_kernels") is not None:
        return
    spec = ModuleSpec("adatp_kernels", loader=None, is_package=True)
    spec.submodule_search_locations = [str(ROOT / "kernels")]
    sys.modules["adatp_kernels"] = importlib.util.module_from_spec(spec)
