"""Decode a video file to n frames sampled uniformly over its length.

The file is read twice. The first reading only splits it into packets. They give the time of every frame and the
keyframes. The second reading decodes the chosen frames, each from the keyframe before it. Only the chosen frames are
kept in memory, at the size that a model looks at.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from typing import Any

import numpy as np

from adatp.checks.values import integer, require
from adatp.errors import InputTypeError
from adatp.video.boxes import check_counts
from adatp.video.frames import Decoding
from adatp.video.index import Index, frame_index, packet_index
from adatp.video.limits import Limits
from adatp.video.picture import View
from adatp.video.source import Path, Source, VideoError

DEFAULT_LIMITS = Limits()
SHORTEST_EDGE = 384  # pixels; what the towers of LLaVA-OneVision and LLaVA-Video look at


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


def sample_frames(
    path: Path, count: int = 32, *, shortest_edge: int | None = SHORTEST_EDGE, limits: Limits = DEFAULT_LIMITS
) -> Clip:
    """Decode `count` frames of a video, uniform in time, including the first and the last frame.

    With a constant frame rate these are the frames linspace(0, total - 1, count), rounded down. With a varying rate
    they are the frames on screen at uniform times; a frame that stays long can come more than once. A file with fewer
    than `count` frames gives each of its frames once, and a note.

    The frames are as a player shows them: turned and mirrored as the file says, and with square pixels. Frames that are
    lost or damaged are left out, and a note says how many.

    Args:
        path: a file. Nothing but its own content is read.
        count: number of frames.
        shortest_edge: pixels of the shorter side of the frames, or None for the stored size. Larger frames are scaled
            while decoding, the aspect kept; smaller ones are not enlarged. The default is what the towers of
            LLaVA-OneVision and LLaVA-Video look at.
        limits: what the file may cost. The frames take count x 12 x shortest_edge^2 bytes at most, whatever the file.

    Raises:
        VideoError: the file is missing, not a video, cut short, damaged by more than a quarter, or beyond a limit.
        InputError: `count` or `shortest_edge` is not a whole number of at least 1, or an argument has another type.
    """
    require(isinstance(path, str | os.PathLike), "path", path, "a path", InputTypeError)
    require(isinstance(os.fspath(path), str), "path", path, "a path of text, not of bytes", InputTypeError)
    count = integer("count", count, least=1)
    if shortest_edge is not None:
        shortest_edge = integer("shortest_edge", shortest_edge, least=1)
    require(isinstance(limits, Limits), "limits", limits, "an adatp.video.Limits", InputTypeError)
    source = Source(path, limits)
    check_counts(source)
    index = packet_index(source)
    if index is not None:
        # If this fails, the other index is tried: a packet may have no frame of its own, seeking may be inexact, and
        # damage shows only now. A second failure is the answer.
        with suppress(VideoError):
            return _sample(source, index, count, shortest_edge)
    return _sample(source, frame_index(source), count, shortest_edge)


def _sample(source: Source, index: Index, count: int, shortest_edge: int | None) -> Clip:
    """Decode the clip of at most `count` frames with the help of `index`."""
    chosen = choose(index.ticks, count)
    notes = [index.note] if index.note else []
    frames = np.empty((0, 0, 0, 3), np.uint8)
    for position, picture, note in pictures(source, index, sorted(set(chosen)), shortest_edge):
        if not len(frames):
            frames = np.empty((len(chosen), *picture.shape), np.uint8)
        if picture.shape != frames.shape[1:]:
            raise source.error("the frame size changes within the video")
        frames[[place for place, wanted in enumerate(chosen) if wanted == position]] = picture
        if note and note not in notes:
            notes.append(note)
    total, elapsed = len(index.ticks), index.ticks - index.ticks[0]
    if total < count:
        notes.append(f"the video has {total} frames, fewer than the {count} asked for; all are used")
    return Clip(
        frames=frames,
        times=elapsed[chosen] * float(index.base),
        duration=float((int(elapsed[-1]) + index.last) * index.base),
        total=total,
        note="; ".join(notes) or None,
    )


def choose(ticks: np.ndarray, count: int) -> list[int]:
    """Return the positions in `ticks` [total] of `count` frames uniform in time, or of all frames if they are fewer."""
    if count == 1 or len(ticks) < count:
        return list(range(min(len(ticks), count)))
    steps, span = len(ticks) - 1, int(ticks[-1]) - int(ticks[0])
    exact = np.int64 if span * max(steps, count) < 1 << 62 else object  # integers of Python have no largest
    asked, elapsed = np.arange(count, dtype=exact), (ticks - ticks[0]).astype(exact)
    # A file rounds times to its ticks, so a constant rate looks slightly uneven. Such times are treated as constant.
    # Otherwise a frame whose time was rounded up would miss its own target, and the frame before it would be chosen.
    jitter = int(np.abs(elapsed * steps - span * np.arange(steps + 1, dtype=exact)).max())
    if 4 * jitter < min(4 * steps, span):
        return [int(i) for i in asked * steps // (count - 1)]
    return [int(i) for i in np.searchsorted(elapsed * (count - 1), asked * span, side="right") - 1]


def pictures(
    source: Source, index: Index, wanted: Sequence[int], shortest_edge: int | None
) -> Iterator[tuple[int, np.ndarray, str | None]]:
    """Decode the frames at the increasing positions `wanted` of the index.

    Yield the position, the picture `[H, W, 3]` and a note for the user or None.

    Raises VideoError if the decoder gives other frames than the index has, so no wrong picture is returned.
    """
    from av.video.reformatter import VideoReformatter

    with source.opened(one_by_one=index.damaged) as (container, stream):
        convert, copy = VideoReformatter().reformat, VideoReformatter().reformat
        view = View(stream.sample_aspect_ratio or Fraction(1), shortest_edge, convert, copy)
        decoding = Decoding(source, container, stream)
        at, frames = -1, decoding.frames(index.pts[0])
        kept = set(index.pts) if index.damaged else None
        for target in wanted:
            key, time = index.keys[bisect_right(index.keys, target, key=itemgetter(0)) - 1]
            if key > at + 1:
                container.seek(time, stream=stream)
                at, frames = key - 1, decoding.frames(index.pts[key])
            for frame, damaged in frames:
                if kept is None and (damaged or decoding.lost):
                    raise source.error("cannot be decoded: frames are damaged")
                if kept is not None and (damaged or frame.pts not in kept):
                    continue
                at += 1
                if at == target:
                    break
            if at != target or frame.pts != index.pts[target]:
                raise source.error(f"cannot be decoded: frame {target} is not where the file says it is")
            yield target, *view.of(frame)
