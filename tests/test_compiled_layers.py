"""apply(compile_layers=True): the same results from one graph for all layers, and what does not go through it."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_inputs
from test_decoding import compiling
from test_patch import hooks_of

import adatp
from adatp import blocks, compiled
from adatp.untrained import load_untrained

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ONE, TWO = ["What is in the picture?"], ["What is in the picture, and where?", "Why?"]


@pytest.fixture(scope="module", autouse=True)
def _without_code_in_c():
    """What a test has compiled the others find; but only as graphs, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "BACKEND", "aot_eager")
        patch.setattr(compiled, "_GRAPHS", weakref.WeakKeyDictionary())
        yield
    torch._dynamo.reset()


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is compiled yet."""
    monkeypatch.setattr(compiled, "_GRAPHS", weakref.WeakKeyDictionary())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def ran(monkeypatch):
    """The layers that ran compiled, and how many tokens entered them, in order."""
    calls, run = [], compiled.CompiledLayers.run

    def watched(self, index, hidden, kwargs):
        calls.append((index, hidden.shape[1]))
        return run(self, index, hidden, kwargs)

    monkeypatch.setattr(compiled.CompiledLayers, "run", watched)
    return calls


def applied(untrained, method="adatp", compile_layers=True):
    return adatp.apply(
        untrained.model, untrained.processor, method, relevance=untrained.relevance, compile_layers=compile_layers
    )


def generate(untrained, inputs, method="adatp", compile_layers=True, **settings):
    """Four tokens, and the report."""
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **settings}
    with applied(untrained, method, compile_layers) as pruned:
        output = untrained.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **settings)
        return output, pruned.report


def check(untrained, inputs, method="adatp", **settings):
    """Compiled, the model keeps and says what it does uncompiled."""
    output, report = generate(untrained, inputs, method, **settings)
    expected, expected_report = generate(untrained, inputs, method, compile_layers=False, **settings)
    assert report == expected_report
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(expected.logits), **CLOSE)


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("questions", [ONE, TWO], ids=["one", "batch"])
def test_results_are_those_of_plain_layers_in_both_families(videollm, questions, ran):
    inputs = make_inputs(videollm, questions)
    for method in ("adatp", adatp.FastV(), adatp.DyCoke()):
        check(videollm, inputs, method)
    layers = list(range(16)) * len(questions)
    assert [index for index, _ in ran] == layers * 3, "every prompt by itself, and no token after it"


def test_with_every_attention(small):
    check(small, make_inputs(small, TWO))


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"use_cache": False}], ids=lambda settings: str(*settings))
def test_with(sdpa, settings):
    check(sdpa, make_inputs(sdpa, ONE), **settings)


def test_in_inference_mode(sdpa):
    with torch.inference_mode():
        check(sdpa, make_inputs(sdpa, TWO))


def test_by_the_compiler_itself(fresh, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    small = load_untrained(image_size=84, layers=4)
    for frames in (10, 7):
        check(small, make_inputs(small, ONE, frames=frames), adatp.AdaTP(last=2))
    assert graphs() == 2


def test_all_layers_lengths_and_methods_share_their_graphs(fresh, sdpa):
    for frames, questions in ((10, ONE), (7, ONE), (12, TWO)):
        generate(sdpa, make_inputs(sdpa, questions, frames=frames))
        assert graphs() == 2, "one for the layers, one for the queries that score"
    generate(sdpa, make_inputs(sdpa, ONE), adatp.VisionZip())
    assert graphs() == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_remove_leaves_nothing(sdpa):
    inputs = make_inputs(sdpa, ONE)
    before = hooks_of(sdpa.model)
    generate(sdpa, inputs)
    assert hooks_of(sdpa.model) == before


def test_what_was_compiled_goes_with_the_model(fresh):
    small = load_untrained(image_size=84, layers=15)
    generate(small, make_inputs(small, ONE))
    model = weakref.ref(small.model)
    del small
    gc.collect()
    assert model() is None
    assert not compiled._GRAPHS


def test_layers_whose_mlp_runs_in_blocks_are_not_compiled(sdpa, ran, monkeypatch):
    inputs = make_inputs(sdpa, ONE)
    monkeypatch.setattr(blocks, "TOKENS", 60)
    check(sdpa, inputs)
    _, report = generate(sdpa, inputs, compile_layers=False)
    length = inputs["input_ids"].shape[1]
    kept = report.samples[0].kept
    widths = [length - kept[0] + count for count in kept]
    assert widths[0] > 60 > widths[-1]
    assert ran == [(index, width) for index, width in enumerate(widths) if width <= 60]


def test_a_hook_inside_a_layer_is_called(sdpa, ran):
    seen = []
    handle = sdpa.model.model.language_model.layers[3].mlp.register_forward_hook(lambda *_: seen.append(1))
    try:
        check(sdpa, make_inputs(sdpa, ONE))
    finally:
        handle.remove()
    assert len(seen) == 2 * 4, "two prompts, and three more tokens each"
    assert [index for index, _ in ran] == [index for index in range(16) if index != 3]


def test_hidden_states_and_attentions():
    eager = load_untrained(image_size=84, layers=15, attention="eager")
    inputs, outputs = make_inputs(eager, TWO), []
    for compile_layers in (True, False):
        with torch.no_grad(), applied(eager, compile_layers=compile_layers):
            outputs.append(eager.model(**inputs, output_hidden_states=True, output_attentions=True))
    for name in ("hidden_states", "attentions"):
        torch.testing.assert_close(*(getattr(output, name) for output in outputs), **CLOSE)


def test_prompts_without_a_video_and_follow_ups_are_not_compiled(sdpa, ran):
    with applied(sdpa):
        text = sdpa.processor.tokenizer("Why is the sky blue?", return_tensors="pt")
        sdpa.model.generate(**text, max_new_tokens=2)
        assert ran == []
        inputs = make_inputs(sdpa, ONE)
        output = sdpa.model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        assert len(ran) == 16
        ids = torch.cat([output.sequences, text["input_ids"]], 1)
        mask = torch.ones_like(ids)
        sdpa.model.generate(ids, attention_mask=mask, past_key_values=output.past_key_values, max_new_tokens=2)
        assert len(ran) == 16


def test_decoding_is_compiled_by_transformers(fresh):
    small = load_untrained(image_size=84, layers=4)
    inputs, method = make_inputs(small, ONE), adatp.AdaTP(last=2)
    settings = {"cache_implementation": "static", "compile_config": compiling()}
    output, _ = generate(small, inputs, method, **settings)
    assert graphs() == 3, "a step of decoding is one graph"
    expected, _ = generate(small, inputs, method, compile_layers=False)
    assert torch.equal(output.sequences, expected.sequences)


def test_layers_that_the_caller_compiles_too():
    small = load_untrained(image_size=84, layers=15)
    inputs = make_inputs(small, ONE)
    with torch.no_grad(), applied(small) as pruned:
        expected, report = small.model(**inputs), pruned.report
        for layer in small.model.model.language_model.layers:
            layer.compile(backend="eager", dynamic=True)
        output = small.model(**inputs)
        assert pruned.report == report
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)


def test_threads_that_compile_at_the_same_time(fresh, sdpa):
    prompts = [make_inputs(sdpa, ONE, frames=8 + i, seed=i) for i in range(3)]
    expected = [generate(sdpa, inputs, compile_layers=False) for inputs in prompts]
    barrier = threading.Barrier(len(prompts))

    def work(inputs):
        barrier.wait(timeout=60)
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        return sdpa.model.generate(**inputs, **settings), pruned.thread_report

    with applied(sdpa) as pruned, ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(work, prompts))
    for (tokens, report), (output, expected_report) in zip(found, expected, strict=True):
        assert torch.equal(tokens, output.sequences)
        assert report == expected_report


def test_threads_see_nothing_of_what_others_compile(sdpa, monkeypatch):
    """PyTorch's `is_compiling` is true for all of them."""
    inputs = make_inputs(sdpa, ONE)
    expected, report = generate(sdpa, inputs, adatp.DyCoke(), compile_layers=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "_is_compiling_flag", True)
        output, found = generate(sdpa, inputs, adatp.DyCoke(), compile_layers=False)
    assert found == report
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(expected.logits), **CLOSE)


class TestRefused:
    def test_layers_that_something_else_runs(self):
        small = load_untrained(image_size=84, layers=15)
        layer = small.model.model.language_model.layers[5]
        layer.forward = layer.forward
        before = hooks_of(small.model)
        with pytest.raises(ValueError, match="compile_layers cannot be used where the layers' forward"):
            applied(small)
        assert hooks_of(small.model) == before

    def test_tensor_parallelism(self, sdpa, monkeypatch):
        monkeypatch.setattr(compiled, "average_over_ranks", lambda model: torch.Tensor.clone)
        with pytest.raises(ValueError, match="tensor parallelism"):
            applied(sdpa)

    def test_a_machine_without_a_compiler(self, fresh, sdpa, monkeypatch):
        def backend(graph, example):
            raise FileNotFoundError("no compiler here")

        monkeypatch.setattr(compiled, "BACKEND", backend)
        inputs = make_inputs(sdpa, ONE)
        with applied(sdpa) as pruned:
            with pytest.raises(RuntimeError, match=r"leave compile_layers out.*no compiler here"):
                sdpa.model.generate(**inputs, max_new_tokens=1)
            with pytest.raises(RuntimeError, match="there is no report"):
                _ = pruned.report
        generate(sdpa, inputs, compile_layers=False)
