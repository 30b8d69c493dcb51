"""The numbers that an MP4 file declares: FFmpeg allocates for them, so they are checked before it sees the file."""

import struct

import pytest
from numbered_video import av, even, numbers, patch, write

from adatp.video import Limits, VideoError, sample_frames


def box(name, *content):
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name + data


def table(name, *values):
    return box(name, struct.pack(f">{1 + len(values)}I", 0, *values))


def track(samples, *, edits=1, handler=b"vide", ticks=10, runs=1):
    """A track with so many samples of the same size."""
    times = table(b"stts", runs, *(samples, ticks) * runs)
    stored = box(b"minf", box(b"stbl", table(b"stsz", 1, samples), times))
    media = box(b"mdia", table(b"hdlr", 0, int.from_bytes(handler)), stored)
    return box(b"trak", box(b"edts", table(b"elst", edits)), media)


def refused(path, content, message="declares {} packets, more than the limit of 2,000,000", count="2,000,001"):
    path.write_bytes(box(b"ftyp", b"isom" + bytes(4)) + content)
    with pytest.raises(VideoError, match=message.format(count)):
        sample_frames(path)


def passed(path, content):
    """The counts are no reason to refuse it; that it holds no frames is."""
    path.write_bytes(box(b"ftyp", b"isom" + bytes(4)) + content)
    with pytest.raises(VideoError) as caught:
        sample_frames(path)
    assert "declares" not in str(caught.value)


def test_samples(tmp_path):
    refused(tmp_path / "a.mp4", box(b"moov", track(2_000_001)))
    passed(tmp_path / "a.mp4", box(b"moov", track(2_000_000)))
    refused(tmp_path / "a.mp4", box(b"moov", track(1_000_000), track(1_000_001)))
    refused(tmp_path / "a.mp4", box(b"moov", track(2**32 - 1)), count="4,294,967,295")


def test_edits_may_repeat_all_samples(tmp_path):
    refused(tmp_path / "a.mp4", box(b"moov", track(3, edits=666_667)))
    passed(tmp_path / "a.mp4", box(b"moov", track(3, edits=666_666)))


def test_fragments(tmp_path):
    runs = [box(b"moof", box(b"traf", table(b"trun", count))) for count in (1_000_000, 1_000_001)]
    refused(tmp_path / "a.mp4", b"".join(runs))
    passed(tmp_path / "a.mp4", runs[1])


def test_raw_sound_has_a_sample_each_tick(tmp_path):
    """An hour of it has 172 million. FFmpeg reads it in chunks, if it is sound and each sample lasts one tick."""
    passed(tmp_path / "a.mov", box(b"moov", track(172_800_000, handler=b"soun", ticks=1)))
    refused(tmp_path / "a.mov", box(b"moov", track(2_000_001, handler=b"vide", ticks=1)))
    refused(tmp_path / "a.mov", box(b"moov", track(2_000_001, handler=b"soun", ticks=2)))
    refused(tmp_path / "a.mov", box(b"moov", track(2_000_001, handler=b"soun", ticks=1, runs=2)))


def test_boxes_in_odd_places(tmp_path):
    many = table(b"stsz", 1, 2_000_001)
    refused(tmp_path / "a.mp4", many)
    refused(tmp_path / "a.mp4", box(b"udta", box(b"moov", many)))
    refused(tmp_path / "a.mp4", box(b"moov", box(b"trak", box(b"meta", bytes(4), many))))
    refused(tmp_path / "a.mp4", struct.pack(">I4sQ", 1, b"moov", 16 + len(many)) + many)
    refused(tmp_path / "a.mp4", struct.pack(">I4s", 0, b"moov") + many)
    refused(tmp_path / "a.mp4", struct.pack(">I4s", 2**31, b"moov") + many)


def test_a_compressed_header(tmp_path):
    refused(tmp_path / "a.mov", box(b"moov", box(b"cmov", bytes(20))), message="has a compressed header")


def test_boxes_that_never_end(tmp_path):
    passed(tmp_path / "a.mp4", box(b"moov", *[struct.pack(">I4s", 8, b"trak")] * 5000))
    nested = b""
    for _ in range(2000):
        nested = box(b"moov", nested)
    passed(tmp_path / "a.mp4", nested)


@pytest.mark.parametrize("flags", ["", "faststart", "frag_keyframe+empty_moov"])
def test_a_real_file_declares_what_it_holds(tmp_path, flags):
    path = write(tmp_path / "a.mp4", 60, audio=2, muxer={"movflags": flags} if flags else None)
    with av.open(str(path)) as container:
        held = sum(packet.size > 0 for packet in container.demux())
    assert numbers(sample_frames(path, 4, limits=Limits(packets=held + 4)).frames) == even(60, 4)
    with pytest.raises(VideoError, match=f"declares {held} packets" if not flags.startswith("frag") else "declares"):
        sample_frames(path, 4, limits=Limits(packets=held - 1))


def test_a_small_file_with_a_large_number(tmp_path):
    path = write(tmp_path / "a.mp4", 60)
    patch(path, b"stsz", 4, ">II", 1, 2**30)
    with pytest.raises(VideoError, match="declares 1,073,741,824 packets"):
        sample_frames(path)
