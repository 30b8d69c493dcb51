"""The study of accuracy: who is asked what, what is counted, and what the tables say of it."""

import json

import numpy as np
import pytest
import torch

from adatp.evaluation.ablation import plan
from adatp.evaluation.accuracy import PEERS, SETTINGS, Examined, Judged, Looked, Outcome, Trial, examine, trials
from adatp.evaluation.accuracy_summary import GROUPS, summarise
from adatp.evaluation.bias import top_tokens
from adatp.evaluation.bootstrap import RESAMPLES, paired_difference
from adatp.evaluation.heldout import paper_of, papers
from adatp.evaluation.measure import EncodedClip
from adatp.evaluation.paper.rows import load_paper
from adatp.evaluation.session import Loaded
from adatp.hf.attention_map import visual_attention
from adatp.methods import METHODS, AdaTP, FastV
from adatp.small.untrained import load_untrained
from adatp.tables.accuracy import accuracy, biases, by_kind, markdown, print_study
from adatp.world.clips import make_clip
from adatp.world.drawing import draw
from adatp.world.files import FPS
from adatp.world.questions import KINDS


def load() -> Loaded:
    made = load_untrained(image_size=84, layers=16)
    return Loaded("untrained", made.model, made.processor, made.relevance)


ADATP = AdaTP(p=1.0)
TRIED = (Trial(ADATP), Trial(METHODS["uniform"](), ADATP), Trial(METHODS["dycoke"](), ADATP), Trial(AdaTP(tau_s=0.5)))


def run(workers: int, questions: int) -> list[Examined]:
    return list(
        examine(load, TRIED, clips=2, questions=questions, workers=workers, impl="reference", tell=lambda _: None)
    )


@pytest.fixture(scope="module")
def examined() -> list[Examined]:
    return run(workers=1, questions=3)


class TestQuestions:
    def test_they_are_always_the_same(self):
        assert list(papers(3, 4)) == list(papers(3, 4))
        assert list(papers(3, 4))[2] == paper_of("heldout", 2, questions=4, options=True)

    def test_they_are_about_what_only_the_split_combines_and_every_other_has_options(self):
        for paper in papers(20, 8):
            assert all(asked.is_new for asked in paper.questions)
            assert 5 <= len(paper.questions) <= 8
            has_options = [bool(asked.options) for asked in paper.questions]
            assert has_options == [i % 2 == paper.number % 2 for i in range(len(has_options))]

    def test_a_clip_is_as_read_from_a_file(self):
        clip = paper_of("heldout", 1, questions=1, options=False).clip()
        assert np.array_equal(clip.frames, draw(make_clip("heldout", 1)))
        assert clip.metadata["fps"] == FPS
        assert clip.metadata["frames_indices"] == list(range(32))


class TestBootstrap:
    def test_the_difference_is_of_the_questions_and_the_interval_of_the_clips(self):
        rng = np.random.default_rng(3)
        clips = np.repeat(np.arange(30), rng.integers(1, 6, 30))
        ours, theirs = rng.random(len(clips)) < 0.8, rng.random(len(clips)) < 0.6
        difference, low, high = paired_difference(ours, theirs, clips)
        assert difference == pytest.approx(ours.mean() - theirs.mean())
        draws = []
        for _ in range(4000):
            drawn = np.concatenate([np.flatnonzero(clips == clip) for clip in rng.integers(0, 30, 30)])
            draws.append(ours[drawn].mean() - theirs[drawn].mean())
        assert (low, high) == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.015)
        assert (difference, low, high) == paired_difference(ours, theirs, clips)

    def test_questions_of_one_clip_are_not_independent(self):
        ours, theirs = [True] * 50 + [False] * 50, [False] * 50 + [True] * 50
        _, low, high = paired_difference(ours, theirs, [0] * 50 + [1] * 50)
        assert (low, high) == (-1, 1)
        _, low, high = paired_difference(ours, theirs, range(100))
        assert -0.3 < low < high < 0.3

    def test_no_difference(self):
        assert paired_difference([True, False], [True, False], [0, 1]) == (0, 0, 0)
        assert RESAMPLES >= 10_000

    @pytest.mark.parametrize("counts", [(0, 0, 0), (1, 2, 1), (1, 1, 2)])
    def test_refused(self, counts):
        with pytest.raises(ValueError, match="one entry for each question, at least one, got"):
            paired_difference(*([True] * n for n in counts))


class TestExamine:
    def test_every_question_and_trial(self, examined):
        for paper, own in zip(papers(2, 3), examined, strict=True):
            assert [judged.asked for judged in own.judged] == list(paper.questions)
            assert all(judged.clip == paper.number for judged in own.judged)
            for judged in own.judged:
                assert list(judged.outcomes) == list(TRIED)
                if judged.asked.options:
                    assert judged.plain.answer in judged.asked.options
                assert judged.plain.flops == 1
                assert judged.plain.kept == 32 * 9

    def test_a_peer_costs_what_adatp_costs_on_each_question(self, examined):
        costs = set()
        for judged in examined[0].judged + examined[1].judged:
            own, peer = judged.outcomes[TRIED[0]], judged.outcomes[TRIED[1]]
            assert peer.flops == pytest.approx(own.flops, abs=0.002)
            assert own.kept < peer.kept  # one drops between the layers, the other before
            costs.add(own.flops)
        assert len(costs) > 1

    def test_a_cost_out_of_reach_is_told(self, examined):
        reasons = [judged.outcomes[TRIED[2]] for own in examined for judged in own.judged]
        assert all(isinstance(reason, str) and "flops must be from" in reason for reason in reasons)

    def test_what_is_right(self, examined):
        for own in examined:
            for judged in own.judged:
                for outcome in (judged.plain, judged.outcomes[TRIED[0]]):
                    assert outcome.right == (outcome.answer.lower() == judged.asked.answer.lower())

    def test_where_the_text_looks(self, examined):
        for own in examined:
            looked = own.looked
            assert looked.per_frame.shape == (16, 32)
            torch.testing.assert_close(looked.per_frame.mean(1), torch.ones(16))
            torch.testing.assert_close(looked.per_position.mean((1, 2)), torch.ones(16))
            assert ((looked.first >= 0) & (looked.first + looked.last <= 1)).all()

    def test_the_ends_of_the_clip_are_told_apart(self, examined):
        loaded, paper = load(), paper_of("heldout", 0, questions=3, options=True)
        inputs = EncodedClip(loaded, paper.clip()).inputs(paper.questions[0].text)
        top = top_tokens(visual_attention(loaded.model, inputs).scores).double()
        for own, frames in ((examined[0].looked.first, top[:, :4]), (examined[0].looked.last, top[:, -4:])):
            torch.testing.assert_close(own, frames.sum((1, 2)) / top.sum((1, 2)))

    def test_several_processes_find_the_same(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            one = run(workers=1, questions=1)
        finally:
            torch.set_num_threads(threads)
        for own, other in zip(one, run(workers=2, questions=1), strict=True):
            assert own.judged == other.judged
            assert all(torch.equal(a, b) for a, b in zip(own.looked, other.looked, strict=True))

    def test_what_else_goes_wrong_is_no_refusal(self):
        broken = [Trial(FastV(layer=99))]
        with pytest.raises(ValueError, match="layer"):
            list(examine(load, broken, clips=1, questions=1, workers=1, impl="reference", tell=lambda _: None))


def test_all_trials():
    found = trials()
    assert {trial.method for trial in found if trial.like is None} == {AdaTP(p=p) for p in SETTINGS}
    assert set(PEERS) == set(METHODS) - {"adatp", "none"}
    assert {(trial.method.name, trial.like.p) for trial in found if trial.like} == {
        (name, p) for name in PEERS for p in SETTINGS
    }
    firsts = [i for i, trial in enumerate(found) if trial.like is None]
    assert max(firsts) < min(i for i, trial in enumerate(found) if trial.like)


def made_up() -> tuple[list[Examined], list[Trial]]:
    """Two clips: AdaTP loses one question that the unpruned model answers, FastV two; DyCoke cannot."""
    tried = [Trial(ADATP), Trial(FastV(), ADATP), Trial(METHODS["dycoke"](), ADATP)]
    found, wrong = [], {ADATP: {1}, FastV(): {1, 4}}
    number = 0
    for paper in papers(2, 4):
        judged = []
        for asked in paper.questions:
            outcomes: dict[Trial, Outcome | str] = {tried[2]: "flops must be more"}
            for trial in tried[:2]:
                right = number not in wrong[trial.method]
                outcomes[trial] = Outcome("x" if right else "y", right, 0.3 + 0.1 * (number % 2), 60)
            judged.append(Judged(paper.number, asked, Outcome("x", True, 1.0, 0), outcomes))
            number += 1
        frames = torch.ones(2, 32)
        frames[1, 31] = 2
        found.append(
            Examined(judged, Looked(frames, torch.ones(2, 4, 4), torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.9])))
        )
    return found, tried


@pytest.fixture(scope="module")
def study() -> dict:
    found, tried = made_up()
    study = summarise(found, tried, [])
    return {"model": "m", "clips": 2, "frames": 32, "seconds": 1.0, **json.loads(json.dumps(study))}


class TestSummary:
    def test_counts(self, study):
        assert study["questions"] == 8
        assert study["groups"]["open"] == study["groups"]["options"] == 4
        assert sum(study["groups"][kind] for kind in KINDS) == 8
        own, peer, refused = study["methods"]
        assert own["accuracy"] == 7 / 8
        assert own["difference"] == -1 / 8
        assert own["flops"] == pytest.approx(0.35)
        assert own["right"] == "10111111"
        assert peer["right"] == "10110111"
        assert peer["same"] == 6 / 8
        assert refused == {
            "method": "dycoke", "p": 1.0, "refused": "flops must be more", "refused_questions": 8,
        }  # fmt: skip
        assert study["unpruned"]["accuracy"] == 1
        assert study["unpruned"]["difference_interval"] == [0, 0]
        assert own["difference_interval"] == [-0.25, 0]

    def test_groups(self, study):
        asked = [asked for paper in papers(2, 4) for asked in paper.questions]
        own = study["methods"][0]
        assert set(own["by_group"]) == set(GROUPS)
        for kind in KINDS:
            right = [i != 1 for i, question in enumerate(asked) if question.kind == kind]
            assert own["by_group"][kind] == (sum(right) / len(right) if right else None)
        short = [i != 1 for i, question in enumerate(asked) if question.is_short]
        assert own["by_group"]["short scene"] == (sum(short) / len(short) if short else None)

    def test_biases(self, study):
        found = study["biases"]
        assert found["top_in_last_frames"] == [0.3, 0.9]
        assert found["uniform"] == 4 / 32
        rows = biases(study)
        assert rows[2] == ["1", "20.0%", "90.0%", "2.00x at 31", "1.00x at 0, 0"]

    def test_tables(self, study):
        rows = accuracy(study)
        assert rows[0] == ["method", "p = 1: 35.0% of the FLOPs"]
        assert [row[0] for row in rows[1:]] == ["unpruned", "adatp", "fastv", "dycoke"]
        assert rows[2][1] == "87.5% (-12.5 [-25.0, +0.0])"
        assert rows[4][1] == "cannot"
        kinds = by_kind(study, 1.0)
        assert kinds[0][1] == f"what ({study['groups']['what']})"
        assert {len(row) for row in kinds} == {len(GROUPS) + 1}
        text = markdown(study)
        assert "| adatp | 87.5% (-12.5 [-25.0, +0.0]) |" in text
        assert "dycoke at AdaTP's p = 1 cannot cost so little on 8 of 8 questions" in text

    @pytest.mark.parametrize(("off", "told"), [(0.004, False), (0.006, True), (-0.006, True)])
    def test_a_cost_that_is_missed_is_told(self, study, off, told):
        own, peer, refused = study["methods"]
        text = markdown({**study, "methods": [own, {**peer, "flops": own["flops"] + off}, refused]})
        assert (f"The nearest that fastv gets to AdaTP's p = 1 is {own['flops'] + off:.1%}" in text) == told

    def test_printed(self, study, capsys):
        machine = {
            "dtype": "float32", "attention": "sdpa", "processor": "a", "platform": "b", "cores": 2, "threads": 2,
            "device": "cpu", "impl": "reference", "torch": "1", "transformers": "1",
        }  # fmt: skip
        print_study({**study, "machine": machine}, ["a note"])
        out = capsys.readouterr().out
        assert "note: a note" in out
        assert "87.5% (-12.5 [-25.0, +0.0])" in out


def test_ablations_are_summarised():
    found, tried = made_up()
    ablations, _ = plan(load_paper(), "2", 16, 1.0)
    for own in found:
        for judged in own.judged:
            for variant in ablations[0].variants:
                judged.outcomes[Trial(variant.method)] = Outcome("x", True, 0.5, 9)
    study = summarise(found, tried, ablations)
    (table,) = study["ablations"]
    assert table["table"] == "2"
    assert [row["varied"] for row in table["rows"]] == [variant.settings for variant in ablations[0].variants]
    assert all(row["flops"] == 0.5 or row["varied"]["local_debias"] for row in table["rows"])
    assert "Tab. 2, modules" in markdown({"model": "m", **study})
