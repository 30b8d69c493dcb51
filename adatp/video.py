"""Decode a video file to n frames sampled uniformly over its length.

The file is read twice. The first reading only splits it into packets. They give the time of every frame and the
keyframes. The second reading decodes the chosen frames, each from the keyframe before it. Only the chosen frames are
kept in memory. Rotation by right angles is applied; mirrored pictures and pixels that are not square are taken as they
are stored.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile, islice, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from adatp.errors import InputError

if TYPE_CHECKING:  # PyAV is imported when a file is opened: pruning does not need it
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Path = str | os.PathLike[str]
MICROSECONDS = 1_000_000  # in a second; FFmpeg gives a file's duration in microseconds


class VideoError(InputError):
    """A file that cannot be used as a video; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Clip:
    """n frames sampled from a video."""

    frames: np.ndarray  # [n, H, W, 3] uint8 RGB, upright
    times: np.ndarray  # [n] float64, seconds from the first frame of the file to each of `frames`
    duration: float  # seconds from the first frame to the end of the last
    total: int  # frames in the file
    note: str | None  # a note for the user if the sample is unusual

    @property
    def metadata(self) -> dict[str, Any]:
        """Times of the frames in the form of a Hugging Face processor's `video_metadata`."""
        rate = self.total / self.duration
        indices = (self.times * rate).tolist()
        return {"total_num_frames": self.total, "fps": rate, "duration": self.duration, "frames_indices": indices}


@dataclass(frozen=True)
class _Index:
    """The frames of a file in display order."""

    pts: Sequence[int | None]  # [total] the decoder's timestamp of each frame
    keys: Sequence[tuple[int, int]]  # where decoding can start, the first at 0: position in `pts`, time to seek to
    ticks: np.ndarray  # [total] int64, display time of each frame, increasing, in units of `base`
    last: int  # ticks that the last frame stays on screen
    base: Fraction  # seconds


def sample_frames(path: Path, count: int = 32) -> Clip:
    """Decode `count` frames of a video, uniform in time, including the first and the last frame.

    With a constant frame rate these are the frames linspace(0, total - 1, count), rounded down. With a varying rate
    they are the frames on screen at uniform times; a frame that stays long can come more than once. A file with fewer
    than `count` frames gives each of its frames once, and a note.

    Raises VideoError for a file that is missing, damaged, cut short or not a video, and InputError for `count` below 1.
    """
    if count < 1:
        raise InputError(f"count is {count}, it must be 1 or more")
    index = _packet_index(path)
    if index is not None:
        # If this fails, the other index is tried: a packet may have no frame of its own, and seeking may be inexact.
        with suppress(VideoError):
            return _sample(path, index, count)
    return _sample(path, _frame_index(path), count)


def _sample(path: Path, index: _Index, count: int) -> Clip:
    """Decode the clip of at most `count` frames with the help of `index`."""
    chosen = _choose(index.ticks, count)
    pictures = _decode(path, index, sorted(set(chosen)))
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise VideoError(f"{path}: the frame size changes within the video")
    total, elapsed = len(index.ticks), index.ticks - index.ticks[0]
    few = f"the video has {total} frames, fewer than the {count} asked for; all are used"
    return Clip(
        frames=np.stack([pictures[i] for i in chosen]),
        times=elapsed[chosen] * float(index.base),
        duration=float((int(elapsed[-1]) + index.last) * index.base),
        total=total,
        note=few if total < count else None,
    )


def _choose(ticks: np.ndarray, count: int) -> list[int]:
    """Return the positions in `ticks` [total] of `count` frames uniform in time, or of all frames if they are fewer."""
    if count == 1 or len(ticks) < count:
        return list(range(min(len(ticks), count)))
    steps, asked, elapsed = len(ticks) - 1, np.arange(count), ticks - ticks[0]
    span = int(elapsed[-1])
    # A file rounds times to its ticks, so a constant rate looks slightly uneven. Such times are treated as constant.
    # Otherwise a frame whose time was rounded up would miss its own target, and the frame before it would be chosen.
    jitter = int(np.abs(elapsed * steps - span * np.arange(steps + 1)).max())
    if 4 * jitter < min(4 * steps, span):
        return [int(i) for i in asked * steps // (count - 1)]
    return [int(i) for i in np.searchsorted(elapsed * (count - 1), asked * span, side="right") - 1]


@contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Open the file and its first video stream; an FFmpeg error becomes a VideoError."""
    import av
    from av.stream import Disposition

    failure = "cannot be opened as a video"
    try:
        # The prefix keeps a colon in the path from being read as a protocol.
        with av.open(f"file:{os.fspath(path)}", "r", metadata_errors="replace") as container:
            failure = "cannot be decoded"
            # FFmpeg turns a text file into pictures, and the cover of a song into a video stream.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams or container.format.name == "tty":
                raise VideoError(f"{path}: has no video stream")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except av.FFmpegError as error:
        raise VideoError(f"{path}: {failure}: {error.strerror}") from error


def _packet_index(path: Path) -> _Index | None:
    """Index a file by its packets, without decoding; return None if the packets have no usable times."""
    with _opened(path) as (container, stream):
        packets, first, end = 0, None, Fraction(0)
        shown: dict[int, tuple[int, int | None]] = {}
        for packet in container.demux():
            duration = packet.duration or 0
            if packet.pts is not None:
                end = max(end, (packet.pts + duration) * packet.time_base)
            if packet.stream_index != stream.index or not packet.size:
                continue
            if first is None and packet.is_keyframe:
                first = packet.pts
            if not packet.is_discard:
                packets += 1
                if packet.pts is not None:
                    shown[packet.pts] = duration, _seek_time(packet, container.format.name)
        if packets == 0:
            raise VideoError(f"{path}: has no frames")
        _check_complete(path, container, stream, end)
        # Frames shown before the first keyframe need an earlier keyframe that the file does not have.
        pts = sorted(time for time in shown if first is not None and time >= first)
        if len(shown) < packets or not pts:
            return None
        seeks = [shown[time][1] for time in pts]
        keys = [(0, pts[0]), *((i, seek) for i, seek in enumerate(seeks) if i > 0 and seek is not None)]
        base = stream.time_base or Fraction(1)
        last = shown[pts[-1]][0] or round(_period(stream) / base)
        return _Index(pts, keys, np.array(pts), last, base)


def _seek_time(packet: "Packet[Stream]", container: str) -> int | None:
    """Return the ticks to seek to, in this kind of container, to read this packet next; None if that is impossible."""
    # AVI stores no times. FFmpeg estimates them, exactly enough to order the frames but not to seek.
    if not packet.is_keyframe or container == "avi":
        return None
    return packet.dts if container in ("mpeg", "mpegts") else packet.pts


def _frame_index(path: Path) -> _Index:
    """Index a file by decoding all of it, with the times of the frames if they are usable, else at a constant rate."""
    with _opened(path) as (container, stream):
        stamps = [(frame.pts, frame.duration) for frame in _frames(container, stream)]
        if not stamps:
            raise VideoError(f"{path}: has no frames that can be decoded")
        pts = [time for time, _ in stamps]
        known = [time for time in pts if time is not None]
        if len(known) == len(pts) and all(a < b for a, b in pairwise(known)):
            base = stream.time_base or Fraction(1)
            return _Index(pts, [(0, 0)], np.array(known), stamps[-1][1] or round(_period(stream) / base), base)
        return _Index(pts, [(0, 0)], np.arange(len(pts)), 1, _period(stream))


def _period(stream: "VideoStream") -> Fraction:
    """Return the seconds per frame that the file declares, or 1/25 if it declares none."""
    return 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))


def _check_complete(path: Path, container: "InputContainer", stream: "VideoStream", end: Fraction) -> None:
    """Raise VideoError if the file is cut short: if its content ends well before the length that it declares.

    A small difference is allowed, because some files declare a slightly wrong length. `end` is in seconds.
    """
    declared = 0.0
    if "mp4" in container.format.name:
        reach, size = max((e.pos + e.size for e in stream.index_entries), default=0), container.size
        if reach > size:
            raise VideoError(f"{path}: is cut short: it has {size} bytes and frames up to byte {reach}")
    elif "matroska" in container.format.name:
        declared = (container.duration or 0) / MICROSECONDS
    elif container.format.name == "avi":
        declared = float(stream.frames * _period(stream))
    if end + 1 < 0.95 * declared:
        raise VideoError(f"{path}: is cut short: it holds {float(end):.1f} s of the {declared:.1f} s it declares")


def _frames(container: "InputContainer", stream: "VideoStream", first: int | None = None) -> Iterator["VideoFrame"]:
    """Yield the frames in display order, from the current position of the file or from the time `first` on."""
    # A decoder that starts between two keyframes fails, or uses frames that it has not seen.
    for packet in dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream)):
        for frame in packet.decode():
            if first is None or frame.pts is None or frame.pts >= first:
                yield frame


def _decode(path: Path, index: _Index, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """Decode the frames at the increasing positions `wanted` of the index: [H, W, 3] uint8 RGB, upright.

    Raises VideoError if the decoder gives other frames than the index has, so no wrong picture is returned.
    """
    pictures = {}
    with _opened(path) as (container, stream):
        at, frames = -1, _frames(container, stream, index.pts[0])
        for target in wanted:
            key, time = index.keys[bisect_right(index.keys, target, key=itemgetter(0)) - 1]
            if key > at + 1:
                container.seek(time, stream=stream)
                at, frames = key - 1, _frames(container, stream, index.pts[key])
            frame = next(islice(frames, target - at - 1, None), None)
            if frame is None or frame.pts != index.pts[target]:
                raise VideoError(f"{path}: cannot be decoded: frame {target} is not where the file says it is")
            at, pictures[target] = target, _upright(frame)
    return pictures


def _upright(frame: "VideoFrame") -> np.ndarray:
    """Return the picture of a frame, [H, W, 3] uint8 RGB, rotated as the file declares if by right angles."""
    picture = frame.to_ndarray(format="rgb24")
    turns = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
    return np.ascontiguousarray(np.rot90(picture, turns))
