"""The counts that an MP4 file declares. FFmpeg makes an index for them, however small the file is."""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from adatp.video.source import Source

# boxes that hold boxes, wherever they stand
_HOLDERS = set(b"moov trak mdia minf stbl edts moof traf udta mvex dinf meta".split())
_DEPTH = 10  # FFmpeg's own limit


class Box(NamedTuple):
    """A box of a file.

    Attributes:
        name: its four letters.
        begin, end: where its content is, in bytes.
    """

    name: bytes
    begin: int
    end: int


class _Counts:
    """What a track declares."""

    def __init__(self) -> None:
        self.samples = self.edits = self.in_fragments = 0
        self.is_sound = self.is_raw = False

    @property
    def entries(self) -> int:
        """Most entries of FFmpeg's index. Each edit may repeat all samples; of raw sound it counts the chunks."""
        return self.in_fragments + (0 if self.is_sound and self.is_raw else self.samples * max(1, self.edits))


def check_counts(source: Source) -> None:
    """Check the numbers of samples that an MP4 or QuickTime file declares. Other files have none of these boxes.

    Raises:
        VideoError: there are more than `limits.packets`, or the numbers are compressed.
    """
    with source.file() as file:
        tracks = [_Counts()]
        for box in _walk(file, 0, os.fstat(file.fileno()).st_size):
            source.check_time()
            own = tracks[-1]
            match box.name:
                case b"trak":
                    tracks.append(_Counts())
                case b"cmov":
                    raise source.error("has a compressed header, which is not read")
                case b"stsz" | b"stz2":
                    own.samples = max(own.samples, _number(file, box.begin + 8))
                case b"trun":
                    own.in_fragments += _number(file, box.begin + 4)
                case b"elst":
                    own.edits = max(own.edits, _number(file, box.begin + 4))
                case b"hdlr":
                    own.is_sound |= _bytes(file, box.begin + 8) == b"soun"
                case b"stts":  # one entry, of one tick a sample
                    own.is_raw = _number(file, box.begin + 4) == 1 == _number(file, box.begin + 12)
        entries = sum(track.entries for track in tracks)
        if entries > source.limits.packets:
            raise source.too_large(f"declares {entries:,} packets", "packets")


def _walk(file: BinaryIO, begin: int, end: int, depth: int = 0) -> Iterator[Box]:
    """Yield all boxes between two places of a file, and those in them."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        size, content = int.from_bytes(head[:4]), begin + 8
        if size == 1:
            size, content = int.from_bytes(head[8:16]), begin + 16
        stop = end if size == 0 else min(begin + size, end)
        if stop < content:
            return  # what follows is no box
        box = Box(head[4:8], content, stop)
        yield box
        if box.name in _HOLDERS and depth < _DEPTH:
            # a QuickTime `meta` has no version before its boxes, an MP4 one has
            skip = 4 if box.name == b"meta" and _bytes(file, content + 4) != b"hdlr" else 0
            yield from _walk(file, content + skip, stop, depth + 1)
        begin = stop


def _bytes(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(4)


def _number(file: BinaryIO, at: int) -> int:
    return int.from_bytes(_bytes(file, at))
