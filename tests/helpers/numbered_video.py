"""Tiny videos whose pictures carry the number of their frame."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from adatp.video import VideoError, sample_frames

av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")

HEIGHT, WIDTH, BLOCK = 48, 64, 16


def codec_exists(name):
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


H264 = "libx264" if codec_exists("libx264") else "mpeg4"


def picture(number):
    """[48, 64, 3] uint8: the bits of the number as a 3 x 4 board of black and white blocks, the lowest first."""
    bits = (number >> np.arange(12)) & 1
    board = np.kron(bits.reshape(3, 4), np.ones((BLOCK, BLOCK))) * 255
    return np.repeat(board[..., None], 3, axis=2).astype(np.uint8)


def numbers(frames):
    """The numbers that the pictures [n, 48, 64, 3] carry."""
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (HEIGHT, WIDTH, 3)
    bits = frames[:, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 0].reshape(len(frames), 12) > 127
    return [int(b @ (1 << np.arange(12))) for b in bits]


def write(path, total, codec=H264, fps=10, gop=12, b_frames=2, pts=None, ticks=None, audio=0, muxer=None, **options):
    """Write `total` numbered frames, at 1 / fps s each or at the times `pts` in 1 / ticks s, and `audio` s of sound."""
    base = Fraction(1, ticks or fps)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.time_base = gop, base
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = b_frames
        stream.options = {key.replace("_", "-"): value for key, value in options.items()}
        if audio:
            sound = container.add_stream("aac", rate=8000)
        for number, time in enumerate(pts or range(total)):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for start in range(0, int(audio * 8000), 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.pts, silence.sample_rate, silence.time_base = start, 8000, Fraction(1, 8000)
            container.mux(sound.encode(silence))
        if audio:
            container.mux(sound.encode())
    return path


def patch(path, box, offset, layout, *values):
    """Overwrite big endian values in the first box of this name, `offset` bytes after the name."""
    data = bytearray(path.read_bytes())
    at = data.index(box) + 4 + offset
    data[at : at + struct.calcsize(layout)] = struct.pack(layout, *values)
    path.write_bytes(data)


def even(total, count):
    """floor(linspace(0, total - 1, count)) without rounding errors."""
    return [k * (total - 1) // (count - 1) for k in range(count)] if count > 1 else [0]


def refused(path, reason, count=8):
    """Hold a file to be refused with one line that begins with its path and matches `reason`."""
    with pytest.raises(VideoError, match=reason) as caught:
        sample_frames(path, count)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
