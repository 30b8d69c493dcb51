"""With this folder on PYTHONPATH, Python finds what a borrowed GPU machine has: a plain checkout, and fewer packages.

Python imports this file when it starts.
"""

import sys
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder

MISSING = {"adatp", "adatp_kernels", "av", "kernels", "selenium", "skvideo"}  # none is installed
DISTRIBUTIONS = {"adatp", "av", "kernels", "scikit-video", "selenium"}

find_spec, find_distributions = PathFinder.find_spec, MetadataPathFinder.find_distributions


@classmethod
def spec_of_the_rest(cls, name, path=None, target=None):
    if name in MISSING:  # but a folder of that name may be where Python was started
        path = [entry for entry in sys.path if ".venv" not in entry and "site-packages" not in entry]
    return find_spec(name, path, target)


@classmethod
def distributions_of_the_rest(cls, *args, **kwargs):
    return (found for found in find_distributions(*args, **kwargs) if found.name not in DISTRIBUTIONS)


PathFinder.find_spec = spec_of_the_rest
MetadataPathFinder.find_distributions = distributions_of_the_rest
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
