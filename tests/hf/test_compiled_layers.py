"""apply(compile_layers=True): the same results from one graph for all layers, and what does not go through it.

A CUDA graph of the last layers is tested on the CPU as far as that goes: there, too, they run on buffers that stay.
"""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_decoding import compiling
from test_hooks import hooks_of
from transformers import DynamicCache
from videollm import ATTENTIONS, FAMILIES, make_inputs, make_small, make_videollm

import adatp
from adatp.hf import compiled_layers
from adatp.hf import last_layers as last_layers_module
from adatp.small.untrained import load_untrained
from adatp.tensors import blocks

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ONE, TWO = ["What is in the picture?"], ["What is in the picture, and where?", "Why?"]


@pytest.fixture(scope="module", autouse=True)
def _without_code_in_c():
    """What a test has compiled the others find; but only as graphs, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_layers, "BACKEND", "aot_eager")
        patch.setattr(compiled_layers, "_GRAPHS", weakref.WeakKeyDictionary())
        patch.setattr(compiled_layers, "_WARM", weakref.WeakSet())
        yield
    torch._dynamo.reset()


# models of this file's own: others ask theirs for hidden states, and transformers leaves hooks in them for good


@pytest.fixture(scope="module", params=ATTENTIONS)
def small(request):
    return make_small(request.param)


@pytest.fixture(scope="module", params=FAMILIES)
def videollm(request):
    return make_videollm(request.param)


@pytest.fixture(scope="module")
def sdpa():
    return make_small("sdpa")


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is compiled yet."""
    monkeypatch.setattr(compiled_layers, "_GRAPHS", weakref.WeakKeyDictionary())
    monkeypatch.setattr(compiled_layers, "_WARM", weakref.WeakSet())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def ran(monkeypatch):
    """The layers that ran compiled, and how many tokens entered them, in order."""
    calls, run = [], compiled_layers.CompiledLayers.run

    def watched(self, index, hidden, kwargs):
        calls.append((index, hidden.shape[1]))
        return run(self, index, hidden, kwargs)

    monkeypatch.setattr(compiled_layers.CompiledLayers, "run", watched)
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
    monkeypatch.setattr(compiled_layers, "BACKEND", "inductor")
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
    assert not compiled_layers._GRAPHS


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


def test_a_hook_inside_a_layer_is_called_and_the_report_says_so(sdpa, ran):
    seen, inputs = [], make_inputs(sdpa, ONE)
    plain, report = generate(sdpa, inputs, compile_layers=False)
    handle = sdpa.model.model.language_model.layers[3].mlp.register_forward_hook(lambda *_: seen.append(1))
    try:
        output, hooked = generate(sdpa, inputs)
    finally:
        handle.remove()
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(plain.logits), **CLOSE)
    assert len(seen) == 4, "a prompt, and three more tokens"
    assert [index for index, _ in ran] == [index for index in range(16) if index != 3]
    (note,) = set(hooked.notes) - set(report.notes)
    assert "ran uncompiled, because there are hooks inside them" in note


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


def threads_that_share(untrained):
    """Three threads begin at the same time, with prompts of their own."""
    prompts = [make_inputs(untrained, ONE, frames=8 + i, seed=i) for i in range(3)]
    expected = [generate(untrained, inputs, compile_layers=False) for inputs in prompts]
    barrier = threading.Barrier(len(prompts))

    def work(inputs):
        barrier.wait(timeout=60)
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        return untrained.model.generate(**inputs, **settings), pruned.thread_report

    with applied(untrained) as pruned, ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(work, prompts))
    for (tokens, report), (output, expected_report) in zip(found, expected, strict=True):
        assert torch.equal(tokens, output.sequences)
        assert report == expected_report


def test_threads_take_turns_until_a_prefill_has_run_compiled(fresh, sdpa, monkeypatch):
    """A second thread enters the model once the first one's prefill is done, and at any time later on."""
    inputs, entered, inside = make_inputs(sdpa, ONE), threading.Event(), []
    tower = sdpa.model.model.vision_tower

    def wait(*_):
        inside.append(threading.get_ident())
        entered.wait(timeout=0.5)  # nobody else comes meanwhile
        assert len(set(inside)) == 1 or pruned._hooks._compiled.is_warm

    with monkeypatch.context() as patch, applied(sdpa) as pruned:
        patch.setattr(blocks, "TOKENS", 1)
        with torch.no_grad():
            sdpa.model(**inputs)
        assert not pruned._hooks._compiled.is_warm, "no layer ran compiled"
    handle = tower.register_forward_pre_hook(wait)
    try:
        with applied(sdpa) as pruned, ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: sdpa.model.generate(**inputs, max_new_tokens=1), range(2)))
            assert pruned._hooks._compiled.is_warm
    finally:
        handle.remove()
    assert len(set(inside)) == 2


def test_threads_that_compile_at_the_same_time(fresh, sdpa):
    threads_that_share(sdpa)


def test_threads_see_nothing_of_what_others_compile(sdpa, monkeypatch):
    """PyTorch's `is_compiling` is true for all of them."""
    inputs = make_inputs(sdpa, ONE)
    expected, report = generate(sdpa, inputs, adatp.DyCoke(), compile_layers=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "_is_compiling_flag", True)
        output, found = generate(sdpa, inputs, adatp.DyCoke(), compile_layers=False)
    assert found == report
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(expected.logits), **CLOSE)


@pytest.fixture
def last_layers(monkeypatch):
    """The last layers run as one on the CPU too; what was run so."""
    made, init = [], last_layers_module.LastLayers.__init__

    def watched(self, *args):
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(last_layers_module, "DEVICES", {"cpu"})
    monkeypatch.setattr(last_layers_module.LastLayers, "__init__", watched)
    return made


class TestLastLayers:
    @pytest.mark.parametrize("questions", [ONE, TWO], ids=["one", "batch"])
    def test_results_are_those_of_plain_layers_in_both_families(self, videollm, questions, last_layers, ran):
        inputs = make_inputs(videollm, questions)
        for method, first in (("adatp", 5), (adatp.FastV(), 2), (adatp.PyramidDrop(), 12)):
            ran.clear()
            check(videollm, inputs, method)
            assert last_layers[-1]._recordings
            assert [index for index, _ in ran] == list(range(first)) * len(questions)
        check(videollm, inputs, adatp.VisionZip())
        assert not last_layers[-1]._recordings, "no cut between the layers"

    def test_with_every_attention(self, small, last_layers):
        check(small, make_inputs(small, TWO))
        assert last_layers[-1]._recordings

    @pytest.mark.parametrize("settings", [{"num_beams": 2}, {"use_cache": False}], ids=lambda settings: str(*settings))
    def test_with(self, sdpa, last_layers, settings):
        check(sdpa, make_inputs(sdpa, ONE), **settings)
        assert last_layers[-1]._recordings

    def test_in_inference_mode_and_out_of_it(self, sdpa, last_layers):
        inputs = make_inputs(sdpa, ONE)
        with applied(sdpa) as pruned, torch.no_grad():
            first = sdpa.model(**inputs).logits
            report = pruned.report
            with torch.inference_mode():
                second = sdpa.model(**inputs).logits
            third = sdpa.model(**inputs).logits
            assert pruned.report == report
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert len(last_layers[-1]._recordings) == 1

    def test_nothing_of_a_prompt_reaches_the_next(self, sdpa, last_layers):
        """Whatever is in the buffers, and whatever is done with what came out of them."""
        prompts = [make_inputs(sdpa, ONE, frames=frames) for frames in (12, 8)]
        with applied(sdpa), torch.no_grad():
            outputs = [sdpa.model(**inputs) for inputs in prompts]
            kept = [[layer.keys.clone() for layer in output.past_key_values.layers] for output in outputs]
            recordings = last_layers[-1]._recordings.values()
            for recording in recordings:
                for buffer in recording._inputs:
                    buffer.fill_(float("nan"))
            for inputs, output in zip(reversed(prompts), reversed(outputs), strict=True):
                assert torch.equal(sdpa.model(**inputs).logits, output.logits)
            for output, keys in zip(outputs, kept, strict=True):
                for layer, before in zip(output.past_key_values.layers, keys, strict=True):
                    assert torch.equal(layer.keys, before)
        assert len(recordings) == 1

    @staticmethod
    def run(untrained, last_layers, width):
        """What the last two layers make of a prompt of that width: hidden states, keys and values."""
        hidden, cache = torch.randn(1, width, 128), DynamicCache()
        tables = untrained.model.model.language_model.rotary_emb(hidden, torch.arange(width)[None])
        output = last_layers.run(14, hidden, {"position_embeddings": tables, "past_key_values": cache})
        return [output, *(states for layer in cache.layers[14:] for states in (layer.keys, layer.values))]

    def test_what_is_put_out_is_not_what_the_next_replay_writes_to(self, sdpa, last_layers, monkeypatch):
        run, held = last_layers_module._Recording._run, []

        def as_a_graph(self):
            """To where the first run has put it."""
            outputs = run(self)
            held.extend(outputs if not held else ())
            for tensor, output in zip(held, outputs, strict=True):
                tensor.copy_(output)
            return held

        monkeypatch.setattr(last_layers_module._Recording, "_run", as_a_graph)
        found = []
        with applied(sdpa):
            for _ in range(2):
                tensors = self.run(sdpa, last_layers[-1], 20)
                found.append((tensors, [tensor.clone() for tensor in tensors]))
        (first, first_then), (second, _) = found
        for before, after, other in zip(first_then, first, second, strict=True):
            assert torch.equal(before, after)
            assert not torch.equal(before, other)

    def test_widths_share_recordings_of_which_few_are_kept(self, sdpa, last_layers, monkeypatch):
        monkeypatch.setattr(last_layers_module, "KEPT", 2)
        made, init = [], last_layers_module._Recording.__init__

        def watched(self, layers, first, width, like):
            made.append(width)
            init(self, layers, first, width, like)

        monkeypatch.setattr(last_layers_module._Recording, "__init__", watched)
        with applied(sdpa):
            for width in (30, 64, 65, 40, 129, 192, 10, 100):
                output, *_ = self.run(sdpa, last_layers[-1], width)
                assert output.shape[1] == width
                assert len(last_layers[-1]._recordings) <= 2
        assert made == [64, 128, 192, 128], "of 64, 128 and 192, that of 128 was used the longest ago"

    def test_weights_that_have_moved_are_recorded_anew(self, last_layers):
        small = load_untrained(image_size=84, layers=15)
        inputs = make_inputs(small, ONE)
        with applied(small), torch.no_grad():
            first = small.model(**inputs).logits
            for parameter in small.model.model.language_model.parameters():
                parameter.data = parameter.data * 1.01
            second = small.model(**inputs).logits
        assert len(last_layers[-1]._recordings) == 2
        assert not torch.equal(first, second)
        with applied(small, compile_layers=False), torch.no_grad():
            torch.testing.assert_close(second, small.model(**inputs).logits, **CLOSE)

    def test_hidden_states_and_attentions(self, last_layers):
        eager = load_untrained(image_size=84, layers=15, attention="eager")
        inputs, outputs = make_inputs(eager, TWO), []
        for compile_layers in (True, False):
            with torch.no_grad(), applied(eager, compile_layers=compile_layers):
                outputs.append(eager.model(**inputs, output_hidden_states=True))
        torch.testing.assert_close(*(output.hidden_states for output in outputs), **CLOSE)
        assert not last_layers[0]._recordings

    @pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
    def test_a_hook_on_one_of_them_sees_every_layer(self, sdpa, last_layers, register):
        seen = []
        layer = sdpa.model.model.language_model.layers[9]
        handle = getattr(layer, register)(lambda module, args, *_: seen.append(args[0]))
        try:
            check(sdpa, make_inputs(sdpa, ONE))
        finally:
            handle.remove()
        (compiled_run, *_), (plain_run, *_) = seen[:4], seen[4:]
        torch.testing.assert_close(compiled_run, plain_run, **CLOSE)
        assert not last_layers[-1]._recordings

    def test_threads_take_turns(self, sdpa, last_layers):
        threads_that_share(sdpa)
        assert last_layers[-1]._recordings

    def test_layers_whose_mlp_runs_in_blocks_run_one_by_one(self, sdpa, last_layers, monkeypatch):
        monkeypatch.setattr(blocks, "TOKENS", 30)
        check(sdpa, make_inputs(sdpa, ONE))
        assert not last_layers[-1]._recordings

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
    def test_a_cuda_graph_replays_what_the_layers_do(self, monkeypatch):
        monkeypatch.setattr(compiled_layers, "BACKEND", "inductor")
        small = load_untrained(image_size=84, layers=16, attention="sdpa")
        small.model.to("cuda")
        prompts = [make_inputs(small, ONE, frames=frames).to("cuda") for frames in (8, 9, 8)]
        with torch.no_grad():
            with applied(small, compile_layers=False):
                expected = [small.model(**inputs) for inputs in prompts]
            with applied(small) as pruned:
                outputs = [small.model(**inputs) for inputs in prompts]
                recordings = pruned._hooks._last_layers._recordings.values()
                assert recordings
                assert all(recording._graph is not None for recording in recordings)
        for output, plain in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output.logits, plain.logits, **CLOSE)
            for layer, plain_layer in zip(output.past_key_values.layers, plain.past_key_values.layers, strict=True):
                torch.testing.assert_close(layer.keys, plain_layer.keys, **CLOSE)
                torch.testing.assert_close(layer.values, plain_layer.values, **CLOSE)
        assert torch.equal(outputs[0].logits, outputs[2].logits), "a replay in between leaves nothing"


class TestRefused:
    def test_layers_that_something_else_runs(self):
        small = load_untrained(image_size=84, layers=15)
        layer = small.model.model.language_model.layers[5]
        layer.forward = layer.forward
        before = hooks_of(small.model)
        with pytest.raises(ValueError, match="compile_layers cannot be used if the layers' forward"):
            applied(small)
        assert hooks_of(small.model) == before

    def test_tensor_parallelism(self, sdpa, monkeypatch):
        monkeypatch.setattr(compiled_layers, "average_over_ranks", lambda model: torch.Tensor.clone)
        with pytest.raises(ValueError, match="tensor parallelism"):
            applied(sdpa)

    def test_a_machine_without_a_compiler(self, fresh, sdpa, monkeypatch):
        def backend(graph, example):
            raise FileNotFoundError("no compiler here")

        monkeypatch.setattr(compiled_layers, "BACKEND", backend)
        inputs = make_inputs(sdpa, ONE)
        with applied(sdpa) as pruned:
            with pytest.raises(RuntimeError, match=r"Leave compile_layers out.*no compiler here"):
                sdpa.model.generate(**inputs, max_new_tokens=1)
            with pytest.raises(RuntimeError, match="there is no report"):
                _ = pruned.report
        generate(sdpa, inputs, compile_layers=False)
