"""Frames as a player shows them: turned, mirrored, with square pixels, and no larger than a model looks at."""

import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_video import HEIGHT, WIDTH, av, even, numbers, patch, write
from torch.nn.functional import interpolate

from adatp.video import sample_frames
from adatp.video.picture import fit, turn

ONE = 1 << 16
# a, b, c, d of the file format: the point (x, y) is shown at (a x + c y, b x + d y), y downwards
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "a quarter clockwise": (0, 1, -1, 0),
    "half": (-1, 0, 0, -1),
    "a quarter counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def turned_by_ffmpeg(picture, a, b, c, d):
    """The picture [H, W, 3] by FFmpeg's filters, chosen by the rules of its command line (`ffmpeg_filter.c`)."""
    filters = {
        (1, 0, 0, 1): [],
        (0, 1, -1, 0): [("transpose", "clock")],
        (0, -1, -1, 0): [("transpose", "clock_flip")],
        (-1, 0, 0, -1): [("hflip", None), ("vflip", None)],
        (-1, 0, 0, 1): [("hflip", None)],
        (0, -1, 1, 0): [("transpose", "cclock")],
        (0, 1, 1, 0): [("transpose", "cclock_flip")],
        (1, 0, 0, -1): [("vflip", None)],
    }[a, b, c, d]
    graph = av.filter.Graph()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))]
    nodes += [graph.add(name, argument) for name, argument in filters]
    nodes.append(graph.add("buffersink"))
    for before, after in pairwise(nodes):
        before.link_to(after)
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def with_matrix(path, a, b, c, d):
    """A video whose pictures are told apart from each of their turned and mirrored versions, with this matrix."""
    write(path, 4000, gop=100)
    patch(path, b"tkhd", 40, ">9i", *(int(v * ONE) for v in (a, b, 0, c, d, 0)), 0, 0, 1 << 30)
    return path


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_the_whole_display_matrix_is_applied(tmp_path, matrix):
    stored = sample_frames(with_matrix(tmp_path / "stored.mp4", 1, 0, 0, 1), 3)
    shown = sample_frames(with_matrix(tmp_path / "shown.mp4", *matrix), 3)
    assert numbers(stored.frames) == even(4000, 3)
    assert shown.note is None
    assert shown.frames.flags.c_contiguous
    for ours, picture in zip(shown.frames, stored.frames, strict=True):
        assert (ours == turned_by_ffmpeg(picture, *matrix)).all()


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_it_is_what_ffmpeg_shows(tmp_path, matrix):
    ffmpeg = shutil.which("ffmpeg") or pytest.skip("no ffmpeg on the path")
    path = with_matrix(tmp_path / "a.mp4", *matrix)
    ours = sample_frames(path, 1).frames[0]
    command = [ffmpeg, "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    theirs = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    assert np.abs(ours.astype(int) - theirs.reshape(ours.shape)).max() <= 3


@pytest.mark.parametrize("scale", [0.5, 2, 3])
def test_a_matrix_that_also_scales_turns(tmp_path, scale):
    once = sample_frames(with_matrix(tmp_path / "a.mp4", 0, 1, -1, 0), 2)
    scaled = sample_frames(with_matrix(tmp_path / "b.mp4", 0, scale, -scale, 0), 2)
    assert (once.frames == scaled.frames).all()
    assert scaled.note is None


def test_a_matrix_that_stretches_stands_for_pixels_that_are_not_square(tmp_path):
    """FFmpeg gives the aspect of the pixels beside the matrix."""
    clip = sample_frames(with_matrix(tmp_path / "a.mp4", -2, 0, 0, 1), 2)
    assert clip.frames.shape == (2, HEIGHT, 2 * WIDTH, 3)
    assert clip.note is None
    plain = sample_frames(with_matrix(tmp_path / "b.mp4", -1, 0, 0, 1), 2)
    assert np.abs(clip.frames[:, :, 8::32].astype(int) - plain.frames[:, :, 4::16]).max() < 40


@pytest.mark.parametrize("matrix", [(0.8, 0.6, -0.6, 0.8), (1, 0.5, 0, 1), (1, 1, 1, 1)])
def test_other_matrices_are_noted(tmp_path, matrix):
    clip = sample_frames(with_matrix(tmp_path / "a.mp4", *matrix), 3)
    assert "not a multiple of a quarter" in clip.note
    if matrix == (0.8, 0.6, -0.6, 0.8):
        assert numbers(clip.frames) == even(4000, 3)


def test_a_matrix_of_zeros_is_none():
    assert turn(np.zeros((2, 3, 3), np.uint8), np.zeros((2, 2))) is None


def write_blocks(path, aspect=Fraction(1), width=WIDTH, height=HEIGHT, codec="mpeg4"):
    """Four frames of random blocks, whose pixels are `aspect` times as wide as high."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(4):
            coarse = draw.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
            picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [(Fraction(16, 15), (48, 68)), (Fraction(8, 9), (54, 64)), (Fraction(2), (48, 128)), (Fraction(1, 2), (96, 64))],
)
def test_pixels_become_square(tmp_path, aspect, shown):
    """No row and no column is lost; a player stretches the pictures likewise."""
    clip = sample_frames(write_blocks(tmp_path / "a.mp4", aspect), 2)
    assert clip.frames.shape == (2, *shown, 3)
    assert clip.note is None


def test_square_pixels_are_not_touched(tmp_path):
    path = write_blocks(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert (sample_frames(path, 2).frames[0] == first).all()


def test_absurd_pixels_are_taken_as_square(tmp_path):
    clip = sample_frames(write_blocks(tmp_path / "a.mp4", Fraction(10)), 2)
    assert clip.frames.shape == (2, HEIGHT, WIDTH, 3)
    assert "taken as square" in clip.note


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 2000))
def test_the_size_is_bounded_and_keeps_the_shape(width, height, edge):
    w, h = fit(width, height, edge)
    assert 1 <= w <= width
    assert 1 <= h <= height
    assert w * h <= 4 * edge**2 + w + h
    if min(width, height) <= edge and width * height <= 4 * edge**2:
        assert (w, h) == (width, height)
    elif max(width, height) <= 4 * min(width, height):
        assert min(w, h) == edge
    if min(w, h) > 1:
        assert w / h == pytest.approx(width / height, rel=1 / min(w, h))


@pytest.mark.parametrize("edge", [96, 200, 384])
def test_large_frames_are_scaled_while_decoding(tmp_path, edge):
    """To about what scaling the stored frames gives."""
    path = write_blocks(tmp_path / "a.mkv", width=1280, height=768, codec="ffv1")
    stored = sample_frames(path, 2, shortest_edge=None).frames
    scaled = sample_frames(path, 2, shortest_edge=edge).frames
    assert stored.shape == (2, 768, 1280, 3)
    assert scaled.shape == (2, edge, round(edge * 1280 / 768), 3)
    pixels = torch.from_numpy(stored).permute(0, 3, 1, 2).float()
    expected = interpolate(pixels, scaled.shape[1:3], mode="bicubic", antialias=True).clamp(0, 255)
    assert np.abs(expected.permute(0, 2, 3, 1).numpy() - scaled).mean() < 4


def test_the_default_is_384_pixels(tmp_path):
    path = write_blocks(tmp_path / "a.mkv", width=1280, height=768, codec="ffv1")
    assert sample_frames(path, 2).frames.shape == (2, 384, 640, 3)


@pytest.mark.parametrize("edge", [0, -1, 1.5, True, "384"])
def test_bad_edge(tmp_path, edge):
    with pytest.raises(ValueError, match=f"shortest_edge must be (at least 1|a whole number .*), got {edge!r}"):
        sample_frames(tmp_path / "any.mp4", shortest_edge=edge)
