"""`adatp compare`, and what it measures with."""

import argparse
import json
import time
from types import SimpleNamespace

import pytest
import torch
from videollm import make_clip

import adatp.evaluation.comparison
from adatp import methods
from adatp.cli import compare as command
from adatp.evaluation.agreement import agreement
from adatp.evaluation.comparison import Refused, compare, quartiles
from adatp.evaluation.measure import EncodedClip, prefill, with_relevance
from adatp.evaluation.session import Loaded
from adatp.methods import METHODS, AdaTP, FastV, Pool, PyramidDrop, Uniform, Unpruned, VisionZip
from adatp.video import Clip

QUESTION = "Who rides?"


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    parsed = parser.parse_args(["compare", *map(str, arguments)])
    assert parsed.command(parsed) == 0
    return capsys.readouterr()


def clip_of(frames: int) -> Clip:
    return Clip(make_clip(frames), torch.arange(frames).double().numpy(), float(frames), frames, None)


def loaded_of(untrained) -> Loaded:
    return Loaded("small", untrained.model, untrained.processor, untrained.relevance)


@pytest.fixture(scope="module")
def loaded(sdpa) -> Loaded:
    return loaded_of(sdpa)


@pytest.fixture(scope="module")
def inputs(loaded):
    return EncodedClip(loaded, clip_of(8)).inputs(QUESTION)


def compared(loaded, chosen, flops=None, repeats=1):
    return compare(
        loaded, clip_of(8), QUESTION, chosen, flops=flops, repeats=repeats, impl="auto", tell=lambda step: None
    )


class TestPrefill:
    @pytest.mark.parametrize("method", [None, *(method() for method in METHODS.values())], ids=str)
    def test_is_the_prefill_of_generate(self, videollm, method):
        loaded = loaded_of(videollm)
        inputs = EncodedClip(loaded, clip_of(5)).inputs(QUESTION)
        own = prefill(loaded, inputs, method)
        settings = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        if method is None:
            expected = loaded.model.generate(**inputs, **settings)
        else:
            with adatp.apply(loaded.model, loaded.processor, method, relevance=loaded.relevance) as pruned:
                expected = loaded.model.generate(**inputs, **settings)
                assert own.report == pruned.report
        assert torch.equal(own.logits, expected.logits[0][0])

    @pytest.mark.parametrize("method", [None, AdaTP(), VisionZip()], ids=str)
    def test_features_encoded_beforehand_change_nothing(self, videollm, method):
        loaded, clip = loaded_of(videollm), clip_of(5)
        prompt = loaded.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}],
            add_generation_prompt=True,
        )
        pixels = loaded.processor(
            text=prompt, videos=[clip.frames], video_metadata=[clip.metadata], return_tensors="pt"
        )
        own = prefill(loaded, EncodedClip(loaded, clip).inputs(QUESTION), method)
        expected = prefill(loaded, pixels, method)
        assert torch.equal(own.logits, expected.logits)
        assert own.report == expected.report

    def test_a_clip_is_encoded_once(self, loaded):
        runs = []
        handle = loaded.model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
        encoded = EncodedClip(loaded, clip_of(4))
        for question in ("Who?", "Where does it go?"):
            prefill(loaded, encoded.inputs(question), AdaTP())
        handle.remove()
        assert runs == [1] if "mm_encoder_outputs" in encoded.inputs("?") else [1, 1]

    def test_older_versions_of_transformers_encode_every_time(self, loaded):
        model = SimpleNamespace(
            forward=lambda input_ids, pixel_values_videos: None, device=loaded.model.device, dtype=torch.float32
        )
        given = EncodedClip(Loaded("old", model, loaded.processor, None), clip_of(4)).inputs(QUESTION)
        assert given["pixel_values_videos"].shape == (1, 4, 3, 84, 84)

    @pytest.mark.parametrize(
        ("place", "method"),
        [
            ("adatp.relevance.Relevance.forward", AdaTP()),
            ("adatp.engine.scoring.score", AdaTP()),
            ("adatp.engine.cuts.select", FastV()),
            ("adatp.engine.cuts.compact", AdaTP()),
            ("adatp.models.llava_onevision.LlavaOnevision.project", PyramidDrop()),
            ("adatp.models.llava_onevision.LlavaOnevision.tower_attention", VisionZip()),
            ("adatp.engine.scoring.score", VisionZip()),
            ("adatp.methods.dycoke.DyCoke.compress", methods.DyCoke()),
            ("adatp.methods.baselines.Pool.compress", Pool()),
        ],
    )
    def test_the_time_holds_what_a_method_computes(self, loaded, inputs, monkeypatch, place, method):
        owner, _, name = place.rpartition(".")
        module, _, holder = owner.rpartition(".")
        owner = getattr(__import__(module, fromlist=[holder]), holder)
        original = getattr(owner, name)

        def slow(*args, **kwargs):
            time.sleep(0.2)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)
        assert prefill(loaded, inputs, method).seconds > 0.2

    def test_the_aligned_siglip_is_loaded_once(self, loaded, inputs, monkeypatch):
        monkeypatch.setattr(adatp.relevance.Relevance, "from_pretrained", lambda *_, **__: loaded.relevance)
        named = with_relevance(Loaded("small", loaded.model, loaded.processor, "some/siglip"))
        assert named.relevance is loaded.relevance

    def test_that_there_is_none_is_warned_of_once(self, loaded, inputs):
        bare = Loaded("small", loaded.model, loaded.processor, None)
        with pytest.warns(adatp.NoRelevanceWarning):
            bare = with_relevance(bare)
        assert (
            "no aligned text encoder" in prefill(bare, inputs, AdaTP()).report.notes[0]
        )  # a warning would be an error


class TestComparison:
    def test_methods_take_turns_at_the_settings_that_were_found(self, loaded, monkeypatch):
        calls, real = [], prefill

        def recorded(loaded, inputs, method=None, *, flops=None, impl):
            ran = real(loaded, inputs, method, flops=flops, impl=impl)
            calls.append((method, flops))
            return ran._replace(seconds=float(len(calls)))

        monkeypatch.setattr(
            adatp.evaluation.comparison, "prefill", lambda *a, impl="auto", **k: recorded(*a, impl=impl, **k)
        )
        found = compared(loaded, [AdaTP(), Uniform()], flops=0.4, repeats=2)
        own = [row.method for row in found.rows]
        assert own[0] == Unpruned()
        assert own[1] not in (AdaTP(), Unpruned())
        assert calls == [
            *((None, None), (Unpruned(), None), (AdaTP(), 0.4), (Uniform(), 0.4)),
            *((None, None), (own[1], None), (own[2], None)) * 2,
        ]
        assert [row.seconds for row in found.rows] == [[5, 8], [6, 9], [7, 10]]
        assert [row.ratios for row in found.rows] == [[1, 1], [6 / 5, 9 / 8], [7 / 5, 10 / 8]]

    def test_a_method_at_its_settings_is_what_was_compared(self, loaded, inputs):
        plain = prefill(loaded, inputs)
        for row in compared(loaded, [AdaTP(), FastV(), VisionZip()], flops=0.5).rows[1:]:
            ran = prefill(loaded, inputs, row.method)
            assert ran.report.samples[0] == row.sample
            assert row.agreement == agreement(plain.logits, ran.logits)
            assert row.flops["ratio"] == pytest.approx(0.5, abs=0.03)

    def test_the_unpruned_model_comes_first(self, loaded):
        row = compared(loaded, []).rows[0]
        assert row.agreement == (0, True, 0)
        assert row.flops["ratio"] == row.flops["ratio_with_attention"] == 1
        assert set(row.sample.kept) == {8 * 9}
        assert row.notes == []

    def test_what_cannot_cost_so_little_is_refused(self, loaded):
        _, pyramiddrop, fastv = compared(loaded, [PyramidDrop(), FastV()], flops=0.42).rows
        assert isinstance(pyramiddrop, Refused)
        assert pyramiddrop.reason.startswith("flops must be from 0.4")
        assert fastv.flops["ratio"] == pytest.approx(0.42, abs=0.01)

    def test_what_its_settings_miss_is_told(self, loaded):
        _, pool, fastv = compared(loaded, [Pool(), FastV()], flops=0.5).rows
        ratio = pool.flops["ratio"]
        assert abs(ratio - 0.5) > 0.005
        assert pool.notes == [f"costs {ratio:.4f}, of what its settings reach the nearest to flops=0.5"]
        assert fastv.notes == []

    def test_what_deduplication_leaves_too_little_of_is_told(self, loaded):
        row = compared(loaded, [AdaTP()], flops=0.6).rows[1]
        assert row.flops["ratio"] < 0.59
        assert row.notes == [
            f"flops=0.6 is out of reach: after deduplication this video costs {row.flops['ratio']:.4f} at most"
        ]

    def test_a_siglip_is_wanted_by_those_alone_that_compare_frames(self, loaded, monkeypatch):
        wanted = []
        monkeypatch.setattr(adatp.evaluation.comparison, "with_relevance", lambda loaded: wanted.append(1) or loaded)
        compared(loaded, [FastV()])
        assert wanted == []
        compared(loaded, [FastV(), AdaTP()])
        assert wanted == [1]

    def test_quartiles(self):
        assert quartiles([5, 1, 2, 4, 3]) == (2, 3, 4)
        assert quartiles([7]) == (7, 7, 7)


class TestCommand:
    def test_json_holds_all(self, capsys, bikes):
        out, err = run(capsys, bikes, "--question", QUESTION, "--frames", 5, "--flops", 0.45,
                       "--repeat", 2, "--json")  # fmt: skip
        result = json.loads(out)
        assert "timing, round 2 of 2" in err
        assert result["flops"] == 0.45
        assert result["repeats"] == 2
        assert result["visual_tokens"] == 5 * 16
        assert {"platform", "cores", "threads", "device", "dtype", "torch", "transformers"} <= result["machine"].keys()
        assert result["video"]["frames"] == len(result["video"]["times"]) == 5
        assert any("knows the videos of" in note for note in result["notes"])
        assert [row["method"] for row in result["methods"]] == ["none", *(name for name in METHODS if name != "none")]
        for row in result["methods"]:
            if row["refused"]:
                assert "flops must be from" in row["refused"]
                continue
            assert len(row["seconds"]) == len(row["ratios_to_unpruned"]) == 2
            assert len(row["kept"]) == 16
            assert row["method"] == "none" or row["notes"] or abs(row["flops"]["ratio"] - 0.45) < 0.005
            assert row["agreement"].keys() == {"kl_nats", "same_top", "total_variation"}
        assert sum(row["refused"] is None for row in result["methods"]) > 6

    def test_table(self, capsys, bikes):
        arguments = ("--question", QUESTION, "--frames", 4, "--methods", "fastv,none,fastv", "--repeat", 1)
        lines = run(capsys, bikes, *arguments).out.splitlines()
        assert any("at their own settings; 1 timed prefills of each" in line for line in lines)
        assert "4 frames of 10.0 s, 64 visual" in " ".join(" ".join(lines).split()), "wherever a line breaks"
        unpruned, fastv = (
            next(line for line in lines if line.startswith(f" {name} ")).split() for name in ("unpruned", "fastv")
        )
        assert unpruned[1:6] == ["64", "64", "64.0", "100.00%", "100.00%"]
        assert unpruned[-4:] == ["1.000", "0.000", "0.0000", "same"]
        assert fastv[1:4] == ["32", "32", f"{(2 * 64 + 14 * 32) / 16:.1f}"]
        assert len(fastv) == len(unpruned)

    def test_a_refused_method_is_a_row_and_a_reason(self, capsys, bikes):
        arguments = ("--question", QUESTION, "--frames", 4, "--methods", "pyramiddrop", "--flops", 0.3, "--repeat", 1)
        out = run(capsys, bikes, *arguments).out
        assert " pyramiddrop: cannot * " in out
        assert "* pyramiddrop: flops must be from 0.4" in out
        assert "at 30.0% of the unpruned FLOPs" in out

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--repeat", "0"], "--repeat must be at least 1, got 0"),
            (["--frames", "0"], "--frames must be at least 1, got 0"),
            (["--flops", "0"], "flops must be a share of the unpruned FLOPs"),
            (["--flops", "1.5"], "flops must be a share of the unpruned FLOPs"),
            (["--question", " "], "--question is empty"),
        ],
    )
    def test_what_cannot_be_used_is_refused_before_a_model_is_loaded(self, capsys, bikes, monkeypatch, extra, message):
        monkeypatch.setattr("adatp.evaluation.session.load", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(ValueError, match=message):
            run(capsys, bikes, "--question", QUESTION, *extra)

    def test_unknown_methods(self, capsys, bikes):
        with pytest.raises(SystemExit):
            run(capsys, bikes, "--question", QUESTION, "--methods", "fastv,fastest")
        assert "got 'fastest'" in capsys.readouterr().err
