"""The benchmark of sampling frames: what it measures, and how it is written."""

import pytest
from numbered_video import av  # skips without PyAV

from bench import decoding


def test_a_clip_is_measured_in_processes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(decoding.SIZES, "480p", (320, 192))
    row = decoding.measure(tmp_path, "MJPEG", "480p")
    frames = 32 * 320 * 192 * 3
    assert frames <= row["arrays"] < 1.3 * frames
    assert row["process"] > row["arrays"] / 2
    assert row["seconds"] > 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (320, 192, 40)


def test_ratios_are_to_480p_of_the_same_codec():
    rows = [
        {"codec": codec, "size": size, "arrays": 2**20 * arrays, "process": 2**21 * arrays, "seconds": 1.0}
        for codec, size, arrays in (("A", "480p", 4), ("A", "8K", 6), ("B", "480p", 2), ("B", "8K", 8))
    ]
    found = decoding.rows_of({"rows": rows})
    assert [(row[0], row[1], row[3], row[5]) for row in found] == [
        ("A", "480p", "1.00", "1.00"),
        ("A", "8K", "1.50", "1.50"),
        ("B", "480p", "1.00", "1.00"),
        ("B", "8K", "4.00", "4.00"),
    ]
    assert all(len(row) == len(decoding.HEADS) for row in found)


def test_what_scaling_while_decoding_changes(bikes, monkeypatch):
    monkeypatch.setattr(decoding, "SHORTEST_EDGE", 200)
    monkeypatch.setattr(decoding, "sample_video", lambda name: bikes)
    found = decoding.difference()
    assert 0 < found["mean"] < 1.5
    assert found["within"]["4"] > 0.98
    assert found["largest"] == pytest.approx(14, abs=6)
    assert "bikes.mp4" in decoding.in_words(found)
