"""The blocks of the cache: pruned layers have groups of their own, with room for the tokens that may enter them."""

import pytest
from vllm_models import QUESTIONS, as_published, asked, make_llm, model_runner, preemptions

from adatp.methods import AdaTP, FastV, PyramidDrop

TOKENS = 100
SMALL = {"block_size": 32, "max_model_len": 640, "disable_log_stats": False, "enable_prefix_caching": False}
GROUPS = 3  # of six layers: a block of a pruned server is a third of one of stock vLLM


def groups_of(llm):
    """For each cache group: the number of layers, and the first layer of those whose tokens need room; None for all."""
    groups = model_runner(llm).kv_cache_config.kv_cache_groups
    return [(len(group.layer_names), getattr(group.kv_cache_spec, "first", None)) for group in groups]


def serve(llm):
    """Answer two rounds of four questions at once; return the steps that it took, the preemptions and the memory."""
    from vllm import SamplingParams

    engine, params = llm.llm_engine, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    for number in range(2 * len(QUESTIONS)):
        engine.add_request(str(number), asked(number % len(QUESTIONS)), params)
    steps = 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
    managers = engine.engine_core.engine_core.scheduler.kv_cache_manager.coordinator.single_type_managers
    assert not any(getattr(manager, "_dropped", ()) for manager in managers), "remembered after their end"
    config = model_runner(llm).kv_cache_config
    return steps, preemptions(llm), config.kv_cache_tensors[0].size


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (AdaTP(), [(6, None), (6, 6), (6, 12)]),
        (FastV(), [(6, None), (6, 6), (6, 12)]),
        (PyramidDrop(stages=2), [(6, None), (6, None), (6, 12)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_groups(onevision, method, expected):
    assert groups_of(make_llm(onevision, method)) == expected


def test_fewer_preemptions_and_steps_than_stock_in_the_same_memory(onevision, tmp_path):
    blocks = 34
    llm = make_llm(onevision, AdaTP(), **SMALL, num_gpu_blocks_override=GROUPS * blocks)
    steps, preempted, size = serve(llm)
    del llm
    stock = make_llm(as_published(onevision, tmp_path), None, **SMALL, num_gpu_blocks_override=blocks)
    stock_steps, stock_preempted, stock_size = serve(stock)
    assert size == stock_size
    assert steps < stock_steps
    assert preempted < stock_preempted
