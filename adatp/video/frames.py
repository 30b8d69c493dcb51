"""The frames of an open video in display order, as the decoder gives them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING

from adatp.video.source import Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


@dataclass
class Decoding:
    """A run of the decoder over an open video.

    Attributes:
        source: the file.
        container, stream: the open video.
        lost: packets so far that gave an error and no frame.
    """

    source: Source
    container: "InputContainer"
    stream: "VideoStream"
    lost: int = 0

    def frames(self, first: int | None = None) -> Iterator[tuple["VideoFrame", bool]]:
        """Yield each frame from the current position of the file, or from `first` on, and whether it is damaged.

        Parts of a damaged frame are missing, and the decoder has made them up.
        """
        import av

        corrupt: set[int | None] = set()
        # A decoder that starts between two keyframes fails, or uses frames that it has not seen.
        packets = self.source.packets(self.container, self.stream)
        for packet in dropwhile(lambda packet: not packet.is_keyframe, packets):
            if packet.is_corrupt:
                corrupt.add(packet.pts)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.lost += 1
                continue
            for frame in frames:
                self.source.check_pixels(frame.width, frame.height)
                if first is None or frame.pts is None or frame.pts >= first:
                    yield frame, frame.is_corrupt or frame.pts in corrupt
