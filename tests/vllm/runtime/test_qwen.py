"""Qwen2.5-VL and Qwen3-VL inside vLLM: positions of three axes, a grid for each video, deepstack."""

import numpy as np
import pytest
from vllm_families import asked_qwen, save_qwen, save_second_tower
from vllm_models import TEXT, by_transformers, generate, kept_of, make_llm

from adatp.errors import Unsupported
from adatp.methods import AdaTP, FastV, PyramidDrop

TOKENS = 40
TAU_S = {"qwen2_5_vl": 0.97, "qwen3_vl": 0.995}  # some segments have several frames
METHODS = {
    "adatp": lambda tau_s: AdaTP(tau_s=tau_s),
    "adatp, cuts within deepstack": lambda tau_s: AdaTP(tau_s=tau_s, first=1, last=6),
    "fastv": lambda _: FastV(keep=0.3),
    "pyramiddrop": lambda _: PyramidDrop(),
}
PROMPTS = [asked_qwen(0, 8), asked_qwen(1, 5), asked_qwen(2, 4, 6), asked_qwen(3, 12)]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory):
    return save_qwen(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch(model, monkeypatch, method):
    """One of its prompts has two videos of different grids."""
    method = METHODS[method](TAU_S[model.name])
    expected = by_transformers(model, method, PROMPTS, TOKENS, None)
    llm = make_llm(model, method)
    found = kept_of(llm, monkeypatch)
    assert generate(llm, PROMPTS, TOKENS) == [answer.tokens for answer in expected]
    assert found == [answer.kept for answer in expected]
    assert generate(llm, [PROMPTS[2]], TOKENS) == [expected[2].tokens]


def test_the_question_matters(model, tmp_path):
    """A whole SigLIP sees the frames beside the model's own tower."""
    siglip = str(save_second_tower(tmp_path))
    method = AdaTP(tau_s=0.9, tau_t=0.0)
    expected = by_transformers(model, method, PROMPTS, TOKENS, siglip)
    assert expected != by_transformers(model, method, PROMPTS, TOKENS, None)
    llm = make_llm(model, method, siglip)
    assert generate(llm, PROMPTS, TOKENS) == [answer.tokens for answer in expected]


def test_beside_text_and_images(model):
    """What is added for a video is forgotten after its step; an image is not pruned."""
    image = {
        "prompt": TEXT["prompt"].replace("Tell", "<|vision_start|><|image_pad|><|vision_end|>Tell"),
        "multi_modal_data": {"image": np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)},
    }
    stock = generate(make_llm(model, None), [TEXT, image], TOKENS)
    llm = make_llm(model)
    alone = generate(llm, PROMPTS[:2], TOKENS)
    assert generate(llm, [PROMPTS[0], TEXT, PROMPTS[1], image], TOKENS) == [alone[0], stock[0], alone[1], stock[1]]
    assert generate(llm, [TEXT], TOKENS) == stock[:1]


def test_in_another_process(model, monkeypatch):
    """The sizes of videos reach the scheduler and the worker, also of videos that vLLM has cached."""
    method = AdaTP(tau_s=TAU_S[model.name])
    expected = [answer.tokens for answer in by_transformers(model, method, PROMPTS, TOKENS, None)]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = make_llm(model, method, mm_processor_cache_gb=1)
    for _ in range(2):
        assert generate(llm, PROMPTS, TOKENS) == expected


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"video_pruning_rate": 0.5}, "leave out --video-pruning-rate"),
        ({"enable_mm_embeds": True}, "leave out --enable-mm-embeds"),
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode weights"),
        ({"mm_processor_cache_type": "shm", "mm_processor_cache_gb": 1}, "--mm-processor-cache-type lru"),
        (
            {"compilation_config": {"cudagraph_mode": "PIECEWISE", "cudagraph_mm_encoder": True}},
            "cudagraph_mm_encoder to false",
        ),
    ],
)
def test_what_does_not_fit(model, changes, flag):
    with pytest.raises((Unsupported, ValueError), match=flag):
        make_llm(model, **changes)
