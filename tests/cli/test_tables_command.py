"""`adatp tables`, through a parser of its own."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

from adatp.cli import tables
from adatp.evaluation.paper.rows import Counter, load_paper, published_rows
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.evaluation.paper.standin import load_standin
from adatp.layout import VideoSize
from adatp.models import family_of
from adatp.small.untrained import load_untrained
from adatp.video import sample_frames


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    tables.add(parser.add_subparsers())
    parsed = parser.parse_args(["tables", *map(str, arguments)])
    assert parsed.command(parsed) == 0
    return capsys.readouterr()


@pytest.fixture(scope="module")
def rows():
    return published_rows(Counter())


@pytest.fixture
def counted(monkeypatch, rows):
    """The rows, without counting them again."""
    monkeypatch.setattr("adatp.evaluation.paper.rows.published_rows", lambda count: rows)


@pytest.fixture
def short(monkeypatch):
    """The published models with four frames."""
    for name, shape in MODEL_SHAPES.items():
        monkeypatch.setitem(MODEL_SHAPES, name, replace(shape, videos=(VideoSize(4, shape.grid),)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A narrow model with OneVision-0.5B's layers and grid, as a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    standin = load_standin(MODEL_SHAPES["onevision-0.5b"])
    standin.model.save_pretrained(folder)
    standin.processor.save_pretrained(folder)
    return folder


class TestWithoutAVideo:
    def test_json_is_all_there_is_on_stdout(self, capsys, rows):
        out, err = run(capsys, "--json")
        result = json.loads(out)
        assert "counting" in err
        assert result["rows"] == [row.to_dict() for row in rows]
        assert result["paper_follows"] == "linear"
        assert set(result["mean_difference"]) == {"linear", "with_attention", "with_tower"}
        assert result["mean_difference"]["linear"] < 1 < result["mean_difference"]["with_attention"]
        assert set(result["mean_difference_with_free_text_tokens"]) == set(result["mean_difference"])
        assert result["text_tokens"] == {"onevision-0.5b": 113, "onevision-7b": 130, "llava-video-7b": 106}
        assert "FlopCounterMode" in result["counted"]
        assert result["notes"] == []

    def test_tables(self, capsys, counted):
        out, _ = run(capsys)
        text = " ".join(out.split())
        for title in ("Tab. 1, LLaVA-OneVision-0.5B", "Tab. 1, LLaVA-Video-7B", "Tab. 2, ", "Tab. 3, "):
            assert title in out
        assert "fastv keep=0.5 54.98 45.03 84.53 55.19 -0.21" in text
        assert "adatp p=2 <= 45.32 <= 37.13 <= 82.31 41.08 <= +4.24" in text
        assert "visionzip 85/196* 44.37" in text
        assert "none of the modules 27.64 21.37 77.87 27.65 -0.01" in text
        assert "segments, global <= 27.64" in text
        assert "layers 2-16 <= 29.93" in text
        assert "(1) the paper's 35.20 would take keep=0.288" in text
        assert "The paper's figures follow linear." in text
        assert "a fit, the paper states no such setting" in text
        assert "None" not in out
        figures = [row["flops"] for table in ("table1", "table2", "table3") for row in load_paper()[table]]
        assert all(f"{figure:.2f}" in out for figure in figures if figure != 100)
        assert max(map(len, out.splitlines())) <= 80

    def test_the_way_of_counting_is_found_not_given(self, capsys, monkeypatch, rows):
        """With figures that attention explains, attention is what the paper is said to count."""
        other = [replace(row, paper=row.ours.with_attention if row.paper else None) for row in rows]
        monkeypatch.setattr("adatp.evaluation.paper.rows.published_rows", lambda count: other)
        assert json.loads(run(capsys, "--json").out)["paper_follows"] == "with_attention"
        assert "The paper's figures follow with attention." in " ".join(run(capsys).out.split())

    def test_a_model_wants_a_video(self, capsys):
        with pytest.raises(ValueError, match="--model says what to run videos on; give a VIDEO too"):
            run(capsys, "--model", "anything")


class TestWithAVideo:
    def test_stand_ins(self, capsys, bikes, short):
        video = bikes.parent / "bigbuckbunny.mp4"  # with four frames bikes has no two alike
        out, err = run(capsys, video, "--json")
        result = json.loads(out)
        assert "bigbuckbunny.mp4 on llava-video-7b, run 3 of 3" in err
        runs = [row for row in result["rows"] if row["kind"] == "run"]
        bounds = [row for row in result["rows"] if row["kind"] == "bound"]
        assert len(runs) == len(bounds) == 9 + 2 + 5
        for bound, ran in zip(bounds, runs, strict=True):
            assert ran["video"] == str(video)
            assert bound["video"] is None
            assert [ran[key] for key in ("table", "model", "settings")] == [
                bound[key] for key in ("table", "model", "settings")
            ]
            for way, share in ran["ours"].items():
                assert share <= bound["ours"][way]
            assert "segments significant" in ran["note"]
        assert all(ran["ours"] != bound["ours"] for bound, ran in zip(bounds, runs, strict=True))
        assert any("scores are those of random weights" in note for note in result["notes"])
        # Tab. 1 at p = 1, the last row of Tab. 2 and the middle one of Tab. 3 are one run
        same = [row["ours"] for row in runs if row["model"] == "onevision-0.5b" and row["paper"] == 26.43]
        assert len(same) == 3
        assert same[0] == same[1] == same[2]

    def test_a_checkpoint_runs_in_its_own_place(self, capsys, bikes, short, checkpoint):
        out, _ = run(capsys, bikes, bikes.parent / "bigbuckbunny.mp4", "--model", checkpoint, "--relevance", "none")
        text = " ".join(out.split())
        assert "the runs of onevision-0.5b are on" in text
        assert "random weights" not in text
        assert "no global debiasing" in text
        tables_of = {title: part for title, _, part in (p.partition("\n") for p in out.split("Tab. ")[1:])}
        for title, part in tables_of.items():
            assert ("bikes.mp4" in part) == ("bigbuckbunny.mp4" in part) == ("0.5B" in title)

    def test_a_model_like_none_of_the_papers(self, capsys, bikes, counted, tmp_path):
        small = load_untrained(image_size=84, layers=16)
        small.model.save_pretrained(tmp_path)
        small.processor.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"has 16 decoder layers and a grid of 3 x 3 .*onevision-7b: 28 and 14 x 14"
        ):
            run(capsys, bikes, "--model", tmp_path)

    def test_a_video_too_short(self, capsys, bikes, monkeypatch, counted):
        monkeypatch.setattr(
            "adatp.evaluation.session.sample_frames", lambda path, count, limits: sample_frames(path, count - 1)
        )
        with pytest.raises(ValueError, match=r"bikes\.mp4 has 31 frames; onevision-0.5b takes 32"):
            run(capsys, bikes)

    def test_a_file_that_is_no_video(self, capsys, tmp_path, counted, pyav):
        with pytest.raises(ValueError, match=r"nothing\.mp4"):
            run(capsys, tmp_path / "nothing.mp4")


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_a_stand_in_is_laid_out_like_the_published_model(name):
    shape = MODEL_SHAPES[name]
    standin = load_standin(shape)
    family = family_of(standin.model)
    assert (len(family.decoder.layers), family.grid) == (shape.layers, shape.grid)
    assert standin.processor.num_image_tokens == 27 * 27


def test_making_a_stand_in_draws_nothing_from_the_callers_random_numbers():
    before = torch.get_rng_state()
    first, second = (load_standin(MODEL_SHAPES["llava-video-7b"]).model.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
