"""`adatp calibrate` on the built-in model. Its numbers of segments are those that `adatp run` finds."""

import json

import pytest
from numbered_video import write

from adatp.cli.main import main


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def calibrated(capsys, *arguments):
    code, out, err = run(capsys, "calibrate", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "numbered.mp4", 20)


@pytest.mark.parametrize("relevance", ["auto", "none"])
def test_segments_are_those_of_a_run(capsys, bikes, relevance):
    given = ("--frames", 32, "--relevance", relevance)
    found = calibrated(capsys, bikes, *given)
    (video,) = found["videos"]
    assert found["features"] == {"auto": "siglip", "none": "tower"}[relevance]
    assert (video["frames"], len(video["sorted_cosines"]), found["wanted_segments"]) == (32, 31, 8)
    assert found["reached"]
    assert [entry["tau_s"] for entry in video["segments"]] == [0.8, 0.9, 0.95, 0.98, found["tau_s"]]
    for entry in video["segments"][::2]:
        settings = ("--set", f"tau_s={entry['tau_s']!r}", "--max-new-tokens", 1, "--json")
        _, out, _ = run(capsys, "run", bikes, "--question", "Who?", *given, *settings)
        assert len(json.loads(out)["report"]["samples"][0]["segments"]) == entry["segments"]


def test_several_videos(capsys, bikes, numbered):
    found = calibrated(capsys, bikes, numbered, "--frames", 8, "--segments", 4.5)
    counts = [entry["segments"] for video in found["videos"] for entry in video["segments"][-1:]]
    assert (found["wanted_by"], found["mean_segments"]) == ("user", sum(counts) / 2)
    assert found["all"]["segments"][-1] == {"tau_s": found["tau_s"], "mean_segments": found["mean_segments"]}
    least = min(video["quantiles"]["0.0"] for video in found["videos"])
    assert found["all"]["quantiles"]["0.0"] == least
    assert found["reached"]
    assert sum(counts) == 9


def test_the_table(capsys, bikes, numbered):
    code, out, _ = run(capsys, "calibrate", bikes, numbered, "--frames", 8)
    assert code == 0
    words = " ".join(out.split())
    assert "wanted: 2.00, one for every 4 frames" in words
    assert "knows the videos of" in words
    assert "SigLIP's pooled output" in words
    for wanted in (str(numbered), "at 0.95", "median", "all, mean segments", "--set tau_s="):
        assert wanted in out


def test_a_wish_beyond_reach_is_told(capsys, bikes):
    code, out, _ = run(capsys, "calibrate", bikes, "--frames", 4, "--segments", 100)
    assert code == 0
    words = " ".join(out.split())
    assert "gives 4.00 segments per video; wanted: 100.00, as --segments says. No tau_s comes nearer." in words


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--segments", "0.5"], "--segments must be a number of at least 1, got 0.5"),
        (["--segments", "nan"], "--segments must be a number of at least 1, got nan"),
        (["--frames", "0"], "--frames must be at least 1, got 0"),
        (["--frames", "1"], "no video has two frames to compare"),
        (["/nowhere.mp4"], "/nowhere.mp4: "),
    ],
)
def test_bad_input(capsys, numbered, extra, message):
    code, out, err = run(capsys, "calibrate", numbered, *extra)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"adatp: error: {message}")
