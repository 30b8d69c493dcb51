"""Whether a file ends where it should."""

import os
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

from adatp.video.source import MICROSECONDS, Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

TS_PACKET = {188: 0, 192: 4, 204: 0}  # bytes of a packet of a transport stream: bytes before its sync byte
TS_SYNC = 0x47


def check_length(
    source: Source, container: "InputContainer", stream: "VideoStream", end: Fraction, period: Fraction
) -> None:
    """Raise VideoError if the file is cut short: if its content ends well before the length that it declares.

    A small difference is allowed, because some files declare a slightly wrong length.

    Args:
        source: the file.
        container, stream: the open video.
        end: end of the content, in seconds.
        period: seconds per frame.
    """
    declared = 0.0
    if "mp4" in container.format.name:
        reach, size = max((e.pos + e.size for e in stream.index_entries), default=0), container.size
        if reach > size:
            raise source.error(f"is cut short: it has {size} bytes and frames up to byte {reach}")
    elif "matroska" in container.format.name:
        declared = (container.duration or 0) / MICROSECONDS
    elif container.format.name == "avi":
        declared = float(stream.frames * period)
    if end + 1 < 0.95 * declared:
        raise source.error(f"is cut short: it holds {float(end):.1f} s of the {declared:.1f} s it declares")


def ends_within_a_packet(source: Source, format_name: str) -> bool:
    """Return whether a file without a declared length ends in the middle of a packet, as a file that was cut does."""
    if format_name not in ("mpegts", "gif"):
        return False
    with source.file() as file:
        return _ts_is_cut(file) if format_name == "mpegts" else _gif_is_cut(source, file)


def _ts_is_cut(file: BinaryIO) -> bool:
    size, head = os.fstat(file.fileno()).st_size, file.read(4 * max(TS_PACKET))
    for packet, offset in TS_PACKET.items():
        if all(byte == TS_SYNC for byte in head[offset::packet][:4]):
            return size % packet != 0
    return False


def _gif_is_cut(source: Source, file: BinaryIO) -> bool:
    """Return whether a GIF ends within a block. A missing trailer is no sign: many writers leave it out."""
    with os.fdopen(os.dup(file.fileno()), "rb") as blocks:  # buffered
        screen = blocks.read(13)
        blocks.seek(_colors(screen[10]), os.SEEK_CUR)
        while (kind := blocks.read(1)) not in (b"", b";"):
            source.check_time()
            head = blocks.read(9 if kind == b"," else 1)
            if kind == b",":
                blocks.seek(_colors(head[-1]) + 1, os.SEEK_CUR)  # the colors, and the size of a code
            elif kind != b"!":
                return False  # what follows is no GIF
            while True:
                size = blocks.read(1)
                if not size:
                    return True
                if size == b"\0":
                    break
                blocks.seek(size[0], os.SEEK_CUR)
    return False


def _colors(flags: int) -> int:
    """Return the bytes of the table of colors that these flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
