"""The limits on what a video file may cost."""

from dataclasses import dataclass, fields
from math import inf

from adatp.checks.values import number, require

EIGHT_K = 36_000_000  # a little more than 8192 x 4320


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on a video file. A file beyond one of them is refused with a VideoError that names the limit.

    The defaults take what a camera or a film brings: 8K, four hours.

    Attributes:
        pixels: largest width x height of a stored frame. It is checked before sampling decodes; when opening a file, or
            where the size grows later, FFmpeg may decode a frame of about twice as many before it is refused.
        duration: largest length, in seconds.
        packets: largest number of packets that are read to find the frames, those of sound included.
        seconds: largest time that sampling may take, in seconds.

    Raises:
        InputError: a limit is not a finite number above 0.
    """

    pixels: int = EIGHT_K
    duration: float = 4 * 3600
    packets: int = 2_000_000
    seconds: float = 120

    def __post_init__(self) -> None:
        """Check the values."""
        for field in fields(self):
            value = getattr(self, field.name)
            require(0 < number(field.name, value) < inf, field.name, value, "above 0 and finite")
