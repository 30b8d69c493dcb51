"""The benchmark of long videos: what it measures, and how it is written."""

from bench import long_videos


def test_a_prompt_has_text_before_every_frame():
    layout = long_videos.LongVideo(3).layout
    assert layout.begins == (10, 44, 78)
    assert (layout.frames, layout.visual_tokens, layout.end, layout.length) == (3, 72, 102, 142)
    assert layout.rows.tolist() == list(range(102, 142))


def test_every_length_is_measured(monkeypatch):
    monkeypatch.setattr(long_videos, "ROUNDS", 1)
    short, long = long_videos.measure((4, 8))
    assert (short["frames"], short["tokens"], long["tokens"]) == (4, 176, 312)
    assert all(row["seconds"] > 0 for row in (short, long))
    scores = 4 * long_videos.GRID.tokens * long_videos.HEADS * long_videos.TEXT  # in bytes, at the least
    assert scores < short["bytes"] < long["bytes"]


def test_ratios_are_those_of_a_token_to_the_shortest():
    rows = [
        {"frames": 1, "tokens": 100, "bytes": 2**20, "seconds": 0.1},
        {"frames": 2, "tokens": 200, "bytes": 2**21, "seconds": 0.3},
    ]
    first, second = long_videos.rows_of({"rows": rows})
    assert first == ["1", "100", "1 MiB", "10486", "1.00", "100 ms", "1000.0 µs", "1.00"]
    assert second == ["2", "200", "2 MiB", "10486", "1.00", "300 ms", "1500.0 µs", "1.50"]
