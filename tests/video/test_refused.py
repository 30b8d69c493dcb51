"""Files that are refused, and what the error says."""

import os
import random
from fractions import Fraction

import numpy as np
import pytest
from numbered_video import HEIGHT, WIDTH, av, even, numbers, picture, refused, write

from adatp.video import VideoError, sample_frames


def test_no_file(tmp_path):
    refused(tmp_path / "missing.mp4", "No such file")
    refused(tmp_path, "directory")


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.avi", "a.webm"])
@pytest.mark.parametrize("data", [b"", b"just some text\n" * 40, random.Random(0).randbytes(5000)])
def test_not_a_media_file(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "cannot be|no video|no frames|is empty|its format is none")


def test_audio_only(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    refused(path, "no video stream")


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    refused(path, "no video stream")


@pytest.mark.parametrize(("suffix", "reason"), [("mp4", "has no frames"), ("mkv", "cannot be opened")])
def test_no_frames(tmp_path, suffix, reason):
    path = tmp_path / f"a.{suffix}"
    # In fragments, since MP4 has no track for a stream without frames otherwise.
    muxer = {"movflags": "frag_keyframe+empty_moov"} if suffix == "mp4" else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    refused(path, reason)


@pytest.mark.parametrize("part", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("layout", ["index last", "index first", "fragments"])
def test_cut_mp4(tmp_path, part, layout):
    flags = {"index last": "", "index first": "faststart", "fragments": "frag_keyframe+empty_moov"}[layout]
    path = write(tmp_path / "a.mp4", 200, muxer={"movflags": flags} if flags else None)
    assert numbers(sample_frames(path, 3).frames) == even(200, 3)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refused(path, "cut short|cannot be opened|no video|no frames")


@pytest.mark.parametrize("part", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_cut_elsewhere(tmp_path, part, suffix):
    path = write(tmp_path / f"a.{suffix}", 200, "mpeg4")
    assert numbers(sample_frames(path, 3).frames) == even(200, 3)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refused(path, "cut short|cannot be opened")


def test_unknown_codec(tmp_path):
    path = write(tmp_path / "a.mp4", 10)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1").replace(b"mp4v", b"zzz1").replace(b"avcC", b"zzzC"))
    refused(path, "no frames that can be decoded: its codec is not known")


def test_frame_size_that_changes(tmp_path):
    parts = []
    for width in (WIDTH, 2 * WIDTH):
        path = tmp_path / f"{width}.ts"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg2video", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, width, 3), 9 * number, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number + 10 * len(parts), Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append(path.read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    refused(tmp_path / "both.ts", "frame size changes")


@pytest.mark.parametrize("count", [0, -3, 2.0, True, "8", None])
def test_count_out_of_range(tmp_path, count):
    with pytest.raises(ValueError, match=f"count must be (at least 1|a whole number .*), got {count!r}") as caught:
        sample_frames(tmp_path / "any.mp4", count)
    assert not isinstance(caught.value, VideoError)


def test_silent_and_closes_the_file(tmp_path, capfd):
    path = write(tmp_path / "a.mp4", 100)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[:500])
    capfd.readouterr()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(3):
        sample_frames(path, 5)
        refused(cut, "cannot be")
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr() == ("", "")
