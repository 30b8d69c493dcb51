"""`adatp study` and `adatp world`."""

import json

import pytest

from adatp.cli.main import main
from adatp.evaluation.questions import load_questions
from adatp.video import sample_frames
from adatp.world.clips import FRAMES


def test_study(tmp_path, capsys):
    assert main(["study", "--clips", "1", "--questions", "1", "--out", str(tmp_path / "s"), "--json"]) == 0
    study = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "s/study.json").read_text())
    assert {key: value for key, value in study.items() if key != "notes"} == written
    assert study["questions"] == 1
    assert [table["table"] for table in study["ablations"]] == ["2", "3", "4a", "4b", "4c", "4d"]
    assert (tmp_path / "s/study.md").read_text().startswith("**Accuracy**")
    assert (tmp_path / "s/accuracy.png").stat().st_size > 10_000


@pytest.mark.parametrize("options", [False, True])
def test_world_writes_a_question_set(tmp_path, capsys, options, pyav):
    arguments = ["world", str(tmp_path / "w"), "--clips", "2", "--questions", "3", "--split", "validation"]
    assert main([*arguments, *(["--options"] if options else [])]) == 0
    assert "2 videos and 6 questions" in capsys.readouterr().out
    questions = load_questions(tmp_path / "w/questions.json")
    assert [question.video.name for question in questions] == ["validation-0.mp4"] * 3 + ["validation-1.mp4"] * 3
    assert sum(bool(question.options) for question in questions) == (3 if options else 0)
    assert len(sample_frames(questions[0].video, FRAMES).frames) == FRAMES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["world", "w", "--clips", "0"], "--clips must be at least 1, got 0"),
        (["study", "--questions", "0"], "--questions must be at least 1, got 0"),
        (["study", "--device", "cuda:x"], "--device must be"),
    ],
)
def test_refused(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["world", "w"], "pip install 'adatp[world]'"), (["study", "--out", "s"], "pip install 'adatp[overlay]'")],
)
def test_what_is_not_installed(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adatp.cli.options.find_spec", lambda name: None)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
