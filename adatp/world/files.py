"""Clips as video files."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatp.errors import InputError

FPS = 4
SCALE = 4  # pixels of the file a pixel of the world, so that people see something, and colours keep their edges


def write_mp4(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames as H.264 in MP4, each of them one of the file's, enlarged 4 times.

    Args:
        path: where to; overwritten.
        frames: `[n, H, W, 3]` uint8.

    Raises:
        InputError: frames of another shape or dtype.
        OSError: the file cannot be written.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise InputError(f"frames must be [n, H, W, 3] uint8, got {list(frames.shape)} {frames.dtype}")
    import av  # what makes or shows clips needs it only to write them

    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.height, stream.width = (SCALE * side for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for frame in frames:
            large = np.ascontiguousarray(frame.repeat(SCALE, 0).repeat(SCALE, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        file.mux(stream.encode())
