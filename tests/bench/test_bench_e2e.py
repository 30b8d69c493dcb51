"""The end-to-end benchmark measures what it says, and judges by what it has measured."""

import copy
import json
import time
from dataclasses import replace
from operator import sub
from types import SimpleNamespace

import pytest
import torch

import bench.e2e.__main__ as command
from adatp.evaluation.measure import applied, prefill
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.hf.prompt_prefill import PromptPrefill
from adatp.layout import VideoSize
from adatp.methods import AdaTP, FastV
from bench.e2e import models
from bench.e2e.decode import decode
from bench.e2e.exclusive import Clock, Exclusive
from bench.e2e.fastv_eager import fastv_eager
from bench.e2e.forced import forced_widths
from bench.e2e.goals import goals
from bench.e2e.models import Build, given_states, make, prompt
from bench.e2e.parts import PARTS, parts
from bench.e2e.picture import draw_speed
from bench.e2e.prefill import Contender, contenders, race, relevance_flops
from bench.e2e.scale import concurrent, cut, vary
from bench.e2e.stages import RELEVANCE, stages
from bench.e2e.tables import of_ideal, tables
from bench.e2e.twin import twin
from bench.record import write_json

LAYERS, FRAMES, TEXT = 16, 12, 40


def frames_of(shape, frames):
    """The shape with fewer frames."""
    return replace(shape, videos=(VideoSize(frames, shape.grid),))


@pytest.fixture(scope="module")
def narrow():
    """The published shapes with all their tokens and next to no width."""
    thin = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "SIGLIP", {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2})
        patch.setattr(models, "VOCABULARY", 512)
        for name, shape in MODEL_SHAPES.items():
            patch.setitem(MODEL_SHAPES, name, replace(shape, text_config={**shape.text_config, **thin}))
        yield


@pytest.fixture(scope="module")
def built(narrow):
    build = Build("onevision-0.5b", LAYERS, tower_layers=1, text_layers=1)
    return build, make(build, torch.device("cpu"), torch.float32)


@pytest.fixture
def loaded(built):
    return built[1]


@pytest.fixture
def inputs(loaded):
    with given_states(loaded, FRAMES):
        yield prompt(loaded, FRAMES, TEXT, 196)


@pytest.mark.parametrize(("name", "newline"), [("onevision-7b", 1), ("llava-video-7b", 0)])
def test_a_model_has_the_published_tokens(narrow, name, newline):
    build = Build(name, 3, tower_layers=1, text_layers=1)
    model = make(build, torch.device("cpu"), torch.float32)
    shape = MODEL_SHAPES[name]
    with given_states(model, 2):
        given = prompt(model, 2, TEXT, shape.tokens_per_frame)
        assert given["input_ids"].shape[1] == 2 * shape.tokens_per_frame + TEXT
        report = prefill(model, given, AdaTP(first=1, last=1)).report
    assert report.samples[0].kept[0] == 2 * shape.tokens_per_frame
    assert report.samples[0].similarity is not None
    assert str(build) == f"{name}, 3 of 28 layers"


def test_a_prompt_too_short_is_refused(loaded):
    with pytest.raises(ValueError, match=r"text_tokens must be at least \d+, got 2"):
        prompt(loaded, 1, 2, 196)


def test_given_states_stand_for_the_tower(loaded, monkeypatch):
    tower = loaded.model.model.vision_tower
    monkeypatch.setattr(type(tower), "forward", lambda *_, **__: pytest.fail("the tower ran"))
    with given_states(loaded, 2):
        prefill(loaded, prompt(loaded, 2, TEXT, 196))
    assert loaded.model.model.vision_tower is tower


def test_eager_fastv_is_fastv(loaded, inputs):
    method = FastV(keep=0.3)
    seconds, logits = fastv_eager(loaded, inputs, method)
    assert seconds > 0
    torch.testing.assert_close(logits, prefill(loaded, inputs, method).logits, atol=1e-4, rtol=1e-4)
    assert loaded.model.model.language_model.config._attn_implementation == "sdpa"
    assert "forward" not in vars(loaded.model.model.language_model)


def test_flops_of_relevance_grow_with_frames_and_hold_attention(loaded, inputs):
    (more, asked), (less, as_many) = (
        relevance_flops(loaded, {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :frames]})
        for frames in (FRAMES, FRAMES // 2)
    )
    layer = 2 * 729 * 6 * 32 * 32 + 4 * 729**2 * 32  # linear layers, and every patch against every other
    assert layer < (more - less) / (FRAMES // 2) < 1.1 * layer
    assert asked == as_many > 0


@pytest.fixture(scope="module")
def ran(built):
    _, loaded = built
    entered = contenders(AdaTP(), others=("fastv", "dycoke"), is_triton=True)
    told = []
    with given_states(loaded, FRAMES):
        short, inputs = (prompt(loaded, frames, TEXT, 196) for frames in (1, FRAMES))
        rows = race(loaded, inputs, entered, before=short, rounds=2, tell=told.append)
    return entered, {row.name: row for row in rows}, told


def test_a_matrix_that_does_not_fit_is_refused(loaded, inputs, monkeypatch):
    monkeypatch.setattr("bench.e2e.prefill.too_much", lambda size: f"needs {size} bytes")
    entered = [Contender("unpruned", None), Contender("FastV, eager", FastV(), is_eager=True)]
    _, eager = race(loaded, inputs, entered, rounds=1, tell=lambda _: None)
    assert eager.refused == f"needs {3 * 4 * (FRAMES * 196 + TEXT) ** 2 * 4} bytes"
    assert eager.seconds == []


class TestRace:
    def test_all_take_turns(self, ran):
        entered, rows, told = ran
        running = [one.name for one in entered if not rows[one.name].refused]
        assert [step.split(": ", 1)[1] for step in told] == [
            f"round {turn} of 2, {name}" for turn in (1, 2) for name in running
        ]
        assert "AdaTP p=1, reference" in running

    def test_methods_cost_what_adatp_costs(self, ran):
        _, rows, _ = ran
        wanted = rows["AdaTP p=1"].ratio
        assert rows["unpruned"].ratio == 1
        assert rows["AdaTP p=2"].ratio > rows["AdaTP p=1.5"].ratio > wanted
        assert rows["FastV"].ratio == rows["FastV, eager"].ratio == pytest.approx(wanted, abs=0.002)
        assert "flops must be from" in rows["DyCoke"].refused

    def test_relevance_costs_flops_where_frames_are_compared(self, ran):
        _, rows, _ = ran
        wanted = {name for name, row in rows.items() if row.ratio_all > row.ratio_causal}
        known = "AdaTP p=1, question asked before"
        assert wanted == {"AdaTP p=2", "AdaTP p=1.5", "AdaTP p=1", "AdaTP p=1, reference", known}
        assert rows[known].ratio_all < rows["AdaTP p=1"].ratio_all
        alone = rows["AdaTP p=1, relevance=None"]
        assert alone.ratio_all == alone.ratio_causal == pytest.approx(rows["AdaTP p=1"].ratio_causal, abs=0.02)

    def test_nothing_is_deduplicated(self, ran):
        kept = ran[1]["AdaTP p=1"].kept
        assert kept[2] == round(0.4 * FRAMES * 196)

    def test_times_are_over_the_unpruned_one_of_the_round(self, ran):
        _, rows, _ = ran
        for row in rows.values():
            if not row.refused:
                assert row.to_unpruned == pytest.approx(
                    [own / whole for own, whole in zip(row.seconds, rows["unpruned"].seconds, strict=True)]
                )


def test_forced_to_full_width_it_is_the_plain_prefill(loaded, inputs):
    plain = loaded.model(**inputs, logits_to_keep=1)
    with forced_widths(loaded, [FRAMES * 196 + TEXT] * LAYERS):
        forced = loaded.model(**inputs, logits_to_keep=1)
    torch.testing.assert_close(forced.logits, plain.logits, atol=1e-5, rtol=1e-5)


def test_forced_widths_are_every_layers(loaded, inputs):
    report = prefill(loaded, inputs, AdaTP()).report
    widths = [kept + TEXT for kept in report.samples[0].kept]
    with forced_widths(loaded, widths):
        cache = loaded.model(**inputs, logits_to_keep=1).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == widths
    assert "forward" not in vars(loaded.model.model.language_model)


def test_a_twin_has_the_same_weights_in_the_same_memory(loaded, inputs):
    other = twin(loaded)
    pairs = list(zip(other.model.state_dict().values(), loaded.model.state_dict().values(), strict=True))
    assert all(own.data_ptr() == same.data_ptr() for own, same in pairs)
    with torch.inference_mode(), applied(other, AdaTP()):
        pruned = other.model(**inputs, logits_to_keep=1).past_key_values
        whole = loaded.model(**inputs, logits_to_keep=1).past_key_values
    assert pruned.layers[-1].keys.shape[2] < whole.layers[-1].keys.shape[2] == FRAMES * 196 + TEXT


def test_what_runs_within_another_is_not_the_others():
    times = iter((0, 1, 3, 6, 10, 15))
    work = SimpleNamespace(outer=lambda: (work.inner(), work.inner()), inner=lambda: None)
    with Exclusive(Clock(lambda: next(times), sub)) as spent:
        spent.watch("inner", work, "inner")
        spent.watch("outer", work, "outer")
        work.outer()
    assert dict(spent.seconds) == {"outer": 1 + 3 + 5, "inner": 2 + 4}


def test_parts_make_up_the_whole(loaded, inputs):
    found = parts(loaded, inputs, AdaTP())
    assert len(found["layers"]) == LAYERS
    assert set(found["pruning"]) == {*PARTS, "other"}
    assert all(seconds > 0 for seconds in found["layers"])
    assert all(seconds > 0 for seconds in found["pruning"].values())  # nothing is counted twice
    assert sum(found["layers"]) + sum(found["pruning"].values()) == pytest.approx(found["total"])
    again = parts(loaded, inputs, AdaTP())  # the first has left nothing behind
    assert len(again["layers"]) == LAYERS


def test_what_a_part_takes_within_a_layer_is_not_the_layers(loaded, inputs, monkeypatch):
    project = PromptPrefill.project
    monkeypatch.setattr(PromptPrefill, "project", lambda *args: (time.sleep(0.3), project(*args))[1])
    found = parts(loaded, inputs, AdaTP())
    assert found["pruning"]["text queries"] > 0.3
    assert max(found["layers"]) < 0.3


def test_decoding_finds_the_pruned_cache(loaded, inputs):
    whole, pruned = (decode(loaded, inputs, method, (1, 2), 1) for method in (None, AdaTP()))
    assert set(whole["tokens_per_second"]) == {"1", "2"}
    # keys and values of 2 heads of 16, in fp32
    assert whole["cache_bytes"] == 2 * 2 * 16 * 4 * LAYERS * (FRAMES * 196 + TEXT)
    assert pruned["cache_bytes"] < 0.5 * whole["cache_bytes"]


def test_stages_make_up_the_way_to_the_first_token(built, bikes):
    whole, pruned = (stages(built[1], built[0], bikes, 3, method) for method in (None, AdaTP(last=2)))
    assert whole["frames"] == pruned["frames"] == 3
    assert all(seconds > 0 for seconds in pruned["seconds"].values())
    assert {name for name, seconds in whole["seconds"].items() if not seconds} == set(RELEVANCE)
    assert whole["missing_tower"] > 0
    assert pruned["kept"][0] == 3 * 196
    assert 0 < pruned["ratio_causal"] < 1


def test_stages_count_every_block_of_frames(built, bikes, monkeypatch):
    build, loaded = built
    forward = loaded.relevance.head.forward
    monkeypatch.setattr("adatp.tensors.blocks.TOKENS", 1)  # so that each frame comes alone
    pause = 0.2 + stages(loaded, build, bikes, 3, AdaTP(last=2))["seconds"]["decoder"]  # longer on a busy machine
    monkeypatch.setattr(loaded.relevance.head, "forward", lambda states: (time.sleep(pause), forward(states))[1])
    found = stages(loaded, build, bikes, 3, AdaTP(last=2))["seconds"]
    assert found["SigLIP head"] > 3 * pause
    assert found["decoder"] < 3 * pause


def test_other_sizes(built):
    build, loaded = built
    cases = [{"frames": 2, "text_tokens": 30, "batch": 2}, {"frames": 3, "text_tokens": 50, "batch": 1}]
    found = vary(loaded, build, AdaTP(last=2), cases, rounds=2, tell=lambda _: None)
    assert [{name: own[name] for name in cases[0]} for own in found] == cases
    assert all(len(own["unpruned"]) == len(own["pruned"]) == 2 for own in found)


def test_requests_that_come_together_are_all_answered(built):
    build, loaded = built
    for method in (None, AdaTP(last=2)):
        assert all(seconds > 0 for seconds in concurrent(loaded, build, method, (1, 2, 2))["seconds"])


def test_a_cut():
    found = cut("onevision-0.5b", 2)
    assert found["visual_tokens"] == 392
    assert all(found[part] > 0 for part in ("scoring", "selection", "compaction"))


def row(name, seconds, *, ratio=1.0, peak=100):
    return {
        "name": name, "settings": {}, "kept": [6272, 753], "ratio": ratio, "ratio_causal": ratio,
        "ratio_all": ratio, "seconds": [seconds], "to_unpruned": [seconds / 10], "peak_bytes": peak, "refused": "",
    }  # fmt: skip


RESULT = {
    "machine": {"device": "cpu"},
    "models": [
        {
            "name": "onevision-0.5b",
            "frames": 32,
            "visual_tokens": 6272,
            "text_tokens": 113,
            "is_whole": True,
            "rows": [
                row("unpruned", 10.0),
                row("AdaTP p=1", 3.0, ratio=0.288, peak=60),
                row("FastV, eager", 3.1, ratio=0.288),
                {**row("DyCoke", 1.0), "refused": "flops must be from 0.4"},
            ],
            "parts": {
                "total": 3.0,
                "pruning": {"question": 0.01, "relevance": 0.02, "scoring": 0.06},
                "layers": [2.0, 0.91],
            },
            "unpruned_layers": [2.0, 2.0],
        }
    ],
    "stages": {
        "unpruned": {"frames": 32, "seconds": {"tower": 1.0, "relevance": 0.0, "decoder": 9.0}, "missing_tower": 2.0},
        "AdaTP p=1": {
            "frames": 32,
            "seconds": {"tower": 1.1, "relevance": 0.2, "decoder": 3.0},
            "missing_tower": 2.0,
            "ratio_causal": 0.25,
        },
    },
    "decode": {name: {"cache_bytes": 10**6, "tokens_per_second": {"1": 2.0}} for name in ("unpruned", "AdaTP p=1")},
    "vary": [{"frames": 8, "text_tokens": 113, "batch": 1, "unpruned": [2.0], "pruned": [1.0], "ratio": 0.3}],
    "cuts_model": "onevision-0.5b",
    "cuts": [
        {"frames": n, "visual_tokens": 196 * n, "scoring": 0.1 * n, "selection": 0.01, "compaction": 0.01}
        for n in (32, 1024)
    ],
    "together": {"unpruned": {"frames": [8], "seconds": [1.0]}, "AdaTP p=1": {"frames": [8], "seconds": [0.5]}},
}


class TestGoals:
    def judged(self, change=lambda result: None):
        result = copy.deepcopy(RESULT)
        change(result)
        return [goal["met"] for goal in goals(result)]

    def test_all_met(self):
        assert self.judged() == [True, True, True, True, True, True]

    @pytest.mark.parametrize(
        ("number", "change"),
        [
            (0, lambda r: r["models"][0]["rows"][1].update(to_unpruned=[0.31])),  # 0.93 of the ideal
            (1, lambda r: r["models"][0]["parts"]["pruning"].update(scoring=0.07)),
            (2, lambda r: r["models"][0]["rows"][2].update(seconds=[2.9])),
            (3, lambda r: r["models"][0]["rows"][1].update(peak_bytes=61)),
            (4, lambda r: r["vary"][0].update(pruned=[2.1])),
            (5, lambda r: r["cuts"][1].update(scoring=0.13 * 1024)),
        ],
    )
    def test_one_missed(self, number, change):
        assert self.judged(change) == [i != number for i in range(6)]

    def test_a_part_of_a_decoder_is_not_judged(self):
        assert self.judged(lambda r: r["models"][0].update(is_whole=False)) == [True, True]

    def test_a_gpu_has_others(self):
        def on_gpu(result):
            result["machine"]["device"] = "H100"
            result["models"][0]["rows"][1].update(to_unpruned=[0.33])
            result["models"][0]["parts"]["pruning"].update(scoring=0.2)

        assert self.judged(on_gpu)[:2] == [True, True]  # 0.87 of 0.85, 7.7 of 8 %

    def test_the_ideal_is_what_flops_promise(self):
        assert of_ideal(RESULT["models"][0]["rows"][1]) == pytest.approx(0.96)


def test_what_amdahl_leaves_of_the_way_to_the_first_token():
    (rows,) = [rows for title, rows in tables({**RESULT, "goals": []}) if title.startswith("To the first token")]
    lines = {name: cells for name, *cells in rows}
    assert lines["relevance"] == ["0 ns", "200 ms", "only pruned"]
    assert lines["together"] == ["10 s", "4.3 s", "0.430"]
    assert lines["with all layers of the tower"] == ["12 s", "6.3 s", "0.525"]
    assert lines["what its FLOPs leave (Amdahl)"] == ["12 s", "5.25 s", "0.438"]  # 12 - 9 * 3/4


def test_relevance_counts_among_all_flops():
    adatp = {**RESULT["models"][0]["rows"][1], "ratio_all": 0.36}
    assert of_ideal(adatp, "ratio_all") == pytest.approx(1.2)


def test_every_line_of_a_table_is_as_long_as_its_head():
    for title, (head, *rows) in tables({**RESULT, "goals": goals(RESULT)}):
        assert rows, title
        assert all(len(own) == len(head) for own in rows), title


def test_the_command_measures_all_and_keeps_it(narrow, bikes, tmp_path, monkeypatch, capsys):
    for name in ("onevision-0.5b", "llava-video-7b"):
        monkeypatch.setitem(MODEL_SHAPES, name, frames_of(MODEL_SHAPES[name], 4))
    monkeypatch.setattr(command, "PLANS", {"onevision-0.5b": (24, 1, ("fastv",)), "llava-video-7b": (3, 1, ())})
    smaller = {"VARIED": command.VARIED[:1], "CUTS": (1, 2), "TOGETHER": (1, 2), "BATCHES": (1,), "TOWER": 1}
    for name, value in smaller.items():
        monkeypatch.setattr(command, name, value)
    kept = []

    def keep(path, result):
        kept.append(len(str(result)))
        write_json(path, result)

    monkeypatch.setattr(command, "write_json", keep)
    command.main(["--json", str(tmp_path / "e2e.json"), "--video", str(bikes)])
    assert len(kept) == 2 + 4 + 2, "written after every model and section"
    assert kept == sorted(kept)
    captured = capsys.readouterr()
    result = json.loads((tmp_path / "e2e.json").read_text())
    assert [model["name"] for model in result["models"]] == ["onevision-0.5b", "llava-video-7b, 3 of 28 layers"]
    assert all(title.split(":")[0] in captured.out for title, _ in tables(result))
    assert "round 1 of 1, FastV, eager" in captured.err
    draw_speed(tmp_path / "e2e.svg", result)
    assert (tmp_path / "e2e.svg").stat().st_size > 10_000


def test_a_part_of_it_by_itself(narrow, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODEL_SHAPES, "onevision-0.5b", frames_of(MODEL_SHAPES["onevision-0.5b"], 2))
    monkeypatch.setattr(command, "PLANS", {"onevision-0.5b": (3, 9, ()), "llava-video-7b": (3, 9, ())})
    monkeypatch.setattr(command, "CUTS", (1,))
    monkeypatch.setattr(command, "TOWER", 1)
    file = tmp_path / "e2e.json"
    command.main(["--json", str(file), "--only", "prefill,cuts", "--rounds", "1", "--models", "onevision-0.5b"])
    result = json.loads(file.read_text())
    assert [len(row["seconds"]) for row in result["models"][0]["rows"]] == [1] * len(result["models"][0]["rows"])
    assert len(result["models"]) == len(result["cuts"]) == 1
    assert not any(result[section] for section in ("stages", "decode", "together", "vary"))
    assert "To the first token" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--models", "onevision-72b"), ("--only", "prefill,onevision-72b")])
def test_what_there_is_not_is_refused(capsys, arguments):
    with pytest.raises(SystemExit):
        command.main(list(arguments))
    assert "got onevision-72b" in capsys.readouterr().err


def test_without_a_video_it_says_what_to_do(capsys, monkeypatch):
    def missing():
        raise FileNotFoundError("there is no bikes.mp4")

    monkeypatch.setattr(command, "sample_video", missing)
    with pytest.raises(SystemExit):
        command.main([])
    assert "pass --video, or --only without stages" in capsys.readouterr().err
