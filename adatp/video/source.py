"""A video file as FFmpeg may read it: its own bytes, by an allow-list of formats, until the time is up."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO

from adatp.errors import InputError
from adatp.video.limits import Limits

if TYPE_CHECKING:  # PyAV is imported when a file is opened: pruning does not need it
    from av.container import InputContainer
    from av.video.stream import VideoStream

Path = str | os.PathLike[str]
MICROSECONDS = 1_000_000  # in a second; FFmpeg gives a file's duration in microseconds

# FFmpeg's names of the formats that are read. None of these demuxers opens another file.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "ogg"),
    *("asf", "mxf", "nut", "ivf", "obu", "h264", "hevc", "vvc", "av1", "m4v", "mjpeg", "dv", "yuv4mpegpipe"),
    *("gif", "apng", "webp", "webp_pipe", "png_pipe", "jpeg_pipe", "bmp_pipe"),
)
PROTOCOLS = ""  # no way to open another file
# What the first bytes of files look like that name other files.
PLAYLIST_HEAD = re.compile(
    rb"\s*(#EXTM3U|ffconcat version|<\?xml.*<MPD|<MPD|\[playlist\]|v=0\r?\n|<ASX)", re.DOTALL | re.I
)
UNLISTED = "cannot be opened: its format is none of those that are read (MP4, MKV, WebM, AVI, TS, GIF, ...), or broken"
ADDRESS = re.compile(r"[a-z][a-z0-9+.,-]+:", re.I)  # one letter would be a drive
PATTERN = re.compile(r"%0?\d*d")
FFMPEG_PIXELS = (1 << 31) - 1  # the largest frame that FFmpeg can count
THREADED_PIXELS = 1 << 24  # each decoding thread holds a frame: 2 threads for 4K, 8 for 1080p


class VideoError(InputError):
    """A file that cannot be used as a video; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Source:
    """A video file and what reading it may cost.

    Attributes:
        path: the file.
        limits: the limits.
        deadline: time at which `limits.seconds` are over, in seconds of `time.monotonic`.
    """

    path: Path
    limits: Limits
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        object.__setattr__(self, "deadline", monotonic() + self.limits.seconds)

    def error(self, reason: str) -> VideoError:
        """Return an error about this file."""
        return VideoError(f"{os.fspath(self.path)}: {reason}")

    def too_large(self, what: str, limit: str) -> VideoError:
        """Return the error of a file that is beyond the limit of that name."""
        most = getattr(self.limits, limit)
        return self.error(f"{what}, more than the limit of {int(most) if most == int(most) else most:,} ({limit})")

    def check_time(self) -> None:
        """Raise VideoError if the time is up."""
        if monotonic() > self.deadline:
            raise self.too_large("takes too many seconds", "seconds")

    def file(self) -> BinaryIO:
        """Open the file for reading. Raise VideoError if it is not a regular file with bytes in it.

        A pipe or a device may block for ever and cannot be read twice.
        """
        path = os.fspath(self.path)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise self.error(f"is {_kind(status.st_mode)}, not a regular file; copy its content to a file first")
            if status.st_size == 0:
                raise self.error("is empty")
            return open(path, "rb", buffering=0)
        except (OSError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise self.error(_unopened(path, error)) from error

    @contextmanager
    def opened(self, *, one_by_one: bool = False) -> Iterator[tuple["InputContainer", "VideoStream"]]:
        """Open the container and its video stream. An error of FFmpeg becomes a VideoError.

        Args:
            one_by_one: decode one frame after the other, on one thread.
        """
        import av

        with self.file() as file:
            # FFmpeg counts the padding of a frame. Frames between the limit and this are refused once decoded.
            most_pixels = str(min(2 * int(self.limits.pixels) + (1 << 16), FFMPEG_PIXELS))
            options = {
                "format_whitelist": ",".join(FORMATS),
                "protocol_whitelist": PROTOCOLS,
                "max_pixels": most_pixels,
            }
            if PLAYLIST_HEAD.match(file.read(4096)):
                raise self.error("is a playlist that names other files; only a file's own content is read")
            file.seek(0)
            try:
                container = av.open(_Bytes(self, file), "r", options=options, metadata_errors="replace")
            except av.ArgumentError as error:  # of the allow-list
                raise self.error(UNLISTED) from error
            except av.FFmpegError as error:
                raise self.error(f"cannot be opened as a video: {error.strerror}") from error
            try:
                with container:
                    stream = self._stream(container)
                    stream.codec_context.options = {"max_pixels": most_pixels}
                    stream.codec_context.thread_count = 1 if one_by_one else _threads(stream.width * stream.height)
                    stream.thread_type = "AUTO"
                    yield container, stream
            except av.FFmpegError as error:
                raise self.error(f"cannot be decoded: {error.strerror}") from error

    def packets(self, container: "InputContainer", *streams: "VideoStream") -> Iterator[Any]:
        """Yield the packets of an open container, of all streams or of these, while there is time."""
        try:
            for packet in container.demux(*streams):
                self.check_time()
                yield packet
        except IndexError:  # at the end PyAV counts streams that have appeared meanwhile, and does not find them
            return

    def _stream(self, container: "InputContainer") -> "VideoStream":
        """Return the stream that a player shows, within the limits."""
        from av.stream import Disposition
        from av.video.stream import VideoStream

        stream = container.streams.best("video")
        # The cover of a song is a video stream.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise self.error("has no video stream")
        if stream.codec_context is None:
            raise self.error("has no frames that can be decoded: its codec is not known")
        self.check_pixels(stream.width, stream.height)
        self.check_duration((container.duration or 0) / MICROSECONDS)
        return stream

    def check_pixels(self, width: int, height: int) -> None:
        """Raise VideoError if frames of that size are too large."""
        if width * height > self.limits.pixels:
            raise self.too_large(f"has frames of {width} x {height} pixels", "pixels")

    def check_duration(self, seconds: float) -> None:
        """Raise VideoError if a video of that length is too long."""
        if seconds > self.limits.duration:
            raise self.too_large(f"lasts {seconds:,.0f} seconds", "duration")


class _Bytes:
    """The bytes of a file, as PyAV reads them. Reading ends when the time is up, also within a call of FFmpeg."""

    def __init__(self, source: Source, file: BinaryIO) -> None:
        self._source, self._file = source, file
        self.name = os.fspath(source.path)  # FFmpeg also looks at the ending
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):  # a damaged file leads to places that no file has
            return -1

    def read(self, size: int) -> bytes:
        self._source.check_time()
        return self._file.read(size)


def _threads(pixels: int) -> int:
    return max(1, min(os.cpu_count() or 1, 16, THREADED_PIXELS // max(pixels, 1)))


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a directory", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def _unopened(path: str, error: OSError | ValueError) -> str:
    """Return why a path cannot be opened."""
    if ADDRESS.match(path):
        return "is an address or names a protocol, and only files are read: download the file and give its path"
    if PATTERN.search(os.path.basename(path)):
        return "is a pattern for a sequence of images; only single files are read, so make a video of them first"
    return f"cannot be opened: {getattr(error, 'strerror', None) or error}"
