"""A decoded frame as a player shows it, at the size that a model looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

WIDEST = 4  # a picture longer than this keeps 4 x shortest_edge^2 pixels; a pixel longer than this is taken as square
CROOKED_BY = 0.01  # tangent of the largest angle that is taken for none
CROOKED = "the file asks for a turn that is not a multiple of a quarter; the frames are left as they are stored"
STRETCHED = "the file declares pixels more than 4 times as long as wide; they are taken as square"


@dataclass(frozen=True)
class View:
    """How the frames of a video are shown.

    Attributes:
        aspect: width of a pixel over its height, as the file declares.
        shortest_edge: pixels of the shorter side, or None for all pixels. No picture is enlarged to it.
        convert, copy: PyAV's `VideoReformatter().reformat`, each its own, since each remembers its last conversion.
    """

    aspect: Fraction
    shortest_edge: int | None
    convert: Callable[..., "VideoFrame"]
    copy: Callable[..., "VideoFrame"]

    def of(self, frame: "VideoFrame") -> tuple[np.ndarray, str | None]:
        """Return `[H, W, 3]` uint8 RGB, upright, with square pixels, and a note if the file asks for what is not done.

        Scaling is bicubic, and averages over what it leaves out.
        """
        width, height, note = frame.width, frame.height, None
        if not 1 / WIDEST <= self.aspect <= WIDEST:
            note = STRETCHED
        elif self.aspect > 1:
            width = round(width * self.aspect)
        else:
            height = round(height / self.aspect)
        width, height = fit(width, height, self.shortest_edge)
        if (width, height) == (frame.width, frame.height):
            rgb = frame.to_ndarray(format="rgb24")
        else:
            rgb = self.convert(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
        # PyAV keeps a frame whose side data was read until Python collects cycles, so a tiny copy is read.
        matrix = _display_matrix(self.copy(frame, 16, 16, "rgb24", interpolation="POINT"))
        if matrix is None:
            return rgb, note
        turned = turn(rgb, matrix)
        return (rgb, CROOKED) if turned is None else (turned, note)


def fit(width: int, height: int, shortest_edge: int | None) -> tuple[int, int]:
    """Return a size of the same shape whose shorter side is at most `shortest_edge` pixels.

    A picture more than 4 times as long as wide becomes smaller than that: it has 4 x shortest_edge^2 pixels.
    """
    if shortest_edge is None:
        return width, height
    most = min(shortest_edge / min(width, height), shortest_edge * sqrt(WIDEST / (width * height)))
    if most >= 1:
        return width, height
    return max(1, round(width * most)), max(1, round(height * most))


def turn(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
    """Turn and mirror a picture by a display matrix. Return None if the matrix does more than that.

    Args:
        picture: `[H, W, C]`.
        matrix: `[2, 2]`; it takes the row vector (x, y) of a stored point, y downwards, to the shown one. Its scale
            does not count: FFmpeg gives a stretched picture as pixels that are not square.
    """
    size = np.abs(matrix)
    straight, swapped = np.diag(size), np.diag(size[::-1])
    if min(straight) > 0 and max(swapped) <= CROOKED_BY * min(straight):
        return picture[:: int(np.sign(matrix[1, 1])), :: int(np.sign(matrix[0, 0]))]
    if min(swapped) > 0 and max(straight) <= CROOKED_BY * min(swapped):
        return picture.transpose(1, 0, 2)[:: int(np.sign(matrix[0, 1])), :: int(np.sign(matrix[1, 0]))]
    return None


def _display_matrix(frame: "VideoFrame") -> np.ndarray | None:
    """Return the `[2, 2]` part of a frame's display matrix that turns and mirrors, or None if it has no matrix."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # the frame carries something that PyAV has no name for; it still knows the angle
        cos, sin = np.cos(np.radians(frame.rotation)), np.sin(np.radians(frame.rotation))
        return np.array([[cos, -sin], [sin, cos]])
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(np.float64)
