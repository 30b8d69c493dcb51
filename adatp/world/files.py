"""Writing of clips as video files."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adatp.errors import InputError

FPS = 4
SCALE = 4  # enlargement in the file, so that people can see the things and colours have sharp edges


def write_mp4(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames as H.264 in MP4. Each frame becomes one frame of the file, enlarged 4 times.

    Args:
        path: file to write; an existing file is overwritten.
        frames: `[n, H, W, 3]` uint8.

    Raises:
        InputError: the frames have another shape or dtype.
        OSError: the file cannot be written.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise InputError(f"frames must be [n, H, W, 3] uint8, got {list(frames.shape)} {frames.dtype}")
    import av  # imported here, because only writing needs it

    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.height, stream.width = (SCALE * side for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for frame in frames:
            large = np.ascontiguousarray(frame.repeat(SCALE, 0).repeat(SCALE, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        file.mux(stream.encode())
