"""Methods that prune before the decoder, inside vLLM as it is: prefix caching and chunked prefill are on."""

import json
import re
import shlex
from typing import Any, NamedTuple

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_models import QUESTIONS, TEXT, asked, by_transformers, generate, make_llm, model_runner, prompt, video

import adatp
from adatp.layout import Grid
from adatp.vllm import engine_args
from adatp.vllm.arguments import ARCHITECTURES, COMPRESSED, flags
from adatp.vllm.runtime.reports import logger

METHODS = {
    "uniform": adatp.Uniform(keep=0.3),
    "random": adatp.Random(keep=0.2, seed=5),
    "pool": adatp.Pool(keep=0.3),
    "visionzip": adatp.VisionZip(keep=0.3, dominant=0.6),
    "dycoke": adatp.DyCoke(p=0),
}
GRID = Grid(7, 7)
STEP = 64  # tokens
FRAMES = (8, 5, 16, 12)  # vLLM takes videos of up to 16 frames where a step has fewer tokens than they


class Served(NamedTuple):
    llm: Any
    method: Any
    model: Any

    def expected(self, prompts: list[dict[str, Any]], tokens: int) -> list[Any]:
        return by_transformers(self.model, self.method, prompts, tokens, None)

    def start(self, given: dict[str, Any]) -> Any:
        """Return vLLM's output of one token."""
        return self.llm.generate([given], SamplingParams(max_tokens=1), use_tqdm=False)[0]


@pytest.fixture(scope="module", params=METHODS)
def served(request, onevision):
    method = METHODS[request.param]
    return Served(make_llm(onevision, method, max_num_batched_tokens=STEP), method, onevision)


@pytest.fixture(scope="module")
def few(onevision):
    """A server that keeps few tokens, of videos only."""
    method = adatp.Uniform(keep=0.01)
    return Served(make_llm(onevision, method, limit_mm_per_prompt={"video": 2, "image": 0}), method, onevision)


def counters(method: str) -> dict[str, float]:
    names = ("compressed_videos", "visual_tokens", "kept_visual_tokens", "pruned_prefills")
    return {name: REGISTRY.get_sample_value(f"adatp:{name}_total", {"method": method}) or 0 for name in names}


@pytest.fixture
def steps(served, monkeypatch):
    """The number of tokens of each request in each step."""
    taken: list[dict[str, int]] = []
    scheduler = served.llm.llm_engine.engine_core.engine_core.scheduler
    schedule = scheduler.schedule

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        taken.append(dict(output.num_scheduled_tokens))
        return output

    monkeypatch.setattr(scheduler, "schedule", noted)
    return taken


def test_answers_are_those_of_transformers(served, steps):
    prompts = [*(asked(number, frames) for number, frames in enumerate(FRAMES)), TEXT]
    expected = served.expected(prompts, 16)
    assert generate(served.llm, prompts) == [answer.tokens for answer in expected]
    longest = served.method.count(max(FRAMES), GRID)
    assert expected[FRAMES.index(max(FRAMES))].kept[0] == longest
    assert max(sum(step.values()) for step in steps) <= STEP < longest  # the prompt was split


def test_a_prompt_has_a_placeholder_for_each_token_that_stays(served):
    token = served.llm.llm_engine.model_config.hf_config.video_token_id
    for frames in (1, 4, 5, 16):
        ids = served.start(asked(0, frames)).prompt_token_ids
        assert ids.count(token) == served.method.count(frames, GRID) + 1  # and for the newline


def test_a_second_question_finds_the_video_in_the_cache(served):
    prompts = [{"prompt": prompt(text), "multi_modal_data": {"video": video(9, 16)}} for text in QUESTIONS[:2]]
    first, second = (answer.tokens for answer in served.expected(prompts, 8))
    assert generate(served.llm, prompts[:1], 8) == [first]
    assert served.start(prompts[1]).num_cached_tokens >= 128
    assert generate(served.llm, prompts[1:], 8) == [second]


def test_each_video_of_a_prompt_is_pruned(few):
    text = "<|im_start|>user <video>\nand <video>\nWhat is different?<|im_end|><|im_start|>assistant\n"
    given = {"prompt": text, "multi_modal_data": {"video": [video(3, 6), video(4, 6)]}}
    [expected] = few.expected([given], 8)
    assert generate(few.llm, [given], 8) == [expected.tokens]
    assert expected.kept[0] == 2 * few.method.count(6, GRID)


def test_videos_are_reported_when_they_are_encoded(few, monkeypatch):
    before = counters("uniform")
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lambda line, *values: lines.append(line % values))
    generate(few.llm, [asked(0), TEXT, asked(1, 20), asked(0)], 2)
    told = {name: value - before[name] for name, value in counters("uniform").items()}
    assert told == {"compressed_videos": 2, "visual_tokens": 28 * 49, "kept_visual_tokens": 14, "pruned_prefills": 0}
    assert lines == [
        "uniform pruned a video of 8 frames: 392 visual tokens -> 4",
        "uniform pruned a video of 20 frames: 980 visual tokens -> 10",
    ]


def test_videos_that_vllm_measures_its_memory_with_are_not_reported(few, monkeypatch):
    runner, before = model_runner(few.llm), counters("uniform")
    frames = tower_frames(runner, monkeypatch)
    monkeypatch.setattr(runner.cache_config, "num_gpu_blocks", None)  # as before vLLM has measured
    runner.profile_run()
    assert 16 in frames
    assert counters("uniform") == before


def tower_frames(runner: Any, monkeypatch: Any) -> list[int]:
    """Return a list that takes the number of frames of each call of the tower."""
    frames: list[int] = []
    tower = runner.get_model().vision_tower
    forward = tower.forward

    def noted(pixels: Any, **kwargs: Any) -> Any:
        frames.append(len(pixels))
        return forward(pixels, **kwargs)

    monkeypatch.setattr(tower, "forward", noted)
    return frames


def test_the_tower_encodes_a_bounded_number_of_frames_at_a_time(few, monkeypatch):
    frames = tower_frames(model_runner(few.llm), monkeypatch)
    generate(few.llm, [asked(2, 20), asked(3, 5)], 1)
    assert frames == [16, 4, 5]


def test_the_search_for_the_longest_video_ends(few, monkeypatch):
    info = MULTIMODAL_REGISTRY.get_processing_info(few.llm.llm_engine.model_config)
    count, tried = info.get_num_video_tokens, []

    def noted(**size: Any) -> int:
        tried.append(size["num_frames"])
        return count(**size)

    monkeypatch.setattr(info, "get_num_video_tokens", noted)
    assert info.get_num_frames_with_most_features(2048, {"video": 1}) == max(tried) == 16
    assert info.get_num_frames_with_most_features(8, {"video": 1}) == 15  # 7 tokens and a newline
    assert info.get_num_frames_with_most_features(8, {"video": 2}) == 7  # 3 tokens and a newline each


def config_of(model: Any, **args: Any) -> Any:
    return EngineArgs(model=str(model), dtype="float32", **args).create_engine_config()


def test_caches_of_several_servers_tell_methods_apart(onevision):
    def identity(method: Any) -> str:
        return MULTIMODAL_REGISTRY.get_processing_info(
            config_of(onevision, **engine_args(onevision, method)).model_config
        ).model_id

    methods = (adatp.Uniform(), adatp.Random(), adatp.Random(seed=1))
    assert len({identity(method) for method in methods}) == 3
    assert identity(adatp.Uniform()) == identity(adatp.Uniform())


@pytest.mark.parametrize("name", METHODS)
def test_only_the_model_and_the_method_are_chosen(onevision, name):
    args = engine_args(onevision, METHODS[name])
    assert set(args) == {"hf_overrides", "additional_config"}
    config = config_of(onevision, **args)
    assert config.cache_config.enable_prefix_caching
    assert config.scheduler_config.enable_chunked_prefill


@pytest.mark.parametrize("method", ["uniform", "adatp"])
def test_flags_are_the_arguments(onevision, method):
    args = engine_args(onevision, method)
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(flags(args))
    mode = parsed.compilation_config.cudagraph_mode
    parsed.compilation_config = {"cudagraph_mode": mode.name} if mode else None
    assert {name: getattr(parsed, name) for name in args} == args


BETWEEN, BEFORE = ARCHITECTURES["llava_onevision"], COMPRESSED["llava_onevision"]


@pytest.mark.parametrize(
    ("method", "architecture", "reason"),
    [
        (adatp.DyCoke(k=0.5), BEFORE, "attends to a share of the tokens in decoding"),
        (adatp.Uniform(), BETWEEN, f"method 'uniform' is not one of the model {BETWEEN}"),
        (adatp.FastV(), BEFORE, f"method 'fastv' is not one of the model {BEFORE}"),
    ],
)
def test_a_refusal_names_the_flag_that_helps(onevision, method, architecture, reason):
    args = {**engine_args(onevision, method), "hf_overrides": {"architectures": [architecture]}}
    with pytest.raises(ValidationError, match=reason) as raised:
        config_of(onevision, **args)
    [line] = [line for line in raised.value.errors()[0]["msg"].splitlines() if reason in line]
    name, value = shlex.split(re.search("--.*", line)[0])
    args[name[2:].replace("-", "_")] = json.loads(value)
    config_of(onevision, **args)


def test_no_method_is_refused(onevision):
    with pytest.raises(ValueError, match="method 'none' prunes nothing: start vLLM itself"):
        config_of(onevision, **engine_args(onevision, "none"))


# last in this file: when it ends, vLLM takes down the process groups of the other servers in this process
def test_ranks_share_the_heads_of_the_tower(onevision):
    method = adatp.VisionZip(keep=0.3, dominant=0.3)
    prompts = [asked(0), asked(1, 5), asked(2, 6), asked(3)]
    llm = make_llm(onevision, method, tensor_parallel_size=2)
    expected = by_transformers(onevision, method, prompts, 8, None)
    assert generate(llm, prompts, 8) == [answer.tokens for answer in expected]
