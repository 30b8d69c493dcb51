"""Every method in a small model of each family, held to the published rule in plain loops and to runs without it."""

import gc
import weakref
from dataclasses import replace

import method_references as rules
import pytest
import torch
from dycoke_decoding import decode
from recompute import CLOSE, check_sequence, kept_tokens, prompt_embeds, recompute
from transformers import DynamicCache, StaticCache
from videollm import make_inputs

import adatp
from adatp.engine.scoring import Scoring
from adatp.engine.sparse_decoding import SparseVisual
from adatp.flops import linear_ratio
from adatp.layout import VideoSize
from adatp.methods import METHODS
from adatp.methods.method import BeforeDecoder, BetweenLayers
from adatp.models import family_of

TOKENS = 6
QUESTIONS = ["What is in the picture?", "And why?", "How many shots are there?"]
SHARE = 0.4  # of a frame's tokens
# between them: odd counts, windows that overlap, newlines; decoding that attends to everything
BEFORE = {
    "visionzip": adatp.VisionZip(keep=SHARE, dominant=0.5),
    "dycoke": adatp.DyCoke(k=0.6, p=0.0),
    "random": adatp.Random(keep=SHARE, seed=3),
    "uniform": adatp.Uniform(keep=SHARE),
    "pool": adatp.Pool(keep=SHARE),
}
BETWEEN = {"fastv": adatp.FastV(keep=SHARE), "pyramiddrop": adatp.PyramidDrop(keep=0.6)}
PEERS = {**BEFORE, **BETWEEN}

before = pytest.mark.parametrize("method", BEFORE.values(), ids=BEFORE)
between = pytest.mark.parametrize("method", BETWEEN.values(), ids=BETWEEN)
peers = pytest.mark.parametrize("method", PEERS.values(), ids=PEERS)
batches = pytest.mark.parametrize("size", [1, 3])


def applied(untrained, method, **settings):
    return adatp.apply(untrained.model, untrained.processor, method, relevance=untrained.relevance, **settings)


def generate(untrained, inputs, **settings):
    """`TOKENS` tokens of every prompt, greedily unless told otherwise, with their logits."""
    torch.manual_seed(0)
    lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    settings = {**lengths, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **settings}
    return untrained.model.generate(**inputs, **settings)


def tokens_of(output, inputs):
    """`[B, t]` what was generated after prompts that are in the output, or not."""
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return output.sequences[:, given:]


def prompt_of(inputs, embeds, b):
    """One prompt of a batch without its padding: ids `[L]` and embeddings `[L, D]`."""
    mask = inputs["attention_mask"][b].bool()
    return inputs["input_ids"][b, mask], embeds[b, mask]


@torch.no_grad()
def tower(untrained, pixels):
    """Saliency `[n][P]` and keys `[n][P][d]` of the tower's last layer, pooled 2 x 2, by plain attention."""
    vision = untrained.model.model.vision_tower
    states = vision(pixels, output_hidden_states=True).hidden_states
    block = vision.encoder.layers[-1]
    normed = block.layer_norm1(states[len(vision.encoder.layers) - 1])
    heads = block.self_attn.num_heads
    query, key = (
        projection(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj)
    )
    weights = (query @ key.transpose(2, 3) * key.shape[-1] ** -0.5).softmax(-1)
    saliency, keys = weights.mean((1, 2)), key.mean(1)
    side = round(saliency.shape[1] ** 0.5)

    def pool(values):
        return values.unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten(1, 2)

    return pool(saliency[..., None])[..., 0].tolist(), pool(keys).tolist()


def compressed(untrained, method, ids, embeds, pixels):
    """What the decoder is to be given: `[W, D]`, and which of the video's tokens that is, by the published rule."""
    family = family_of(untrained.model)
    visual = family.layout(ids).visual
    grid = family.grid
    n = len(pixels)
    tokens = embeds[visual].unflatten(0, (n, -1)).tolist()
    values = None
    match method:
        case adatp.VisionZip():
            saliency, keys = tower(untrained, pixels)
            indices, values = rules.visionzip(tokens, grid, saliency, keys, method.keep, dominant=(1, 2))
        case adatp.DyCoke():
            indices = rules.dycoke(tokens, method.k)
        case adatp.Uniform():
            indices = rules.uniform(len(visual), method.keep)
        case adatp.Pool():
            indices, values = rules.pool(tokens, grid, method.keep)
        case adatp.Random():
            count = method.count(n, grid)
            generator = torch.Generator().manual_seed(method.seed)
            indices = torch.randperm(len(visual), generator=generator)[:count].sort().values.tolist()
    chosen = torch.tensor(values) if values is not None else embeds[visual[indices]]
    begin, end = int(visual[0]), int(visual[-1]) + 1
    return torch.cat([embeds[:begin], chosen, embeds[end:]]), indices


def shown(sample, layer=0):
    """The visual tokens that the report shows in the input of a layer."""
    return sample.kept_mask(layer).flatten().nonzero().flatten().tolist()


class TestBeforeTheDecoder:
    """The model does what the plain model does with the compressed prompt."""

    @before
    @batches
    def test_keeps_what_the_rule_keeps_and_goes_on_like_the_plain_model(self, videollm, method, size):
        inputs = make_inputs(videollm, QUESTIONS[:size], frames=9)
        embeds = prompt_embeds(videollm.model, inputs)
        with applied(videollm, method) as pruned:
            output = generate(videollm, inputs)
            report = pruned.report
        for b, sample in enumerate(report.samples):
            ids, own = prompt_of(inputs, embeds, b)
            prompt, indices = compressed(videollm, method, ids, own, inputs["pixel_values_videos"][b])
            assert shown(sample) == sorted(indices)
            assert sample.kept == (len(indices),) * 16
            assert sample.lengths() == [len(prompt)] * 16
            expected = generate(videollm, {"inputs_embeds": prompt[None]})
            assert torch.equal(tokens_of(output, inputs)[b], tokens_of(expected, {})[0])
            for logits, wanted in zip(output.logits, expected.logits, strict=True):
                torch.testing.assert_close(logits[b], wanted[0], **CLOSE)

    @before
    @pytest.mark.parametrize(
        "settings", [{"num_beams": 3}, {"do_sample": True}, {"num_return_sequences": 2, "do_sample": True}]
    )
    def test_other_ways_of_decoding(self, videollm, method, settings):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=6)
        ids, own = prompt_of(inputs, prompt_embeds(videollm.model, inputs), 0)
        prompt, _ = compressed(videollm, method, ids, own, inputs["pixel_values_videos"][0])
        with applied(videollm, method):
            output = generate(videollm, inputs, **settings)
        expected = generate(videollm, {"inputs_embeds": prompt[None]}, **settings)
        assert torch.equal(tokens_of(output, inputs), tokens_of(expected, {}))

    @pytest.mark.parametrize("method", [BEFORE["dycoke"], BEFORE["pool"]], ids=["dycoke", "pool"])
    def test_without_a_cache(self, videollm, method):
        inputs = make_inputs(videollm, QUESTIONS[:2], frames=6)
        with applied(videollm, method):
            cached, anew = generate(videollm, inputs), generate(videollm, inputs, use_cache=False)
        assert torch.equal(cached.sequences, anew.sequences)

    def test_a_follow_up_on_the_kept_cache(self, videollm):
        method = BEFORE["visionzip"]
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=6)
        ids, own = prompt_of(inputs, prompt_embeds(videollm.model, inputs), 0)
        prompt, _ = compressed(videollm, method, ids, own, inputs["pixel_values_videos"][0])
        more = torch.randint(5, 200, (1, 7), generator=torch.Generator().manual_seed(0))
        with applied(videollm, method), torch.no_grad():
            cache = DynamicCache(config=videollm.model.config.text_config)
            videollm.model(**inputs, past_key_values=cache)
            assert cache.get_seq_length() == inputs["input_ids"].shape[1]
            logits = videollm.model(input_ids=more, past_key_values=cache).logits
        everything = torch.cat([prompt, videollm.model.get_input_embeddings()(more[0])])
        with torch.no_grad():
            expected = videollm.model(inputs_embeds=everything[None]).logits[:, -7:]
        torch.testing.assert_close(logits, expected, **CLOSE)

    def test_two_caches_at_the_same_positions(self, videollm):
        """What is made once a step is made for one cache, and does not keep it."""
        ids, positions = torch.tensor([[70]]), torch.tensor([[400]])
        prompts = [make_inputs(videollm, QUESTIONS[:1], frames=frames) for frames in (4, 8)]
        with applied(videollm, BEFORE["pool"]), torch.no_grad():
            logits = []
            for same in (True, False):
                caches = [DynamicCache(config=videollm.model.config.text_config) for _ in prompts]
                for inputs, cache in zip(prompts, caches, strict=True):
                    videollm.model(**inputs, past_key_values=cache)
                for cache in caches:
                    where = positions if same else positions.clone()
                    logits.append(videollm.model(input_ids=ids, position_ids=where, past_key_values=cache).logits)
            gone = [weakref.ref(cache) for cache in caches]
            del cache, caches
            gc.collect()
        assert [reference() for reference in gone] == [None, None]
        assert torch.equal(logits[0], logits[2])
        assert torch.equal(logits[1], logits[3])

    def test_several_videos(self, videollm):
        """Each is thinned out by itself, and what stands between them stays there."""
        method = BEFORE["uniform"]
        template = videollm.processor.apply_chat_template
        content = [{"type": "video"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
        prompt = template([{"role": "user", "content": content}], add_generation_prompt=True)
        clips = [make_inputs(videollm, ["?"], frames=5, seed=seed)["pixel_values_videos"] for seed in (0, 1)]
        frames = [torch.zeros(5, 84, 84, 3, dtype=torch.uint8).numpy()] * 2
        inputs = dict(videollm.processor(text=[prompt], videos=frames, return_tensors="pt"))
        inputs["pixel_values_videos"] = torch.cat(clips)
        embeds = prompt_embeds(videollm.model, inputs)[0]
        layout = family_of(videollm.model).layout(inputs["input_ids"][0])
        c = layout.tokens_per_frame
        chosen = torch.ones(len(embeds), dtype=torch.bool)
        chosen[layout.visual] = False
        for video in range(2):
            indices = torch.tensor(rules.uniform(5 * c, method.keep))
            chosen[layout.visual[video * 5 * c : (video + 1) * 5 * c][indices]] = True
        with applied(videollm, method) as pruned:
            output = generate(videollm, inputs)
            assert pruned.report.samples[0].videos == (VideoSize(5, layout.grid),) * 2
        expected = generate(videollm, {"inputs_embeds": embeds[chosen][None]})
        assert torch.equal(tokens_of(output, inputs), tokens_of(expected, {}))


class TestBetweenTheLayers:
    @batches
    @pytest.mark.parametrize("layer", [1, 2, 9])
    def test_fastv_keeps_what_the_last_token_attends_to(self, videollm, layer, size):
        method = replace(BETWEEN["fastv"], layer=layer)
        inputs = make_inputs(videollm, QUESTIONS[:size], frames=9)
        embeds = prompt_embeds(videollm.model, inputs)
        with applied(videollm, method) as pruned:
            output = generate(videollm, inputs)
            report = pruned.report
        for b, sample in enumerate(report.samples):
            ids, own = prompt_of(inputs, embeds, b)
            attentions = []
            with torch.no_grad():
                recompute(videollm.model, own, [torch.arange(len(own))] * 16, attentions=attentions)
            visual = family_of(videollm.model).layout(ids).visual
            heads = attentions[layer - 1][0][:, -1, visual].tolist()
            assert shown(sample, layer) == rules.fastv(heads, method.keep)
            assert shown(sample, layer - 1) == list(range(len(visual)))
            logits = torch.stack([step[b] for step in output.logits])
            check_sequence(videollm.model, own, sample, tokens_of(output, inputs)[b], logits)

    @batches
    @torch.no_grad()
    def test_pyramiddrop_drops_stage_by_stage_and_renumbers(self, videollm, size):
        method = BETWEEN["pyramiddrop"]
        inputs = make_inputs(videollm, QUESTIONS[:size], frames=9)
        embeds = prompt_embeds(videollm.model, inputs)
        with applied(videollm, method) as pruned:
            output = generate(videollm, inputs)
            report = pruned.report
        for b, sample in enumerate(report.samples):
            ids, own = prompt_of(inputs, embeds, b)
            visual = family_of(videollm.model).layout(ids).visual.tolist()
            kept, seen = kept_tokens(sample, len(own)), []
            recompute(videollm.model, own, kept, renumber=True, before=seen)

            def heads_of(stage, left, seen=seen, visual=visual):
                attention, alive = seen[4 * stage]
                places = [alive.tolist().index(visual[token]) for token in left]
                return attention[:, -1, places].tolist()

            expected = rules.pyramiddrop(heads_of, len(visual), method.keep, 4)
            assert [shown(sample, 4 * stage) for stage in range(4)] == expected
            assert sample.kept == tuple(len(expected[layer // 4]) for layer in range(16))
            generated = tokens_of(output, inputs)[b]
            everything = torch.cat([own, videollm.model.get_input_embeddings()(generated[:-1])])
            again = recompute(videollm.model, everything, kept, renumber=True)[-TOKENS:]
            torch.testing.assert_close(torch.stack([step[b] for step in output.logits]), again, **CLOSE)

    @between
    def test_beams_are_those_of_a_recomputation(self, videollm, method):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=6)
        embeds = prompt_embeds(videollm.model, inputs)[0]
        with applied(videollm, method) as pruned:
            output = generate(videollm, inputs, num_beams=3, output_scores=True)
            kept = kept_tokens(pruned.report.samples[0], len(embeds))
        sequence = tokens_of(output, inputs)[0]
        everything = torch.cat([embeds, videollm.model.get_input_embeddings()(sequence[:-1])])
        with torch.no_grad():
            again = recompute(videollm.model, everything, kept, renumber=method.renumbers)[-TOKENS:]
        for step, (beam, wanted) in enumerate(zip(output.beam_indices[0][:TOKENS].tolist(), again, strict=True)):
            torch.testing.assert_close(output.logits[step][beam], wanted, **CLOSE)

    @between
    def test_settings_that_leave_no_visual_token(self, videollm, method):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        with applied(videollm, replace(method, keep=0.001)) as pruned:
            output = generate(videollm, inputs)
            report = pruned.report
        assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + TOKENS
        assert report.samples[0].kept[-1] == 0
        assert "sample 0 has no visual token left" in report.notes[0]


class TestEveryMethod:
    @peers
    def test_a_batch_is_each_of_its_prompts_alone(self, videollm, method):
        inputs = make_inputs(videollm, QUESTIONS, frames=5)
        with applied(videollm, method) as pruned:
            together, report = generate(videollm, inputs), pruned.report
            for b in range(3):
                mask = inputs["attention_mask"][b].bool()
                alone = {name: inputs[name][b : b + 1, mask] for name in ("input_ids", "attention_mask")}
                alone["pixel_values_videos"] = inputs["pixel_values_videos"][b : b + 1]
                single = generate(videollm, alone)
                assert pruned.report.samples[0] == report.samples[b]
                assert torch.equal(tokens_of(single, alone)[0], tokens_of(together, inputs)[b])

    @peers
    @pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
    def test_a_static_cache_gives_what_a_growing_one_gives(self, videollm, method, settings):
        inputs = make_inputs(videollm, QUESTIONS[:2], frames=5)
        with applied(videollm, method):
            growing = generate(videollm, inputs, **settings)
            for _ in range(2):
                fixed = generate(videollm, inputs, cache_implementation="static", disable_compile=True, **settings)
                assert torch.equal(growing.sequences, fixed.sequences)

    @peers
    def test_a_static_cache_is_used_again(self, videollm, method):
        size = 400
        cache = StaticCache(config=videollm.model.config.text_config, max_cache_len=size)
        with applied(videollm, method):
            for frames in (6, 4):
                inputs = make_inputs(videollm, QUESTIONS[:1], frames=frames)
                expected = generate(videollm, inputs)
                output = generate(videollm, inputs, past_key_values=cache)
                assert torch.equal(expected.sequences, output.sequences)
                cache.reset()

    @peers
    def test_prompt_lookup_gives_what_greedy_gives(self, videollm, method):
        inputs = make_inputs(videollm, ["abcabcabcabc"], frames=4)
        with applied(videollm, method):
            expected = generate(videollm, inputs)
            output = generate(videollm, inputs, prompt_lookup_num_tokens=3)
        assert torch.equal(expected.sequences, output.sequences)

    @peers
    def test_hidden_states_show_what_is_left(self, videollm, method):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        with applied(videollm, method) as pruned, torch.no_grad():
            output = videollm.model(**inputs, output_hidden_states=True)
            lengths = pruned.report.samples[0].lengths()
        # what enters the first layer, and what each puts out
        assert [state.shape[1] for state in output.hidden_states] == [lengths[0], *lengths]

    @pytest.mark.parametrize("name", METHODS)
    def test_in_and_out_again(self, videollm, name):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        plain = generate(videollm, inputs)
        with applied(videollm, name) as pruned:
            generate(videollm, inputs)
            report = pruned.report
        assert report.method == METHODS[name]()
        assert report.samples[0].method == METHODS[name]()
        assert report.to_dict()["method"] == name
        assert name in str(report).splitlines()[0]
        again = generate(videollm, inputs)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, again.logits, strict=True))

    @peers
    def test_attention_implementations(self, small, sdpa, method):
        inputs = make_inputs(small, QUESTIONS[:2], frames=5)
        outputs = []
        for untrained in (small, sdpa):
            with applied(untrained, method):
                outputs.append(generate(untrained, inputs))
        assert torch.equal(*(output.sequences for output in outputs))
        for one, other in zip(*(output.logits for output in outputs), strict=True):
            torch.testing.assert_close(one, other, **CLOSE)

    def test_none_is_the_plain_model(self, videollm):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        plain = generate(videollm, inputs)
        with applied(videollm, "none") as pruned:
            output, report = generate(videollm, inputs), pruned.report
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, output.logits, strict=True))
        assert report.flops.ratio == 1
        assert report.samples[0].kept == (report.samples[0].visual_tokens,) * 16

    def test_only_what_is_asked_for_is_computed(self, videollm, monkeypatch):
        """Peers pay for no text tower, and none but VisionZip for another look at the vision tower."""
        relevance = videollm.relevance
        monkeypatch.setattr(type(relevance), "forward", lambda *_: pytest.fail("relevance was computed"))
        family = type(family_of(videollm.model))
        monkeypatch.setattr(family, "tower_attention", lambda *_: pytest.fail("the tower was asked"))
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        for name in set(METHODS) - {"adatp", "visionzip"}:
            with applied(videollm, name):
                generate(videollm, inputs)


class TestDecodingOfDyCoke:
    @batches
    def test_attends_to_what_the_published_code_attends_to(self, videollm, size):
        method = adatp.DyCoke(k=0.6, layer=3, p=0.5)
        inputs = make_inputs(videollm, QUESTIONS[:size], frames=9)
        embeds = prompt_embeds(videollm.model, inputs)
        with applied(videollm, method):
            output = generate(videollm, inputs, max_new_tokens=10, min_new_tokens=10)
        with applied(videollm, replace(method, p=0.0)):
            everything = generate(videollm, inputs, max_new_tokens=10, min_new_tokens=10)
        assert not torch.equal(output.logits[1], everything.logits[1])
        chose = []
        for b in range(size):
            ids, own = prompt_of(inputs, embeds, b)
            prompt, indices = compressed(videollm, method, ids, own, inputs["pixel_values_videos"][b])
            begin = int(family_of(videollm.model).layout(ids).visual[0])
            visual, generated = torch.arange(begin, begin + len(indices)), tokens_of(output, inputs)[b]
            logits, chosen = decode(videollm.model, prompt, visual, generated[:-1], layer=3, p=0.5)
            torch.testing.assert_close(torch.stack([step[b] for step in output.logits]), logits, **CLOSE)
            chose += chosen
        assert any(chose)

    def test_attends_to_everything_where_attention_is_steady(self, videollm, monkeypatch):
        """Both branches of the rule, the second forced: every step but the first finds its attention steady."""
        monkeypatch.setattr("adatp.engine.sparse_decoding.STEADY", -1.0)
        inputs = make_inputs(videollm, QUESTIONS[:2], frames=9)
        with applied(videollm, adatp.DyCoke(p=0.5)):
            sparse = generate(videollm, inputs)
        with applied(videollm, adatp.DyCoke(p=0.0)):
            everything = generate(videollm, inputs)
        assert not torch.equal(sparse.logits[1], everything.logits[1])

    def test_beams_take_their_attention_along(self, videollm):
        method = adatp.DyCoke(k=0.6, layer=3, p=0.5)
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=9)
        ids, own = prompt_of(inputs, prompt_embeds(videollm.model, inputs), 0)
        prompt, indices = compressed(videollm, method, ids, own, inputs["pixel_values_videos"][0])
        begin = int(family_of(videollm.model).layout(ids).visual[0])
        visual = torch.arange(begin, begin + len(indices))
        with applied(videollm, method):
            output = generate(videollm, inputs, num_beams=3, output_scores=True)
        generated = tokens_of(output, inputs)[0]
        logits, _ = decode(videollm.model, prompt, visual, generated[:-1], layer=3, p=0.5)
        beam = output.beam_indices[0][:TOKENS].tolist()
        for step, (row, wanted) in enumerate(zip(beam, logits, strict=True)):
            torch.testing.assert_close(output.logits[step][row], wanted, **CLOSE)

    def test_several_tokens_at_once_attend_to_everything(self, videollm):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=6)
        more = torch.randint(5, 200, (1, 4), generator=torch.Generator().manual_seed(0))
        logits = []
        for p in (0.5, 0.0):
            with applied(videollm, adatp.DyCoke(p=p)), torch.no_grad():
                cache = DynamicCache(config=videollm.model.config.text_config)
                videollm.model(**inputs, past_key_values=cache)
                logits.append(videollm.model(input_ids=more, past_key_values=cache).logits)
        assert torch.equal(*logits)

    def test_a_static_cache_is_refused(self, videollm):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        with applied(videollm, "dycoke"):
            with pytest.raises(ValueError, match=r"cache_implementation='static'.*DyCoke\(p=0\)"):
                generate(videollm, inputs, cache_implementation="static")
            cache = StaticCache(config=videollm.model.config.text_config, max_cache_len=300)
            with pytest.raises(TypeError, match="StaticCache"):
                generate(videollm, inputs, past_key_values=cache)

    def test_the_state_by_hand(self):
        """Two samples, the second with steady attention; padding, text and the last visual token are never left out."""
        visual = torch.tensor([[False, True, True, True, False], [True, True, False, False, False]])
        state = SparseVisual(visual, torch.tensor([1, 1]))
        key = torch.eye(6)[None, None].repeat(2, 1, 1, 1) * 20

        def step(*attends):
            query = torch.eye(6)[list(attends)][:, None, None]
            state.choose(query, key, None, scale=1.0, scoring=Scoring("reference"))
            return state.attended.tolist()

        assert step(2, 1) == [[True, False, True, False, True], [False, True, True, True, True]]
        assert step(3, 1) == [[True, False, False, True, True], [True] * 5]
        state.reorder(torch.tensor([1, 0]))
        assert step(1, 3) == [[True] * 5, [True] * 5]


class TestBudget:
    @pytest.mark.parametrize("share", [0.55, 0.7])
    @pytest.mark.parametrize("name", [name for name in METHODS if name not in ("none", "adatp", "dycoke")])
    def test_the_nearest_setting(self, videollm, name, share):
        inputs = make_inputs(videollm, QUESTIONS[:2], frames=10)
        with applied(videollm, name, flops=share) as pruned, torch.no_grad():
            videollm.model(**inputs)
            report = pruned.report
        for sample in report.samples:
            full = sample.visual_tokens + sample.other_tokens
            ratio = linear_ratio(sample.lengths(), full)
            finest = max(sample.frames * (1 + sample.grid.newlines), 16) / full
            assert abs(ratio - share) <= finest, "no more than a token a frame, or a token a layer, away"
            default = METHODS[name]()
            knob = {default.knob}
            changed = {k for k, v in sample.method.settings().items() if v != default.settings()[k]}
            assert changed <= knob
        assert report.flops.ratio == pytest.approx(share, abs=0.1)

    @pytest.mark.parametrize("share", [0.48, 0.55])
    def test_adatp_with_what_deduplication_takes(self, videollm, share):
        """Where the settings alone would cost more: its p is turned until the video costs what was asked."""
        method = adatp.AdaTP(tau_s=1.0)  # a segment a frame: nothing to deduplicate, everything in reach
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=8)
        with applied(videollm, method, flops=share) as pruned, torch.no_grad():
            videollm.model(**inputs)
            report = pruned.report
        assert report.flops.ratio == pytest.approx(share, abs=0.01)
        assert report.notes == ()
        settings = report.samples[0].method
        with applied(videollm, settings) as pruned, torch.no_grad():
            videollm.model(**inputs)
            assert pruned.report.samples[0] == report.samples[0]

    def test_adatp_at_the_same_setting_whatever_follows_the_prompt(self, videollm):
        """What is drafted, or generated without a cache, comes with the prompt, and is no part of its cost."""
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=8)
        settings = []
        with applied(videollm, adatp.AdaTP(tau_s=1.0), flops=0.5) as pruned, torch.no_grad():
            for length in (1, 16):
                generate(videollm, inputs, max_new_tokens=length, min_new_tokens=length, use_cache=False)
                settings.append(pruned.report.samples[0].method)
        assert settings[0] == settings[1]

    def test_adatp_out_of_reach_of_its_deduplication(self, videollm):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=8)
        method = adatp.AdaTP(segments=False)  # one segment keeps one token a position
        with applied(videollm, method, flops=0.6) as pruned, torch.no_grad():
            videollm.model(**inputs)
            report = pruned.report
        assert report.flops.ratio < 0.55
        assert "flops=0.6 is out of reach" in report.notes[0]
        assert f"{report.flops.ratio:.4f}" in report.notes[0]
        assert report.samples[0].method.p == 2.5

    def test_out_of_reach_is_refused_before_the_tower_runs(self, videollm, monkeypatch):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=8)
        ran = []
        handle = videollm.model.model.vision_tower.register_forward_pre_hook(lambda *_: ran.append(1))
        try:
            for name in ("adatp", "fastv", "dycoke", "pyramiddrop"):
                with (
                    applied(videollm, name, flops=0.05),
                    torch.no_grad(),
                    pytest.raises(ValueError, match=rf"flops must be from 0\.\d+ to .* method '{name}'"),
                ):
                    videollm.model(**inputs)
        finally:
            handle.remove()
        assert not ran

    @pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
    def test_no_share(self, videollm, share):
        with pytest.raises(ValueError, match=r"flops must be a share of the unpruned FLOPs, in \(0, 1\]"):
            applied(videollm, "fastv", flops=share)

    def test_none_has_no_budget(self, videollm):
        with pytest.raises(ValueError, match="flops cannot be used with the method 'none'"):
            applied(videollm, "none", flops=0.5)


class TestRefused:
    def test_names(self, videollm):
        with pytest.raises(ValueError, match=r"method must be one of adatp, fastv.*, got 'fastvideo'"):
            applied(videollm, "fastvideo")
        with pytest.raises(TypeError, match=r"method must be a name or a method such as AdaTP\(p=1.5\), got None"):
            applied(videollm, None)

    @pytest.mark.parametrize(
        ("method", "message"),
        [
            (adatp.FastV(layer=16), "layer must be a layer of the model, at most 15, got 16"),
            (adatp.PyramidDrop(stages=17), "stages must be at most the model's 16 layers, got 17"),
            (adatp.DyCoke(layer=16), "layer must be"),
            (adatp.AdaTP(last=16), "last must be"),
        ],
    )
    def test_settings_that_do_not_fit_the_model(self, videollm, method, message):
        with pytest.raises(ValueError, match=message):
            applied(videollm, method)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: adatp.FastV(keep=0), r"keep must be in \(0, 1\], got 0"),
            (lambda: adatp.FastV(layer=0), "layer must be at least 1"),
            (lambda: adatp.PyramidDrop(keep=1.1), r"keep must be in \(0, 1\], got 1.1"),
            (lambda: adatp.PyramidDrop(stages=1), "stages must be at least 2"),
        ],
    )
    def test_settings_out_of_range(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_features_without_what_visionzip_reads(self, videollm):
        inputs = make_inputs(videollm, QUESTIONS[:1], frames=4)
        with torch.no_grad():
            features = videollm.model.get_video_features(inputs["pixel_values_videos"], return_dict=True)
        if all(state is not None for state in features.hidden_states):
            pytest.skip("this version of transformers keeps every hidden state")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with applied(videollm, "visionzip"), torch.no_grad(), pytest.raises(ValueError, match="carry no hidden_states"):
            videollm.model(**inputs, mm_encoder_outputs={"video": features})


def test_every_method_is_of_one_kind():
    for method in METHODS.values():
        assert issubclass(method, BeforeDecoder) != issubclass(method, BetweenLayers)
