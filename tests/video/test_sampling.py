"""Which frames are sampled from a video file, and that they are the right ones."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_video import H264, HEIGHT, WIDTH, av, codec_exists, even, numbers, patch, write

from adatp.video import Limits, VideoError, picture, sample_frames, sampling
from adatp.video.index import frame_index, packet_index
from adatp.video.sampling import choose
from adatp.video.source import Source


def ticks_per_frame(path):
    """Ticks of the video stream per frame, at 10 frames a second."""
    with av.open(str(path)) as container:
        return int(1 / (10 * container.streams.video[0].time_base))


def on_screen(pts, count):
    """The frames on screen at uniform times, by definition."""
    targets = [pts[0] + Fraction((pts[-1] - pts[0]) * k, count - 1) for k in range(count)]
    return [max(i for i, time in enumerate(pts) if time <= target) for target in targets]


class Spy:
    """A container that counts the packets read for decoding, and may seek elsewhere than asked."""

    def __init__(self, container, counts, elsewhere):
        self.container, self.counts, self.elsewhere = container, counts, elsewhere

    def __enter__(self):
        self.container.__enter__()
        return self

    def __exit__(self, *error):
        return self.container.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, *streams):
        for packet in self.container.demux(*streams):
            self.counts["decoded" if streams else "read"] += packet.size > 0
            yield packet

    def seek(self, offset, stream):
        self.counts["seeks"] += 1
        self.container.seek(self.elsewhere(offset), stream=stream)


@pytest.fixture
def spy(monkeypatch):
    """Install the spy; the returned function takes where to seek and gives the counts."""

    def install(elsewhere=lambda offset: offset):
        counts = {"read": 0, "decoded": 0, "seeks": 0, "converted": 0}
        opened, shown = av.open, picture.View.of

        def convert(view, frame):
            counts["converted"] += 1
            return shown(view, frame)

        monkeypatch.setattr(av, "open", lambda *a, **k: Spy(opened(*a, **k), counts, elsewhere))
        monkeypatch.setattr(picture.View, "of", convert)
        return counts

    return install


@pytest.fixture
def packets_only(monkeypatch):
    """Fail where the packets do not suffice to find the frames."""
    monkeypatch.setattr(sampling, "frame_index", lambda source: pytest.fail("everything was decoded"))


# Which frames


@pytest.mark.parametrize("total", [1, 2, 7, 32, 33, 100])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_constant_rate_is_linspace(tmp_path, total, suffix, packets_only):
    path = write(tmp_path / f"a.{suffix}", total, fps=30)
    for count in {1, 2, 3, 8, total} - set(range(total + 1, 9)):
        clip = sample_frames(path, count)
        assert numbers(clip.frames) == even(total, count)
        assert clip.times == pytest.approx(np.array(even(total, count)) / 30, abs=1e-3)
        assert clip.times.dtype == np.float64
        assert clip.times[0] == 0
        assert (clip.total, clip.note) == (total, None)
        assert clip.duration == pytest.approx(total / 30, abs=2e-3)
        told = clip.metadata
        assert [index / told["fps"] for index in told["frames_indices"]] == pytest.approx(clip.times.tolist())
        assert told["total_num_frames"] / told["fps"] == pytest.approx(told["duration"])


@pytest.mark.parametrize("rate", ["24", "25", "24000/1001", "30000/1001", "30", "50", "60", "120"])
@pytest.mark.parametrize("ticks", [1000, 600, 90000, 12800])
def test_rounded_times_are_a_constant_rate(rate, ticks):
    for total in [*range(2, 70), 250, 997]:
        for how in (round, int):
            pts = np.array([how(i * ticks / Fraction(rate)) + 77 for i in range(total)])
            for count in range(2, min(total, 70) + 1):
                assert choose(pts, count) == even(total, count)


@pytest.mark.parametrize("tick", [1, 2**31, 2**50, 2**55])
def test_long_times_in_short_ticks(tick):
    """Products that no 64-bit integer holds."""
    assert choose(np.arange(100) * tick - 2**61, 50) == even(100, 50)
    uneven = np.array([0, 1, 2, 50, 51, 52, 99]) * tick - 2**61
    assert choose(uneven, 6) == on_screen(uneven.tolist(), 6)


def test_exact_rule_against_linspace():
    """Where numpy's own rounding does not interfere, the rule is numpy's."""
    same = 0
    for total in range(2, 200):
        for count in range(2, min(total, 65)):
            ours, theirs = even(total, count), np.linspace(0, total - 1, count)
            exact = [Fraction((total - 1) * k, count - 1) for k in range(count)]
            assert all(a == int(b) or e.denominator == 1 for a, b, e in zip(ours, theirs, exact, strict=True))
            same += ours == theirs.astype(int).tolist()
    assert same > 9000


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(2, 60), st.integers(-1000, 1000))
@settings(max_examples=300, deadline=None)
def test_choice_is_ordered_and_covers(gaps, count, start):
    pts = start + np.cumsum([0, *gaps])
    chosen = choose(pts, count)
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, len(gaps))
    assert len(chosen) == min(count, len(pts))
    if max(gaps) > 2 * min(gaps) + 4 and count <= len(pts):
        assert chosen == on_screen(pts.tolist(), count)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_variable_rate_gives_the_frame_on_screen(tmp_path, suffix, packets_only):
    draw = random.Random(0)
    pts = np.cumsum([0, *(draw.choice([20, 40, 45, 200, 900]) for _ in range(59))]).tolist()
    path = write(tmp_path / f"a.{suffix}", 60, pts=pts, ticks=1000)
    for count in (2, 9, 32, 60):
        clip = sample_frames(path, count)
        assert numbers(clip.frames) == on_screen(pts, count)
        assert clip.times == pytest.approx([pts[i] / 1000 for i in on_screen(pts, count)])


def test_a_frame_that_stays_is_repeated(tmp_path):
    path = write(tmp_path / "a.mp4", 5, pts=[0, 100, 200, 300, 10000], ticks=1000)
    assert numbers(sample_frames(path, 5).frames) == [0, 3, 3, 3, 4]


@pytest.mark.parametrize("pts", [range(50, 80), range(-6, 24)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_time_starts_at_the_first_frame(tmp_path, pts, suffix):
    if suffix == "flv" and H264 != "libx264":
        pytest.skip("no encoder that FLV takes")
    muxer = {"avoid_negative_ts": "make_non_negative"}
    path = write(tmp_path / f"a.{suffix}", 30, pts=list(pts), ticks=10, muxer=muxer)
    clip = sample_frames(path, 6)
    assert numbers(clip.frames) == even(30, 6)
    assert clip.times == pytest.approx(np.array(even(30, 6)) / 10, abs=2e-3)
    assert clip.duration == pytest.approx(3, abs=0.12)


def test_edit_list_hides_the_first_frames(tmp_path, packets_only):
    path = write(tmp_path / "a.mp4", 40, b_frames=0)
    start = 15
    patch(path, b"elst", 12, ">i", start * ticks_per_frame(path))
    clip = sample_frames(path, 5)
    assert numbers(clip.frames) == [start + i for i in even(25, 5)]
    assert clip.total == 25
    assert clip.times[0] == 0


# How they are decoded


def test_long_groups_with_b_frames(tmp_path, spy):
    path = write(tmp_path / "a.mp4", 400, gop=100, b_frames=3)
    counts = spy()
    assert numbers(sample_frames(path, 9).frames) == even(400, 9)
    assert counts["seeks"] >= 2


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_only_what_is_needed_is_decoded(tmp_path, spy, suffix):
    path = write(tmp_path / f"a.{suffix}", 2000, gop=10)
    counts = spy()
    assert numbers(sample_frames(path, 8).frames) == even(2000, 8)
    assert counts["read"] == 2000
    assert counts["converted"] == 8
    assert counts["decoded"] < 2000 / 4


def test_repeated_frames_are_converted_once(tmp_path, spy):
    path = write(tmp_path / "a.mp4", 5, pts=[0, 100, 200, 300, 10000], ticks=1000)
    counts = spy()
    sample_frames(path, 5)
    assert counts["converted"] == 3


@pytest.mark.parametrize("shift", [-300, -10, 10, 25, 300, 10**6])
def test_inexact_seeking_gives_no_wrong_frame(tmp_path, spy, shift):
    path = write(tmp_path / "a.mp4", 300, gop=10)
    ticks = ticks_per_frame(path)
    counts = spy(lambda offset: max(0, offset + shift * ticks))
    assert numbers(sample_frames(path, 7).frames) == even(300, 7)
    assert counts["seeks"]


def test_seeking_to_an_earlier_keyframe_is_no_failure(tmp_path, spy, packets_only):
    path = write(tmp_path / "a.mp4", 300, gop=10)
    spy(lambda offset: max(0, offset - 15 * ticks_per_frame(path)))
    assert numbers(sample_frames(path, 7).frames) == even(300, 7)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts"])
def test_no_frame_stands_for_another(tmp_path, suffix):
    """Groups that lean on the one before, also where the container has no times: each frame is right or refused."""
    if H264 != "libx264":
        pytest.skip("needs an H.264 encoder")
    params = {"x264_params": "open-gop=1:scenecut=0"}
    path = write(tmp_path / f"a.{suffix}", 80, fps=25, gop=20, b_frames=3, **params)
    index = packet_index(Source(path, Limits()))
    for wanted in range(80):
        try:
            ((_, found, _),) = sampling.pictures(Source(path, Limits()), index, [wanted], None)
        except VideoError:
            assert suffix == "avi"
        else:
            assert numbers(found[None]) == [wanted]


def test_seeking_that_fails_is_done_without(tmp_path, spy):
    def refuse(offset):
        raise av.PermissionError(1, "Operation not permitted")

    path = write(tmp_path / "a.mp4", 300, gop=10)
    spy(refuse)
    assert numbers(sample_frames(path, 7).frames) == even(300, 7)


@pytest.mark.parametrize("name", ["a.avi", "a.h264", "a.m2ts", "a.nut", "a.mpg"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_other_containers(tmp_path, name, b_frames):
    """Some of them have no times, or wrong ones."""
    if H264 != "libx264":
        pytest.skip("needs an H.264 encoder")
    path = write(tmp_path / name, 120, fps=25, b_frames=b_frames)
    for count in (1, 5, 32, 120):
        clip = sample_frames(path, count)
        assert numbers(clip.frames) == even(120, count)
        assert clip.times == pytest.approx(np.array(even(120, count)) / 25, abs=1e-3)
    assert (clip.total, clip.duration) == (120, pytest.approx(120 / 25, abs=0.05))


@pytest.mark.parametrize("name", ["avi mpeg4", "webm libvpx", "webm libvpx-vp9", "mkv ffv1"])
def test_other_codecs(tmp_path, name):
    suffix, codec = name.split()
    if not codec_exists(codec):
        pytest.skip(f"no {codec} encoder")
    options = {"auto_alt_ref": "1", "lag_in_frames": "16", "b": "200k"} if codec.startswith("libvpx") else {}
    path = write(tmp_path / f"a.{suffix}", 150, codec, gop=40, **options)
    for count in (1, 5, 32, 150):
        assert numbers(sample_frames(path, count).frames) == even(150, count)


@pytest.mark.parametrize("codec", [H264, "mpeg4"])
def test_a_stream_caught_in_the_middle(tmp_path, packets_only, codec):
    """What precedes the first keyframe is not counted."""
    path = write(tmp_path / "a.ts", 100, codec, gop=20, b_frames=0)
    with av.open(str(path)) as container:
        cut = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    path.write_bytes(path.read_bytes()[cut // 188 * 188 :])
    clip = sample_frames(path, 5)
    assert clip.total == 60
    assert numbers(clip.frames) == [40 + i for i in even(60, 5)]


def test_decoding_everything_starts_at_a_keyframe(tmp_path):
    path = write(tmp_path / "a.ts", 100, "mpeg4", gop=20, b_frames=0)
    with av.open(str(path)) as container:
        cut = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    path.write_bytes(path.read_bytes()[cut // 188 * 188 :])
    assert len(frame_index(Source(path, Limits())).ticks) == 60


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_rotation_is_applied(tmp_path, turn):
    """The matrices are those of the file format: a quarter turn clockwise takes the x axis to the y axis, downwards."""
    path = write(tmp_path / "a.mp4", 20)
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
    one = 1 << 16
    patch(path, b"tkhd", 40, ">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    frames = sample_frames(path, 4).frames
    assert frames.shape == (4, *((WIDTH, HEIGHT) if turn % 2 else (HEIGHT, WIDTH)), 3)
    assert numbers(np.rot90(frames, turn, axes=(1, 2))) == even(20, 4)
    assert frames.flags.c_contiguous


def test_fewer_frames_than_asked(tmp_path):
    clip = sample_frames(write(tmp_path / "a.mp4", 7), 32)
    assert numbers(clip.frames) == list(range(7))
    assert clip.times == pytest.approx(np.arange(7) / 10)
    assert clip.note == "the video has 7 frames, fewer than the 32 asked for; all are used"
    clip = sample_frames(write(tmp_path / "b.mp4", 4, pts=[0, 1, 50, 51], ticks=10), 5)
    assert numbers(clip.frames) == list(range(4))
    assert clip.times == pytest.approx([0, 0.1, 5, 5.1])


def test_colours(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        red = np.broadcast_to(np.array([250, 20, 60], np.uint8), (HEIGHT, WIDTH, 3))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red.copy(), format="rgb24")))
        container.mux(stream.encode())
    assert (sample_frames(path).frames == [250, 20, 60]).all()


def test_audio_may_outlast_the_video(tmp_path):
    for suffix in ("mp4", "mkv"):
        clip = sample_frames(write(tmp_path / f"a.{suffix}", 30, audio=8), 4)
        assert numbers(clip.frames) == even(30, 4)
        assert clip.duration == pytest.approx(3, abs=0.12)


def test_odd_names(tmp_path, monkeypatch):
    folder = tmp_path / "http:" / "50%d é"
    folder.mkdir(parents=True)
    path = write(folder / "a:b ?c#.mp4", 9)
    assert numbers(sample_frames(path, 3).frames) == numbers(sample_frames(str(path), 3).frames) == [0, 4, 8]
    monkeypatch.chdir(folder)
    assert sample_frames(path.name, 3).total == 9


def test_a_real_video(bikes):
    clip = sample_frames(bikes, 32)
    assert clip.frames.shape == (32, 272, 640, 3)
    assert clip.frames.dtype == np.uint8
    assert (np.diff(clip.times) > 0).all()
    assert clip.times[0] == 0
    assert clip.times[-1] < clip.duration
    assert clip.note is None
    assert clip.frames.std() > 20
    with av.open(str(bikes)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert clip.total == len(every)
    assert all((a == every[i]).all() for a, i in zip(clip.frames, even(len(every), 32), strict=True))
