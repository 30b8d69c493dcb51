"""Damaged files: what is lost is said, damaged frames are left out, and too much damage is an error."""

import random
import re

import numpy as np
import pytest
from numbered_video import H264, HEIGHT, WIDTH, av, even, numbers, picture, write

from adatp.video import Limits, VideoError, sample_frames
from adatp.video.index import _holes, frame_index, packet_index
from adatp.video.source import Source


def packets_of(path):
    """Position and size of each video packet."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def overwrite(path, spans):
    data = bytearray(path.read_bytes())
    draw = random.Random(0)
    for at, size in spans:
        data[at : at + size] = draw.randbytes(size)
    path.write_bytes(data)


def spoil(path, numbers):
    """Overwrite the content of these packets, from the eighth byte on, with ones."""
    data = bytearray(path.read_bytes())
    packets = packets_of(path)
    for number in numbers:
        at, size = packets[number]
        data[at + 8 : at + size] = b"\xff" * (size - 8)
    path.write_bytes(data)


@pytest.mark.parametrize("codec", [H264, "mpeg4"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_damaged_frames_are_left_out_and_counted(tmp_path, suffix, codec):
    path = write(tmp_path / f"a.{suffix}", 100, codec, gop=1, b_frames=0)
    spoil(path, range(40, 60))
    every, some = sample_frames(path, 100), sample_frames(path, 7)
    assert numbers(every.frames) == [*range(40), *range(60, 100)]
    assert numbers(some.frames) == [0, 16, 33, 39, 66, 82, 99], "at 49.5 the last whole frame is still on screen"
    for clip in (every, some):
        assert "the file is damaged: 20 of 100 frames are lost or damaged, and left out" in clip.note
        assert clip.total == 80
        assert clip.duration == pytest.approx(10, abs=0.01)
        assert clip.times == pytest.approx(np.array(numbers(clip.frames)) / 10, abs=0.01)


@pytest.mark.parametrize(("spoiled", "refused"), [(25, False), (26, True)])
def test_more_than_a_quarter_is_refused(tmp_path, spoiled, refused):
    if H264 != "libx264":
        pytest.skip("needs an H.264 encoder")
    path = write(tmp_path / "a.mp4", 100, gop=1, b_frames=0)
    spoil(path, range(10, 10 + spoiled))
    if refused:
        with pytest.raises(VideoError, match="is damaged: 26 of 100 frames are lost or damaged, more than a quarter"):
            sample_frames(path, 8)
    else:
        assert "25 of 100" in sample_frames(path, 8).note


def test_a_damaged_frame_between_is_not_sampled(tmp_path):
    """Eight frames are asked for. Where one of them is damaged, the frame on screen before it stands in."""
    if H264 != "libx264":
        pytest.skip("needs an H.264 encoder")
    path = write(tmp_path / "a.mp4", 71, gop=1, b_frames=0)
    spoil(path, [20, 60])
    clip = sample_frames(path, 8)
    assert numbers(clip.frames) == [0, 10, 19, 30, 40, 50, 59, 70]
    assert clip.total == 69


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_with_random_bytes_is_told_or_refused(tmp_path, seed):
    path = write(tmp_path / "a.ts", 75, gop=5, b_frames=0)
    size, draw = path.stat().st_size, random.Random(seed)
    overwrite(path, [(draw.randrange(2000, size - 188) // 188 * 188, 188) for _ in range(size // 188 // 40)])
    if seed == 3:
        overwrite(path, [(draw.randrange(2000, size - 188) // 188 * 188, 188) for _ in range(size // 188 // 5)])
        with pytest.raises(VideoError, match="is damaged"):
            sample_frames(path, 75)
    else:
        clip = sample_frames(path, 75)
        assert "the file is damaged" in clip.note
        assert clip.total < 75


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.77])
def test_a_cut_transport_stream_is_noted(tmp_path, cut):
    path = write(tmp_path / "a.ts", 75)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut) // 188 * 188 + 100])
    clip = sample_frames(path, 8)
    assert "ends in the middle of a packet" in clip.note
    assert numbers(clip.frames) == even(clip.total, 8), "what the cut has left of the last frame is not shown"
    assert clip.total < 75 * cut + 10


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.77])
def test_a_cut_gif_is_noted(tmp_path, cut):
    path = write_gif(tmp_path / "a.gif", 75)
    assert sample_frames(path, 8).note is None
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    clip = sample_frames(path, 8)
    assert "ends in the middle of a packet" in clip.note
    assert numbers(clip.frames) == even(clip.total, 8)


def test_a_gif_without_a_trailer_is_whole(tmp_path):
    path = write_gif(tmp_path / "a.gif", 20)
    data = path.read_bytes()
    assert data[-1:] == b";"
    path.write_bytes(data[:-1])
    clip = sample_frames(path, 8)
    assert clip.note is None
    assert numbers(clip.frames) == even(20, 8)


def write_gif(path, total):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb8"
        for number in range(total):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="rgb8")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_whole_transport_stream_of_each_packet_size(tmp_path):
    assert sample_frames(write(tmp_path / "a.ts", 40), 8).note is None
    assert sample_frames(write(tmp_path / "a.m2ts", 40), 8).note is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_whole_file_has_no_note_by_either_index(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", 60, gop=7)
    source = Source(path, Limits())
    for index in (packet_index(source), frame_index(source)):
        assert index is None or (index.note, index.damaged, len(index.ticks)) == (None, False, 60)


def test_the_same_each_time(tmp_path):
    """Also where many threads could decode."""
    path = write(tmp_path / "a.mkv", 200, gop=10)
    size = path.stat().st_size
    overwrite(path, [(size // 3, 300), (size // 2, 300)])
    first = sample_frames(path, 30)
    for _ in range(3):
        again = sample_frames(path, 30)
        assert (first.frames == again.frames).all()
        assert (first.note, first.total) == (again.note, again.total)
    assert np.all(np.diff(first.times) > 0)


def test_damage_that_the_container_flags_is_told_wherever_it_is(tmp_path):
    """The two frames that are sampled are whole. A counter in the packets shows that one is gone."""
    path = write(tmp_path / "a.ts", 200, gop=5, b_frames=0)
    at, data = [at for at, _ in packets_of(path)][101], path.read_bytes()
    path.write_bytes(data[:at] + data[at + 188 :])
    clip = sample_frames(path, 2)
    assert numbers(clip.frames) == [0, 199]
    assert clip.note == "the file is damaged: 2 of 200 frames are lost or damaged, and left out"


def test_frames_that_are_not_in_the_file_any_more_are_counted(tmp_path):
    """A stream whose packets are gone has holes in its times."""
    path = write(tmp_path / "a.ts", 200, gop=5, b_frames=0)
    positions = [at for at, _ in packets_of(path)]
    data = path.read_bytes()
    path.write_bytes(data[: positions[100]] + data[positions[120] :])
    clip = sample_frames(path, 4)
    lost = re.search(r"the file is damaged: (\d+) of 200 frames are lost or damaged", clip.note)
    assert 20 <= int(lost[1]) <= 22
    assert clip.duration == pytest.approx(20, abs=0.2)


@pytest.mark.parametrize(
    ("ticks", "missing"),
    [
        ([0], 0),
        (range(0, 100, 10), 0),
        ([0, 10, 20, 50, 60, 70, 80], 2),
        ([0, 9, 20, 31, 40, 70, 80, 91], 2),
        ([0, 10, 35, 90, 200, 201], 0),
    ],
)
def test_holes(ticks, missing):
    assert _holes(np.array(ticks)) == missing
