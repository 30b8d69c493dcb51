"""The model that comes with the package: it is what was trained, it answers, and `adatp demo` shows it."""

import json
import shutil

import pytest
import torch

from adatp.cli.main import main
from adatp.evaluation.accuracy import Trial, examine
from adatp.evaluation.session import load
from adatp.methods import AdaTP
from adatp.small.checkpoint import FOLDER, check
from adatp.small.training.architecture import DECODER_LAYERS
from adatp.small.training.train import ALIGN, TEACH
from adatp.video import sample_frames
from adatp.world.clips import FRAMES

MEGABYTE = 1 << 20


def loaded():
    return load(None, device="cpu", dtype="auto", attention="sdpa", relevance="auto")


def test_it_is_as_it_was_made_and_small():
    check(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 16 * MEGABYTE


def test_it_is_loaded_in_full_precision():
    model = loaded().model
    assert len(model.model.language_model.layers) == DECODER_LAYERS
    assert model.dtype == torch.float32


def test_one_that_was_changed_is_refused(tmp_path, monkeypatch, capsys):
    shutil.copytree(FOLDER, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/siglip/config.json").unlink()
    monkeypatch.setattr("adatp.evaluation.session.FOLDER", tmp_path / "checkpoint")
    assert main(["demo", "--video", str(tmp_path / "clip.mp4")]) == 2
    assert "siglip/config.json is missing; restore it" in capsys.readouterr().err


def test_the_log_is_of_the_recipe():
    entries = [json.loads(line) for line in (FOLDER.parent / "training" / "training.jsonl").read_text().splitlines()]
    for stage, phases in (("align", ALIGN), ("teach", TEACH)):
        own = [entry for entry in entries if entry["stage"] == stage and "validation" in entry]
        steps = 0
        for phase in phases:
            steps += phase.steps
            assert [entry["phase"] for entry in own if entry["step"] == steps] == [phase.name]
        assert own[-1]["step"] == steps


def test_it_answers_held_out_questions_pruned_and_not():
    trial = Trial(AdaTP(p=1.0))
    found = list(examine(loaded, [trial], clips=8, questions=8, workers=1, impl="reference", tell=lambda _: None))
    judged = [one for own in found for one in own.judged]
    assert sum(one.plain.right for one in judged) >= 0.8 * len(judged)
    assert sum(one.outcomes[trial].right for one in judged) >= 0.7 * len(judged)
    assert all(one.outcomes[trial].flops < 0.4 for one in judged)


class TestDemo:
    def test_every_answer_is_right(self, tmp_path, capsys, pyav):
        assert main(["demo", "--video", str(tmp_path / "clip.mp4")]) == 0
        out = capsys.readouterr().out
        assert "wrong" not in out
        assert "right: 9 of 9 unpruned, 9 of 9 pruned" in out
        assert len(sample_frames(tmp_path / "clip.mp4", FRAMES).frames) == FRAMES

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--clip", "-1"], "--clip must be 0 or more, got -1"),
            (["--p", "9"], "p must be in"),
            (["--video", "nowhere/x.mp4"], "nowhere/x.mp4"),
        ],
    )
    def test_refused(self, arguments, said, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["demo", *arguments]) == 2
        assert said in capsys.readouterr().err

    def test_without_scikit_learn(self, monkeypatch, capsys):
        monkeypatch.setattr("adatp.cli.options.find_spec", lambda name: None)
        assert main(["demo"]) == 2
        assert "pip install 'adatp[world]'" in capsys.readouterr().err
