"""The figures: the pictures themselves, and the command as a user types it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from adatp.cli.main import main
from adatp.evaluation.bias import Bias, measure
from adatp.figures.drawings import COLOURS, draw_kept, draw_per_frame, draw_per_position, draw_top_tokens
from adatp.layout import Grid

TITLE = r"What costs $\x$, <b>or $\frac$</b>?  (a model, a.mp4)"  # no mathematics


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    """`[H, W]` where it has that colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(picture.astype(int) - wanted).max(2) < 12


@pytest.fixture(scope="module")
def scores():
    """3 layers, 16 frames of 3 x 4: the last frames and one place stand out."""
    scores = 1 + torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(0))
    scores[0, -2:] += 9
    scores[1, :, 7] += 9
    return scores / 100


def test_bars_are_as_high_as_the_attention(tmp_path, scores):
    draw_per_frame(tmp_path / "a.png", scores.sum(2).numpy(), TITLE)
    blue = near(pixels(tmp_path / "a.png"), "#4b86bb")
    columns = np.nonzero(blue.any(0))[0]
    first = columns[: len(columns) // 3]  # the panel of layer 0
    heights = blue[:, first].sum(0)
    assert heights[-3] > 4 * np.median(heights), "the last two frames stand out"


def test_newlines_stand_apart_from_the_positions(tmp_path, scores):
    for name, grid in (("square", Grid(3, 4, newlines=True)), ("plain", Grid(4, 3))):
        draw_per_position(
            tmp_path / f"{name}.png", measure(scores, grid).per_position.numpy(), TITLE, newlines=grid.newlines
        )
    apart, together = (
        (pixels(tmp_path / f"{name}.png") < 250).any(2)[60:200].any(0).astype(int) for name in ("square", "plain")
    )
    assert np.count_nonzero(np.diff(apart) > 0) > np.count_nonzero(np.diff(together) > 0)


def test_top_tokens_have_the_colours_of_their_bias(tmp_path, scores):
    kinds = measure(scores, Grid(3, 4)).kinds
    assert {int(k) for k in kinds.unique()} == set(Bias)
    draw_top_tokens(tmp_path / "a.png", scores.numpy(), kinds.numpy(), TITLE)
    picture = pixels(tmp_path / "a.png")
    for kind, colour in COLOURS.items():
        assert near(picture[:-60], colour).any(), f"{kind} above the legend"


def test_more_layers_than_can_be_read_are_thinned_out(tmp_path):
    few, many = (tmp_path / "few.png", tmp_path / "many.png")
    draw_per_frame(few, np.ones((32, 4)), TITLE)
    draw_per_frame(many, np.ones((80, 4)), TITLE)
    assert pixels(few).shape == pixels(many).shape


def test_kept_tokens_show_and_dropped_ones_are_veiled(tmp_path):
    frames = np.full((20, 30, 60, 3), (16, 16, 96), np.uint8)
    kept = np.zeros((20, 3, 3), bool)
    draw_kept(tmp_path / "none.png", frames, {"FastV": kept}, TITLE)
    kept[4] = True
    draw_kept(tmp_path / "one.png", frames, {"FastV": kept}, TITLE)
    shown = [near(pixels(tmp_path / f"{name}.png"), "#101060").mean() for name in ("none", "one")]
    assert shown[0] == 0
    assert shown[1] > 0.01, "a frame of 20, in two lines of 16"


@pytest.fixture(scope="module")
def written(bikes, tmp_path_factory):
    """The folder that the command has written, and what it has said."""
    folder = tmp_path_factory.mktemp("figures") / "new"
    result = subprocess.run(
        [sys.executable, "-m", "adatp", "figures", bikes, "--question", "What </script> is it?", "--frames", "6",
         "--methods", "adatp,uniform", "--flops", "0.5", "--out", folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder, result


class TestCommand:
    def test_what_is_written_is_what_is_told(self, written):
        folder, result = written
        told = [line for line in result.stdout.splitlines() if line.startswith(str(folder))]
        assert sorted(told) == sorted(str(path) for path in folder.iterdir())
        assert {path.name for path in folder.iterdir()} == {
            "index.html", "attention_per_frame.png", "attention_per_position.png", "top_tokens.png", "kept.png",
        }  # fmt: skip

    def test_the_table_has_a_line_a_layer(self, written):
        _, result = written
        lines = [line.split() for line in result.stdout.splitlines() if re.match(r" *\d+ +\d", line)]
        assert [line[0] for line in lines] == [str(layer) for layer in range(16)]
        assert all(line[1].endswith("%") and float(line[5]) >= 1 for line in lines)

    def test_every_method_ran_at_the_same_cost(self, written):
        page = (written[0] / "index.html").read_text()
        study = json.loads(re.search(r'<script id="study"[^>]*>(.*?)</script>', page, re.S)[1])
        assert [run["id"] for run in study["runs"]] == ["adatp", "uniform"]
        assert [run["name"] for run in study["runs"]] == ["AdaTP", "Uniform"]
        assert study["question"] == "What </script> is it?"
        assert study["runs"][1]["flops"] == pytest.approx(0.5, abs=0.02)
        assert study["runs"][1]["settings"].startswith("keep=")
        assert any("knows the videos of" in note for note in study["notes"])
        assert study["video"]["name"] == "bikes.mp4"
        assert len(study["frames"]["jpeg"]) == 6

    def test_progress_goes_to_stderr(self, written):
        assert "looking where the model looks" in written[1].stderr
        assert "answering with uniform" in written[1].stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--frames", "0"), "--frames must be at least 1, got 0"),
        (("--question", " "), "--question is empty"),
        (("--out", "{file}/below"), "--out cannot be written"),
    ],
)
def test_input_that_cannot_be_used(capsys, tmp_path, changed, message):
    (tmp_path / "file").write_text("")
    given = {"--question": "Why?", "--out": str(tmp_path / "out")}
    given[changed[0]] = changed[1].replace("{file}", str(tmp_path / "file"))
    code = main(["figures", "missing.mp4", *(part for pair in given.items() for part in pair)])
    assert code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["figures", "a.mp4", "--question", "Why?", "--methods", "adatp,lost"])
    assert "lost" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("adatp.cli.options.find_spec", lambda name: None)
    assert main(["figures", "a.mp4", "--question", "Why?"]) == 2
    assert "pip install 'adatp[overlay]'" in capsys.readouterr().err
