"""The frames of a file: when each is shown, and from which keyframe it can be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from adatp.video.ending import check_length, ends_within_a_packet
from adatp.video.frames import Decoding
from adatp.video.source import Source

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

WORST = Fraction(1, 4)  # of the frames may be lost or damaged
CUT = "the file ends in the middle of a packet, so the end of the video may be missing"


@dataclass(frozen=True, kw_only=True)
class Index:
    """The frames of a file that can be sampled, in display order.

    Attributes:
        pts: `[total]` the decoder's timestamp of each frame.
        keys: where decoding can start, the first at 0: position in `pts`, time to seek to.
        ticks: `[total]` int64, display time of each frame, increasing, in units of `base`.
        last: ticks that the last frame stays on screen.
        base: seconds.
        note: a note for the user about the file, or None.
        damaged: whether frames are lost or damaged. The frames of such a file are decoded one after the other.
    """

    pts: Sequence[int | None]
    keys: Sequence[tuple[int, int]]
    ticks: np.ndarray
    last: int
    base: Fraction
    note: str | None
    damaged: bool


@dataclass(frozen=True)
class _Frame:
    """A decoded frame without its picture."""

    pts: int | None
    duration: int
    damaged: bool


def packet_index(source: Source) -> Index | None:
    """Index a file by its packets, without decoding. Return None if they have no usable times, or show damage."""
    with source.opened() as (container, stream):
        packets, read, corrupt, first, end, newest = 0, 0, 0, None, Fraction(0), None
        shown: dict[int, tuple[int, int | None]] = {}
        for packet in source.packets(container):
            read += 1
            if read > source.limits.packets:
                raise source.too_large(f"has {read:,} packets or more", "packets")
            duration = packet.duration or 0
            if packet.pts is not None:
                end = max(end, (packet.pts + duration) * packet.time_base)
            if packet.stream_index != stream.index or not packet.size:
                continue
            corrupt += packet.is_corrupt
            if first is None and packet.is_keyframe:
                first = packet.pts
            if not packet.is_discard:
                packets += 1
                newest = packet.pts
                if packet.pts is not None:
                    shown[packet.pts] = duration, _seek_time(packet, container.format.name)
        if packets == 0:
            raise source.error("has no frames")
        check_length(source, container, stream, end, _period(stream))
        # Frames shown before the first keyframe need an earlier keyframe that the file does not have.
        pts = sorted(time for time in shown if first is not None and time >= first)
        if corrupt or len(shown) < packets or not pts:
            return None
        note = None
        if ends_within_a_packet(source, container.format.name):
            note = CUT
            if len(pts) > 1 and newest in pts:
                pts.remove(newest)
        seeks = [shown[time][1] for time in pts]
        keys = [(0, pts[0]), *((i, seek) for i, seek in enumerate(seeks) if i > 0 and seek is not None)]
        base = stream.time_base or Fraction(1)
        last = shown[pts[-1]][0] or round(_period(stream) / base)
        source.check_duration(float((pts[-1] - pts[0] + last) * base))
        return Index(pts=pts, keys=keys, ticks=np.array(pts), last=last, base=base, note=note, damaged=False)


def _seek_time(packet: "Packet[Stream]", container: str) -> int | None:
    """Return the ticks to seek to, in this kind of container, to read this packet next; None if that is impossible."""
    # AVI stores no times. FFmpeg estimates them, exactly enough to order the frames but not to seek.
    if not packet.is_keyframe or container == "avi":
        return None
    return packet.dts if container in ("mpeg", "mpegts") else packet.pts


def frame_index(source: Source) -> Index:
    """Index a file by decoding all of it, with the times of the frames if they are usable, else at a constant rate.

    Damaged frames are left out.

    Raises:
        VideoError: no frame can be decoded, or more than a quarter of the frames are lost or damaged.
    """
    index = _decoded(source)
    # Threads may miss damage. One thread finds all of it, and the same each time.
    return _decoded(source, one_by_one=True) if index.damaged else index


def _decoded(source: Source, *, one_by_one: bool = False) -> Index:
    with source.opened(one_by_one=one_by_one) as (container, stream):
        decoding = Decoding(source, container, stream)
        decoded = [_Frame(frame.pts, frame.duration, damaged) for frame, damaged in decoding.frames()]
        if not decoded:
            if not stream.width:  # FFmpeg gives no size if it is beyond its own limit
                raise source.too_large("has no frames that can be decoded, or frames with more pixels", "pixels")
            raise source.error("has no frames that can be decoded")
        damaged = decoding.lost > 0 or any(frame.damaged for frame in decoded)
        frames, notes = decoded, []
        if damaged:  # a frame that has lost its time has no place among those that have theirs
            frames = [frame for frame in decoded if frame.pts is not None] or decoded
        known = [frame.pts for frame in frames if frame.pts is not None]
        if len(known) == len(frames) and all(a < b for a, b in pairwise(known)):
            base = stream.time_base or Fraction(1)
            ticks, last = np.array(known), frames[-1].duration or round(_period(stream) / base)
        else:
            base, ticks, last = _period(stream), np.arange(len(frames)), 1
        source.check_duration(float((int(ticks[-1]) - int(ticks[0]) + last) * base))
        whole = np.array([not frame.damaged for frame in frames])
        if damaged:
            total = max(len(decoded) + decoding.lost, len(frames) + _holes(ticks))
            bad = total - int(whole.sum())
            if bad > WORST * total:
                raise source.error(f"is damaged: {bad} of {total} frames are lost or damaged, more than a quarter")
            notes.append(f"the file is damaged: {bad} of {total} frames are lost or damaged, and left out")
        if ends_within_a_packet(source, container.format.name):
            notes.append(CUT)
            whole[-1] &= whole.sum() == 1
        pts = [frame.pts for frame, is_whole in zip(frames, whole, strict=True) if is_whole]
        note = "; ".join(notes) or None
        return Index(pts=pts, keys=[(0, 0)], ticks=ticks[whole], last=last, base=base, note=note, damaged=damaged)


def _holes(ticks: np.ndarray) -> int:
    """Return how many frames are missing between the ticks of a video with a constant rate; 0 if the rate varies."""
    gaps = np.diff(ticks)
    if len(gaps) == 0:
        return 0
    typical = np.median(gaps)
    steps = np.round(gaps / typical)
    return int((steps - 1).clip(min=0).sum()) if (steps == 1).mean() > 0.5 else 0


def _period(stream: "VideoStream") -> Fraction:
    """Return the seconds per frame that the file declares, or 1/25 if it declares none."""
    return 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
