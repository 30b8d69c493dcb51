"""`adatp ablate`: the paper's ablations on a set of questions."""

import argparse
import json
from types import SimpleNamespace

import pytest
import torch
from videollm import make_clip

import adatp.evaluation.ablation
from adatp.cli import ablate as command
from adatp.evaluation.ablation import Outcome, plan, run, summarise
from adatp.evaluation.agreement import Agreement, agreement
from adatp.evaluation.answers import chosen_letter, is_exact, letter_tokens, wilson
from adatp.evaluation.measure import EncodedClip, Said, prefill
from adatp.evaluation.paper.rows import load_paper
from adatp.evaluation.questions import Question
from adatp.evaluation.session import Loaded
from adatp.methods import AdaTP, Unpruned
from adatp.video import Clip, Limits


@pytest.fixture(scope="module")
def loaded(sdpa) -> Loaded:
    return Loaded("small", sdpa.model, sdpa.processor, sdpa.relevance)


def clip_of(video, frames: int) -> Clip:
    """Another one for every path."""
    note = "short" if video == "b" else None
    times = torch.arange(frames).double().numpy()
    return Clip(make_clip(frames, seed=ord(video[0])), times, float(frames), frames, note)


@pytest.fixture
def decoded(monkeypatch):
    """The videos that are decoded, in order."""
    videos = []
    monkeypatch.setattr(
        adatp.evaluation.ablation,
        "sample_frames",
        lambda video, frames, limits: videos.append(video) or clip_of(video, frames),
    )
    return videos


def ask(loaded, questions, methods=()):
    return run(loaded, questions, methods, frames=6, limits=Limits(), impl="auto", tell=lambda step: None)


class TestPlan:
    def test_the_papers_model_has_the_papers_settings(self):
        found, notes = plan(load_paper(), "all", 24, 1.0)
        rows = {ablation.number: [v.method for v in ablation.variants] for ablation in found}
        assert notes == []
        assert list(rows) == ["2", "3", "4a", "4b", "4c", "4d"]
        assert rows["2"] == [
            AdaTP(last=12, segments=seg, global_debias=far, local_debias=near)
            for seg, far, near in ((False, False, False), (True, False, False), (True, True, False), (True, True, True))
        ]
        assert rows["3"] == [AdaTP(last=last) for last in (8, 10, 12, 14, 16)]
        assert rows["4a"] == [AdaTP(last=12, tau_t=value) for value in (0.03, 0.04, 0.05, 0.06, 0.07)]
        assert rows["4b"] == [AdaTP(last=12, alpha=value) for value in (1.6, 1.8, 2.0, 2.2, 2.4, 2.6)]
        assert rows["4c"] == [AdaTP(last=12, gamma=value) for value in (0.5, 0.75, 1.0)]
        assert rows["4d"] == [AdaTP(last=12, tau_s=value) for value in (0.6, 0.8, 0.9, 0.95, 1.0)]
        assert AdaTP(last=12).cuts(24) == AdaTP().cuts(24)
        assert found[1].variants[0].paper["flops"] == 24.46

    @pytest.mark.parametrize(
        ("layers", "lasts", "told"),
        [
            (28, [12, 14, 16, 18, 20], []),
            (18, [2, 4, 6, 8, 10], []),
            (15, [2, 2, 3, 5, 7], ["last = N - 16 = -1", "last = N - 14 = 1"]),
            (10, [2, 2, 2, 2, 2], [f"last = N - {far} = {10 - far}" for far in (12, 16, 14, 10)]),
        ],
    )
    def test_another_model_ends_as_far_from_its_last_layer(self, layers, lasts, told):
        (ablation,), notes = plan(load_paper(), "3", layers, 1.0)
        assert [v.method.last for v in ablation.variants] == lasts
        assert [v.settings for v in ablation.variants] == [{"last": last} for last in lasts]
        assert [note.split(" is no layer")[0] for note in notes] == told
        for variant in ablation.variants:
            variant.method.check(layers)

    def test_one_table_at_another_compression(self):
        found, _ = plan(load_paper(), "4", 24, 1.5)
        assert [ablation.number for ablation in found] == ["4a", "4b", "4c", "4d"]
        assert {v.method.p for ablation in found for v in ablation.variants} == {1.5}


class TestRun:
    QUESTIONS = (
        Question("a", "Which?", ("one", "two", "three"), "A"),
        Question("b", "Why?"),
        Question("a", "Which is it?", ("one", "two")),
    )

    def test_every_method_meets_every_question(self, loaded, decoded):
        methods = [AdaTP(last=2), AdaTP(last=3, local_debias=False), AdaTP(last=2)]
        outcomes = ask(loaded, self.QUESTIONS, methods)
        assert decoded == ["a", "b"], "each once"
        assert outcomes.notes == ["b: short"]
        assert list(outcomes.of) == [Unpruned(), *methods[:2]]
        for method, own in outcomes.of.items():
            for question, outcome in zip(self.QUESTIONS, own, strict=True):
                inputs = EncodedClip(loaded, clip_of(question.video, 6)).inputs(question.prompt)
                plain = prefill(loaded, inputs)
                ran = plain if method == Unpruned() else prefill(loaded, inputs, method)
                ratio = 1.0 if ran.report is None else ran.report.flops.ratio
                assert outcome.flops == pytest.approx(ratio)
                assert outcome.agreement == agreement(plain.logits, ran.logits)
                if question.options:
                    letters = {x: loaded.processor.tokenizer.convert_tokens_to_ids(x) for x in question.letters}
                    assert outcome.answer == max(letters, key=lambda letter: ran.logits[letters[letter]])
            assert own[0].right == (own[0].answer == "A")
            assert own[1][2:] == (None, None)
            assert own[2].answer in "AB"
            assert own[2].right is None

    def test_prefills_are_as_few_as_can_be(self, loaded, decoded, monkeypatch):
        prefills, towers = [], []
        monkeypatch.setattr(
            adatp.evaluation.ablation, "prefill", lambda *a, **k: prefills.append(a[2:]) or prefill(*a, **k)
        )
        handle = loaded.model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
        ask(loaded, self.QUESTIONS, [AdaTP(last=2), AdaTP(last=2)])
        handle.remove()
        assert prefills == [(), (AdaTP(last=2),)] * 3
        if "mm_encoder_outputs" in EncodedClip(loaded, clip_of("a", 2)).inputs("?"):
            assert len(towers) == 2, "one a video"

    def test_a_free_answer_is_what_is_generated(self, loaded, decoded):
        def asked(answer):
            return ask(loaded, [Question("a", "Why?", (), answer)], [AdaTP(last=2)]).of

        said = {method: own[0].answer for method, own in asked("x").items()}
        inputs = EncodedClip(loaded, clip_of("a", 6)).inputs("Why?")
        output = loaded.model.generate(**inputs, max_new_tokens=10, do_sample=False)
        text = loaded.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said[Unpruned()] == text.strip() != ""
        assert said[Unpruned()] != said[AdaTP(last=2)]
        assert not any(own[0].right for own in asked("x").values())

    def test_a_free_answer_is_judged(self, loaded, decoded, monkeypatch):
        monkeypatch.setattr(
            adatp.evaluation.ablation, "answer", lambda *_, tokens, **__: Said(f" It is  GREEN. {tokens}", None)
        )
        for answer, right in (("it is green. 41.", False), ("it is green. 40.", True)):
            (outcome,) = ask(loaded, [Question("a", "Why?", (), answer)]).of[Unpruned()]
            assert outcome.right is right


def test_a_summary_by_hand():
    outcomes = [
        Outcome(0.2, Agreement(0.5, True, 0.1), "A", True),
        Outcome(0.4, Agreement(1.5, False, 0.1), "B", False),
        Outcome(0.6, Agreement(1.0, False, 0.1), "B", None),
    ]
    own = summarise(outcomes)
    assert own[1:3] == (1, 2)
    assert (own.flops, own.same_top, own.kl) == (pytest.approx(0.4), pytest.approx(1 / 3), pytest.approx(1.0))


class TestAnswers:
    @staticmethod
    def tokenizer(tokens):
        return SimpleNamespace(encode=lambda text, add_special_tokens: tokens[text])

    def test_letters_with_and_without_a_space(self):
        own = {"A": [32], " A": [362], "B": [33], " B": [425]}
        assert letter_tokens(self.tokenizer(own), "AB") == {"A": [32, 362], "B": [33, 425]}

    def test_a_space_of_its_own_begins_no_letter(self, loaded):
        encode = loaded.processor.tokenizer.convert_tokens_to_ids
        assert letter_tokens(loaded.processor.tokenizer, "AC") == {"A": [encode("A")], "C": [encode("C")]}

    def test_a_letter_with_a_space_may_be_the_same_token(self):
        assert letter_tokens(self.tokenizer({"A": [7], " A": [7], "B": [8], " B": [8]}), "AB") == {"A": [7], "B": [8]}

    def test_a_letter_of_several_tokens_is_its_first(self):
        assert letter_tokens(self.tokenizer({"A": [7, 9], " A": [1, 7, 9]}), "A") == {"A": [7]}

    def test_letters_that_begin_alike_are_refused(self):
        with pytest.raises(ValueError, match="letters AB must begin with different tokens"):
            letter_tokens(self.tokenizer({"A": [1, 7], " A": [1, 7], "B": [1, 8], " B": [1, 8]}), "AB")

    @pytest.mark.parametrize(
        ("logits", "letter"), [([0, 3, 1, 2, 9], "A"), ([0, 1, 2, 3, 9], "B"), ([5, 0, 1, 4, 9], "A"), ([3] * 5, "A")]
    )
    def test_the_highest_logit_chooses(self, logits, letter):
        assert chosen_letter(torch.tensor(logits).float(), {"A": [0, 1], "B": [2, 3]}) == letter

    @pytest.mark.parametrize(
        ("answer", "right", "exact"),
        [
            ("Green", "green", True),
            (" a  dog. ", "A dog", True),
            ("a dog", "a\tdog .", True),
            ("a dog..", "a dog", False),
            ("adog", "a dog", False),
            ("a dog!", "a dog", False),
        ],
    )
    def test_case_spaces_and_a_full_stop_do_not_count(self, answer, right, exact):
        assert is_exact(answer, right) is exact

    @pytest.mark.parametrize(
        ("right", "total", "interval"),
        [(0, 10, (0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1)), (81, 263, (0.2553, 0.3662))],
    )
    def test_wilsons_interval(self, right, total, interval):
        assert wilson(right, total) == pytest.approx(interval, abs=1e-4)


class TestCommand:
    @pytest.fixture
    def questions(self, bikes, tmp_path):
        (tmp_path / "bikes.mp4").symlink_to(bikes)
        entries = [
            {"video": "bikes.mp4", "question": "Who?", "options": ["A child", "A cyclist"], "answer": "A cyclist"},
            {"video": "bikes.mp4", "question": "What happens?"},
        ]
        path = tmp_path / "questions.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        return path

    @staticmethod
    def run(capsys, *arguments):
        parser = argparse.ArgumentParser()
        command.add(parser.add_subparsers())
        parsed = parser.parse_args(["ablate", *map(str, arguments)])
        assert parsed.command(parsed) == 0
        return capsys.readouterr()

    def test_json_holds_all(self, capsys, questions):
        out, err = self.run(capsys, questions, "--table", 2, "--frames", 4, "--json")
        result = json.loads(out)
        assert "question 2 of 2" in err
        assert (result["frames"], result["p"]) == (4, 1.0)
        assert [asked["answer"] for asked in result["questions"]] == ["B", None]
        assert result["unpruned"]["flops"] == result["unpruned"]["same_top"] == 1
        assert result["unpruned"]["kl_nats"] == 0
        (table,) = result["tables"]
        assert [row["paper"]["avg"] for row in table["rows"]] == [45.04, 45.85, 46.35, 46.53]
        assert [row["settings"]["local_debias"] for row in table["rows"]] == [False, False, False, True]
        for row in table["rows"]:
            assert 0 < row["flops"] < 0.6
            assert row["known"] == 1
            assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
            assert [outcome["right"] is None for outcome in row["outcomes"]] == [False, True]
            assert row["kl_nats"] == pytest.approx(sum(o["agreement"]["kl_nats"] for o in row["outcomes"]) / 2)

    def test_tables(self, capsys, questions):
        out = self.run(capsys, questions, "--table", 3, "--frames", 4, "--p", 1.5).out
        assert "questions 2, 1 of them with an answer; p = 1.5" in out
        assert "Tab. 3" in out
        assert "paper FLOPs" in out
        rows = [line.split() for line in out.splitlines() if "(paper:" in line]
        assert [row[0] for row in rows] == ["2", "2", "4", "6", "8"]
        assert [row[2] for row in rows] == ["8)", "10)", "12)", "14)", "16)"]
        assert rows[0][-2:] == ["24.46%", "45.91"]
        assert all("of 1" in " ".join(row) for row in rows)

    def test_without_an_answer_there_is_no_accuracy(self, capsys, questions):
        questions.write_text(json.dumps([{"video": "bikes.mp4", "question": "What happens?"}]), encoding="utf-8")
        assert "accuracy -" in self.run(capsys, questions, "--table", 2, "--frames", 2).out

    def test_what_is_wrong_is_told_before_a_model_is_loaded(self, capsys, questions, monkeypatch):
        monkeypatch.setattr("adatp.evaluation.session.load", lambda *_, **__: pytest.fail("loaded"))
        questions.write_text('{"video": "none.mp4", "question": "?"}\n{"video": "bikes.mp4"}', encoding="utf-8")
        with pytest.raises(ValueError, match=r"(?s)line 1: video .*none\.mp4.*line 2: has no 'question'"):
            self.run(capsys, questions)
        with pytest.raises(ValueError, match=r"p must be in \(0, 2\.5\]"):
            self.run(capsys, questions, "--p", 3)
        with pytest.raises(ValueError, match="--frames must be at least 1"):
            self.run(capsys, questions, "--frames", 0)
