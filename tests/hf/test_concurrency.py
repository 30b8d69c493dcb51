"""Threads that share a model, failures in the middle, and what is left behind after a thousand calls."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle

import psutil
import pytest
import torch
from small_llava_video import small_llava_video
from videollm import make_clip, make_inputs

import adatp
from adatp.small.untrained import load_untrained

QUESTIONS = ["What is in the picture?", "Why?"]


def hooks_of(model):
    return {
        name: (dict(m._forward_pre_hooks), dict(m._forward_hooks), set(m.__dict__)) for name, m in model.named_modules()
    }


def prompts(untrained):
    """Two prompts with different videos, of different lengths."""
    return [make_inputs(untrained, [question], frames=8 + i, seed=i) for i, question in enumerate(QUESTIONS)]


def generate(untrained, inputs):
    return untrained.model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)


@pytest.fixture
def rendezvous(videollm):
    """Lets two threads meet in the middle of their prefills: `rendezvous()` gives the barrier they wait at."""
    handles = []

    def install():
        barrier = threading.Barrier(2)
        seen = threading.local()

        def meet(*_):
            if not getattr(seen, "met", False):
                seen.met = True
                barrier.wait(timeout=60)

        handles.append(videollm.model.model.language_model.layers[4].register_forward_pre_hook(meet))
        return barrier

    yield install
    for handle in handles:
        handle.remove()


def test_two_threads_in_the_middle_of_a_prefill_each(videollm, rendezvous):
    with adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance) as pruned:
        expected = []
        for inputs in prompts(videollm):
            expected.append((generate(videollm, inputs), pruned.report))
        rendezvous()

        def work(inputs):
            tokens = generate(videollm, inputs)
            return tokens, pruned.thread_report

        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(work, prompts(videollm)))
        assert pruned.report in [report for _, report in found]
    for (tokens, report), (tokens_alone, report_alone) in zip(found, expected, strict=True):
        assert torch.equal(tokens, tokens_alone)
        assert report == report_alone
    assert expected[0][1] != expected[1][1]


def test_a_failure_in_one_thread_does_not_reach_the_other(videollm, rendezvous):
    layer = videollm.model.model.language_model.layers[5]
    failing = threading.local()

    def fail(*_):
        if getattr(failing, "on", False):
            raise ArithmeticError

    handle = layer.register_forward_hook(fail)
    first, second = prompts(videollm)
    try:
        with adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance) as pruned:
            expected = generate(videollm, first)
            rendezvous()

            def work():
                failing.on = True
                with pytest.raises(ArithmeticError):
                    generate(videollm, second)
                with pytest.raises(RuntimeError, match="the last prefill failed"):
                    _ = pruned.thread_report

            with ThreadPoolExecutor(1) as pool:
                job = pool.submit(work)
                assert torch.equal(generate(videollm, first), expected)
                job.result()
            assert pruned.thread_report.pruned
    finally:
        handle.remove()


def test_removing_in_the_middle_of_a_prefill_is_refused(videollm):
    inside, leave = threading.Event(), threading.Event()

    def hold(*_):
        inside.set()
        leave.wait(60)

    plain = generate(videollm, prompts(videollm)[0])
    handle = videollm.model.model.language_model.layers[4].register_forward_pre_hook(hold)
    pruned = adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance)
    try:
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(generate, videollm, prompts(videollm)[0])
            assert inside.wait(60)
            with pytest.raises(RuntimeError, match="in the middle of a prefill"):
                pruned.remove()
            leave.set()
            job.result()
    finally:
        leave.set()
        handle.remove()
        pruned.remove()
    assert torch.equal(generate(videollm, prompts(videollm)[0]), plain)


def test_of_many_threads_one_applies(videollm):
    start = threading.Barrier(4)

    def work():
        start.wait(60)
        return adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance)

    hooks = hooks_of(videollm.model)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work) for _ in range(4)]
    errors = [str(job.exception()) for job in jobs if job.exception()]
    assert len(errors) == 3
    assert all("already applied" in error for error in errors)
    for job in jobs:
        if not job.exception():
            job.result().remove()
    assert hooks_of(videollm.model) == hooks


def test_a_failed_prefill_leaves_the_callers_cache_empty(videollm):
    """A cache that held half a prompt would be continued as if it held it all."""
    from transformers import DynamicCache

    cache = DynamicCache()
    handle = videollm.model.model.language_model.layers[5].register_forward_hook(lambda *_: 1 / 0)
    try:
        with torch.no_grad(), adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance):
            with pytest.raises(ZeroDivisionError):
                videollm.model(**prompts(videollm)[0], past_key_values=cache)
            assert cache.get_seq_length() == 0
            handle.remove()
            assert videollm.model(**prompts(videollm)[0], past_key_values=cache).logits.isfinite().all()
    finally:
        handle.remove()


def test_applying_and_removing_a_thousand_times_leaves_nothing(videollm):
    before = hooks_of(videollm.model)
    for _ in range(1000):
        adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance).remove()
    assert hooks_of(videollm.model) == before


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def calls(untrained):
    """What to call the processor's model with, over and over: other videos, questions, batches and beams."""
    for i, batch in enumerate([1, 2, 1, 3, 1, 2, 1, 1, 2, 1]):
        inputs = untrained.processor(
            text=["<video>\n" + "Why? " * (i % 5 + 1)] * batch,
            videos=[make_clip(2 + i % 4, size=54)] * batch,
            return_tensors="pt",
            padding=True,
        )
        yield {**inputs, "max_new_tokens": 2, "num_beams": 2 if i == 7 else 1}


def test_a_thousand_generations_of_changing_shapes_leak_nothing():
    process, config, after = psutil.Process(), adatp.AdaTP(last=2), {}
    models = [make(image_size=56, layers=4) for make in (load_untrained, small_llava_video)]
    with ExitStack() as applied:
        for each in models:
            applied.enter_context(adatp.apply(each.model, each.processor, config, relevance=each.relevance))
        in_turn = cycle([(each.model, call) for each in models for call in calls(each)])
        for done in range(1, 1001):
            model, call = next(in_turn)
            model.generate(**call, do_sample=False)
            if done in (300, 1000):
                after[done] = live_tensors(), process.memory_info().rss
    assert after[1000][0] <= after[300][0]
    assert after[1000][1] - after[300][1] < 16 * 2**20, "bytes in memory"
