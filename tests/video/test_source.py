"""Only a regular file is read, and only its own content."""

import os
import re
import socket
import threading

import numpy as np
import pytest
from numbered_video import av, even, numbers, refused, write

from adatp.video import Limits, sample_frames, source

PLAYLISTS = {
    "list.ffconcat": "ffconcat version 1.0\nfile {target}\n",
    "list.txt": "ffconcat version 1.0\nfile {target}\n",
    "play.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
    "play.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
    "live.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n",
    "a.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
    "a.sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 5000 RTP/AVP 96\r\n",
    "a.pls": "[playlist]\nFile1={target}\n",
    "a.asx": "<asx version='3.0'><entry><ref href='{target}'/></entry></asx>",
}


@pytest.fixture
def video(tmp_path):
    return write(tmp_path / "target.mp4", 20)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_not_followed(tmp_path, video, name):
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(target=video.name))
    refused(path, "is a playlist that names other files")


@pytest.mark.parametrize("name", ["list.ffconcat", "play.m3u8"])
def test_no_protocol_is_allowed_either(tmp_path, video, name, monkeypatch):
    """Were a demuxer on the list that opens files, it would find no way to open them."""
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(target=video.name))
    monkeypatch.setattr(source, "PLAYLIST_HEAD", re.compile(b"(?!)"))  # which matches nothing
    monkeypatch.setattr(source, "FORMATS", (*source.FORMATS, "concat", "hls"))
    refused(path, "cannot be opened")
    monkeypatch.setattr(source, "PROTOCOLS", "file")
    if name == "list.ffconcat":
        assert sample_frames(path, 4).total == 20, "the protocols are what stops it"


@pytest.mark.parametrize(
    "text", ["<svg xmlns='http://www.w3.org/2000/svg'></svg>", "WEBVTT\n\n00:00.000 --> 00:01.000\nhi"]
)
def test_other_formats_are_not_read(tmp_path, text):
    (tmp_path / "a.mp4").write_text(text * 20)
    refused(tmp_path / "a.mp4", "its format is none of those that are read")


def test_the_formats_are_names_of_ffmpeg():
    for name in source.FORMATS:
        if name not in ("webp",):  # of FFmpeg 8.1 on
            av.ContainerFormat(name, "r")


@pytest.mark.parametrize(
    "path",
    [
        "http://host.invalid/a.mp4",
        "HTTPS://host.invalid/a.mp4",
        "rtsp://host.invalid/a",
        "data:video/mp4;base64,AAAA",
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,9,,:a.mp4",
        "subfile:a.mp4",
        "pipe:0",
        "fd:0",
        "file:a.mp4",
        "cache:a.mp4",
        "s3://bucket/a.mp4",
    ],
)
def test_addresses_and_protocols_are_told(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(path, "is an address or names a protocol")


def test_a_pattern_of_images_is_told(tmp_path):
    for number in range(3):
        (tmp_path / f"a{number}.png").write_bytes(b"")
    refused(tmp_path / "a%d.png", "is a pattern for a sequence of images")
    refused(tmp_path / "a%03d.png", "is a pattern for a sequence of images")


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    done = threading.Event()

    def read():
        refused(tmp_path / "a.mp4", "is a pipe, not a regular file")
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(10)


def test_what_is_no_regular_file(tmp_path):
    refused(tmp_path, "is a directory, not a regular file")
    refused("/dev/zero", "is a device, not a regular file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "is a socket, not a regular file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "is empty")


@pytest.mark.parametrize("path", ["", "a\0b.mp4", "x" * 5000])
def test_impossible_names(path):
    refused(path, "cannot be opened")


@pytest.mark.parametrize("path", [None, 5, 3.5, ["a.mp4"], b"a.mp4"])
def test_a_path_is_a_path(path):
    with pytest.raises(ValueError, match=r"path must be a path") as caught:
        sample_frames(path)
    assert repr(path) in str(caught.value)


def test_a_link_to_a_file(tmp_path, video):
    (tmp_path / "link.mp4").symlink_to(video)
    assert numbers(sample_frames(tmp_path / "link.mp4", 4).frames) == even(20, 4)
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "missing")
    refused(tmp_path / "nowhere.mp4", "No such file")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(video):
    video.chmod(0)
    refused(video, "Permission denied")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif"])
def test_a_picture_is_a_video_of_one_frame(tmp_path, name):
    codec = {"png": "png", "jpg": "mjpeg", "gif": "gif"}[name.split(".")[1]]
    with av.open(str(tmp_path / name), "w", format="gif" if codec == "gif" else "image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p", "gif": "rgb8"}[codec]
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    clip = sample_frames(tmp_path / name, 4)
    assert clip.frames.shape == (1, 48, 64, 3)
    assert clip.note.startswith("the video has 1 frames")


def test_the_stream_that_a_player_shows(tmp_path):
    """The default one, not the first: a cover of one frame may stand before the video."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        cover, film = (container.add_stream("mpeg4", rate=10) for _ in range(2))
        for stream, size in ((cover, (128, 96)), (film, (64, 48))):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        cover.disposition, film.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        black = av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")
        black.pts = 0
        container.mux(cover.encode(black))
        container.mux(cover.encode())
        for number in range(75):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(film.encode(frame))
        container.mux(film.encode())
    clip = sample_frames(path, 8)
    assert clip.total == 75
    assert clip.frames.shape == (8, 48, 64, 3)
    assert clip.frames.mean() > 250


def test_streams_that_appear_while_reading_end_it_quietly(video):
    """PyAV 18.1 looks for them among those that it knew at the beginning."""

    class Container:
        def demux(self):
            yield from "abc"
            raise IndexError("list index out of range")

    assert list(source.Source(video, Limits()).packets(Container())) == ["a", "b", "c"]


def test_a_place_that_no_file_has(video):
    """A damaged file may send FFmpeg there. It gets an answer instead of Python's error."""
    with video.open("rb") as file:
        content = source._Bytes(source.Source(video, Limits()), file)
        assert content.seek(8) == 8
        assert content.seek(-3) == -1
        assert content.tell() == 8
