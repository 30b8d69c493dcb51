"""What a file may cost: each limit stops it, and memory does not grow with the stored size."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numbered_video import av, even, numbers, write

from adatp.video import Limits, VideoError, sample_frames, source


def still(path, width, height, total=8):
    """Black frames, of any size: a small file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        for number in range(total):
            black.pts = number
            container.mux(stream.encode(black))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"pixels": 3071}, r"has frames of 64 x 48 pixels, more than the limit of 3,071 \(pixels\)"),
        ({"duration": 2.9}, r"lasts 3 seconds, more than the limit of 2.9 \(duration\)"),
        ({"packets": 29}, r"(has 30 packets or more|declares 30 packets), more than the limit of 29 \(packets\)"),
        ({"seconds": 1e-9}, r"takes too many seconds, more than the limit of 1e-09 \(seconds\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_each_limit(tmp_path, limits, message, suffix):
    path = write(tmp_path / f"a.{suffix}", 30, "mpeg4")
    with pytest.raises(VideoError, match=message):
        sample_frames(path, 4, limits=Limits(**limits))
    just = {"pixels": 3072, "duration": 3.1, "packets": 31, "seconds": 60}
    assert numbers(sample_frames(path, 4, limits=Limits(**{key: just[key] for key in limits})).frames) == even(30, 4)


def test_too_many_pixels_are_not_decoded(tmp_path, monkeypatch):
    path = still(tmp_path / "a.mp4", 1024, 512)
    assert sample_frames(path, limits=Limits(pixels=1024 * 512)).total == 8
    monkeypatch.setattr(av.Packet, "decode", lambda self: pytest.fail("a frame was decoded"), raising=False)
    with pytest.raises(VideoError, match="has frames of 1024 x 512 pixels, more than the limit of 524,287"):
        sample_frames(path, limits=Limits(pixels=1024 * 512 - 1))


@pytest.mark.parametrize("pixels", [3000, 100_000, 300_000])
def test_far_too_many_pixels(tmp_path, pixels):
    """FFmpeg itself stops, and may then give no size."""
    path = still(tmp_path / "a.mp4", 1024, 512)
    with pytest.raises(VideoError, match=f"more than the limit of {pixels:,}"):
        sample_frames(path, limits=Limits(pixels=pixels))


def test_a_declared_size_cannot_lie(tmp_path):
    """A container may declare a small size and its stream bring large frames."""
    path = still(tmp_path / "a.mp4", 1024, 512)
    data = path.read_bytes()
    at = data.index(b"mp4v", data.index(b"stsd")) + 28
    path.write_bytes(data[:at] + b"\0\x40\0\x40" + data[at + 4 :])
    with pytest.raises(VideoError, match="more than the limit of 4,096"):
        sample_frames(path, limits=Limits(pixels=64 * 64))


def test_the_clock_also_runs_within_ffmpeg(tmp_path, monkeypatch):
    """A reading that never ends is ended, even if FFmpeg does not come back between packets."""
    path = write(tmp_path / "a.ts", 200)
    clock = iter(range(1000))
    monkeypatch.setattr("adatp.video.source.monotonic", lambda: float(next(clock)))
    with pytest.raises(VideoError, match="too many seconds"):
        sample_frames(path, limits=Limits(seconds=2))
    assert next(clock) < 10


@pytest.mark.parametrize("name", ["pixels", "duration", "packets", "seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "8", None, True, 10**400])
def test_bad_limits(name, value):
    with pytest.raises(ValueError, match=f"{name} must be (above 0 and finite|a number)"):
        Limits(**{name: value})


def test_limits_are_limits(tmp_path):
    with pytest.raises(ValueError, match=r"limits must be an adatp.video.Limits, got 8"):
        sample_frames(tmp_path / "any.mp4", limits=8)


@pytest.mark.parametrize("size", [(1920, 1080), (3840, 2160)])
def test_memory_is_of_the_frames_that_are_returned(tmp_path, size):
    """NumPy's arrays, as Python counts them: the frames, and one picture beside them."""
    path = still(tmp_path / "a.mp4", *size, total=40)
    sample_frames(path, 2)  # imports
    tracemalloc.start()
    try:
        clip = sample_frames(path, 32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert clip.frames.shape == (32, 384, 683, 3)
    assert peak < 1.2 * clip.frames.nbytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory as Linux tells it")
def test_no_decoded_frame_is_kept(tmp_path):
    """Thirty-two frames of 2048 x 2048 are 192 MiB as the decoder has them."""
    path = still(tmp_path / "a.mp4", 2048, 2048, total=33)
    code = """
import re, sys
from adatp.video import sample_frames
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
sample_frames(sys.argv[1], 1)
before = peak()
sample_frames(sys.argv[1], 32)
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 80


def test_reading_ends_when_the_time_is_up(tmp_path):
    """Also within a call of FFmpeg, which reads through this."""
    path = write(tmp_path / "a.mp4", 5)
    late = source.Source(path, Limits(seconds=1e-9))
    with path.open("rb") as file, pytest.raises(VideoError, match="too many seconds"):
        source._Bytes(late, file).read(8)


def test_frames_that_grow_beyond_the_limit(tmp_path):
    parts = [still(tmp_path / f"{width}.ts", width, width // 2).read_bytes() for width in (64, 1024)]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match="has frames of 1024 x 512 pixels, more than the limit of 300,000"):
        sample_frames(tmp_path / "a.ts", 4, limits=Limits(pixels=300_000))
    with pytest.raises(VideoError) as caught:  # far beyond the limit, where the decoder itself refuses
        sample_frames(tmp_path / "a.ts", 4, limits=Limits(pixels=5000))
    assert "1024 x 512" not in str(caught.value)


def test_decoders_get_fewer_threads_for_larger_frames(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert [source._threads(w * h) for w, h in ((64, 48), (1920, 1080), (3840, 2160), (7680, 4320))] == [16, 8, 2, 1]
    path = write(tmp_path / "a.mp4", 5)
    for one_by_one, threads in ((True, 1), (False, 16)):
        with source.Source(path, Limits()).opened(one_by_one=one_by_one) as (_, stream):
            assert stream.codec_context.thread_count == threads
