"""InternVL: frames are images that the text before them names; held to a recomputation and to the rule in loops."""

import inspect
from fractions import Fraction

import oracle
import pytest
import torch
import transformers
from decoding import by_generate, by_loop
from recompute import kept_tokens
from recompute_families import recompute
from small_models import make_model
from small_prompts import Image, Video, make_inputs, make_tokenizer, user_turn, write
from transformers.modeling_outputs import BaseModelOutputWithPooling

import adatp
from adatp.errors import Unsupported, UnsupportedType
from adatp.hf.attention_map import visual_attention
from adatp.models import family_of
from adatp_kernels.select import FIXED

STEPS = 32
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
DECODE = {"generate": by_generate, "loop": by_loop}
TILES = Image(8, 16)  # two tiles and the thumbnail
CUTS = adatp.AdaTP(global_debias=False)  # the first before layer 2
EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
CONTEXT = "<IMG_CONTEXT>"
FRAME = f"<img>{CONTEXT * 16}</img>"  # without its name
METHODS = {"adatp": CUTS, "fastv": adatp.FastV(keep=0.4), "uniform": adatp.Uniform(keep=0.4)}
ONE = user_turn(Video(7), "What is it?")
PROMPTS = {
    "one": [ONE],
    "padded": [ONE, user_turn("Look: ", Video(11), "Is it a car?")],
    "images": [
        user_turn(TILES, Video(7), "And ", TILES, Video(4), Image(), "What?"),
        user_turn(TILES, "Hm?"),
        user_turn("See ", Video(6), TILES, "Is it?"),
    ],
}
encodes_first = (
    "mm_encoder_outputs" in inspect.signature(transformers.InternVLForConditionalGeneration.forward).parameters
)
newer = pytest.mark.skipif(not encodes_first, reason="features encoded beforehand need transformers 5.18")


@pytest.fixture(scope="module", params=["internvl", "internvl-qwen3"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("internvl")


@pytest.fixture(scope="module")
def qwen2():
    return make_model("internvl")


def left_of(sample, mask):
    """For every layer the prompt's tokens that enter it; all of a prompt without a video."""
    padding = int((mask == 0).sum())
    if not sample.frames:
        return [torch.arange(padding, len(mask))] * len(sample.kept)
    return kept_tokens(sample, len(mask), padding)


def one_ids(tokenizer, *parts):
    return tokenizer("".join(write("internvl", part) for part in parts), return_tensors="pt").input_ids


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_ratio_1_is_the_plain_model(kind, tokenizer, attention):
    model = make_model(kind, attention)
    inputs = make_inputs("internvl", model, tokenizer, [user_turn(TILES, Video(5), "Why?")])
    expected = by_generate(model, inputs, STEPS)[1]
    with adatp.apply(model, tokenizer, EVERYTHING) as pruned:
        assert torch.equal(by_generate(model, inputs, STEPS)[1], expected)
        assert pruned.report.samples[0].visual_tokens == 5 * 16


@pytest.mark.parametrize("batch", PROMPTS)
@pytest.mark.parametrize("follow", DECODE)
@pytest.mark.parametrize("method", METHODS)
def test_decodes_as_the_recomputation(model, tokenizer, method, follow, batch):
    inputs = make_inputs("internvl", model, tokenizer, PROMPTS[batch])
    with adatp.apply(model, tokenizer, METHODS[method]) as pruned:
        tokens, logits = DECODE[follow](model, inputs, STEPS)
    renumber = METHODS[method].renumbers
    for b, sample in enumerate(pruned.report.samples):
        kept = left_of(sample, inputs["attention_mask"][b])
        assert (sample.kept[-1] < sample.visual_tokens) is (sample.frames > 0)
        again = recompute(model, inputs, b, tokens[b, :-1], kept, follow=follow, renumber=renumber)
        torch.testing.assert_close(logits[b], again[-STEPS:], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("config", [CUTS, adatp.AdaTP(global_debias=False, first=1, last=6, p=1.5, tau_s=0.5)])
def test_every_layer_keeps_what_the_oracle_keeps(model, tokenizer, config):
    """Of a prompt behind another, with tiles of images before and between its frames."""
    prompts = [user_turn(Image(), Video(3), "Who?"), PROMPTS["images"][0]]
    inputs = make_inputs("internvl", model, tokenizer, prompts)
    with adatp.apply(model, tokenizer, config) as pruned:
        model(**inputs)
    sample, ids = pruned.report.samples[1], inputs["input_ids"][1]

    # pixels: 1 + 3 of the prompt before, 3 tiles, 7 frames, 3 tiles, 4 frames, a tile
    places = (ids == model.config.image_token_id).nonzero()[:, 0].view(-1, 16)[[*range(3, 10), *range(13, 17)]]
    states = model.model.vision_tower(inputs["pixel_values"][4:]).last_hidden_state[:, 1:].mean(1)
    first = oracle.segments(states[3:10].tolist(), config.tau_s)
    second = oracle.segments(states[13:17].tolist(), config.tau_s)
    segment_of = first + [first[-1] + 1 + own for own in second]
    assert 2 <= len(set(segment_of)) < 11
    assert [(s.start, s.stop) for s in sample.segments] == [
        (segment_of.index(s), 11 - segment_of[::-1].index(s)) for s in range(max(segment_of) + 1)
    ]
    where = {int(token): (f, p) for f, own in enumerate(places) for p, token in enumerate(own)}
    marks = tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"])
    text = [i for i in range(int(places[-1, -1]) + 1, len(ids)) if int(ids[i]) not in marks]

    attentions: list = []
    kept = left_of(sample, inputs["attention_mask"][1])
    recompute(model, inputs, 1, ids.new_empty(0), kept, attentions=attentions)
    last = config.last or 4
    ratios = oracle.schedule(16, config.p, config.first, last, config.start_ratio, config.end_ratio)
    sizes = [segment_of.count(s) for s in range(max(segment_of) + 1)]
    for layer in range(config.first, last + 2):
        attention, alive = attentions[layer - 1][0], attentions[layer - 1][1].tolist()
        scores = attention[:, [alive.index(token) for token in text]].double().mean((0, 1)).tolist()
        segment = [segment_of[where[t][0]] if t in where else FIXED for t in alive]
        position = [where[t][1] if t in where else 0 for t in alive]
        quota = oracle.quotas(Fraction(ratios[layer]), sizes, [False] * len(sizes), 16, config.alpha, config.gamma)
        keep = oracle.select(scores, segment, position, quota, config.local_debias)
        assert kept[layer].tolist() == [t for t, stays in zip(alive, keep, strict=True) if stays], f"layer {layer}"
    for layer in range(last + 1, 16):
        assert torch.equal(kept[layer], kept[last + 1])


def test_an_image_alone_is_not_pruned(qwen2, tokenizer):
    inputs = make_inputs(
        "internvl", qwen2, tokenizer, [user_turn(TILES, "Frame2: What?"), user_turn("Frame: ", Image(), "?")]
    )
    expected = by_generate(qwen2, inputs, 4)[1]
    with adatp.apply(qwen2, tokenizer, CUTS) as pruned:
        assert torch.equal(by_generate(qwen2, inputs, 4)[1], expected)
        assert not pruned.report.pruned
        assert pruned.report.reason == "no video in the prompt"


def test_beams(model, tokenizer):
    """Every copy of a prompt keeps what the prompt alone keeps; the scores are those of a recomputation."""
    inputs = make_inputs("internvl", model, tokenizer, PROMPTS["images"])
    settings = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    beams = 2
    with adatp.apply(model, tokenizer, CUTS) as pruned:
        if not encodes_first:
            with pytest.raises(Unsupported, match="copies of a prompt with several frames the wrong frames"):
                model.generate(**inputs, num_beams=beams, **settings)
            return
        model.generate(**inputs, **settings)
        alone = pruned.report.samples
        output = model.generate(
            **inputs, num_beams=beams, length_penalty=0.0, output_scores=True, num_return_sequences=beams, **settings
        )
        copies = pruned.report.samples
    length = inputs["input_ids"].shape[1]
    assert len(copies) == beams * len(alone)
    for i, sample in enumerate(copies):
        b = i // beams
        kept, expected = (left_of(own, inputs["attention_mask"][b]) for own in (sample, alone[b]))
        assert all(map(torch.equal, kept, expected))
        tokens = output.sequences[i, length:]
        again = recompute(model, inputs, b, tokens[:-1], kept)[-len(tokens) :].log_softmax(-1)
        score = again.gather(1, tokens[:, None]).sum()
        torch.testing.assert_close(output.sequences_scores[i], score, atol=1e-3, rtol=1e-4)


def test_a_static_cache(model, tokenizer):
    inputs = make_inputs("internvl", model, tokenizer, PROMPTS["images"])
    with adatp.apply(model, tokenizer, CUTS):
        _, expected = by_generate(model, inputs, 6)
        _, logits = by_generate(model, inputs, 6, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(logits, expected, **CLOSE)


@newer
def test_features_encoded_beforehand(model, tokenizer):
    inputs = make_inputs("internvl", model, tokenizer, PROMPTS["images"])
    with adatp.apply(model, tokenizer, CUTS) as pruned, torch.no_grad():
        expected, kept = by_generate(model, inputs, 6)[1], pruned.report.samples[0].kept
        encoded = model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        _, logits = by_generate(model, inputs, 6, mm_encoder_outputs={"image": encoded})
        assert pruned.report.samples[0].kept == kept
        torch.testing.assert_close(logits, expected, **CLOSE)
        encoded = BaseModelOutputWithPooling(pooler_output=encoded.pooler_output)
        with pytest.raises(Unsupported, match="carry no last_hidden_state"):
            by_generate(model, inputs, 6, mm_encoder_outputs={"image": encoded})


def test_an_image_may_follow_on_the_kept_cache_but_no_video(model, tokenizer):
    first, pixels = make_inputs("internvl", model, tokenizer, [ONE]), torch.randn(1, 3, 32, 32)
    with adatp.apply(model, tokenizer, CUTS) as pruned:
        output = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        more = {"past_key_values": output.past_key_values, "pixel_values": pixels}
        video, image = (
            torch.cat([output.sequences, one_ids(tokenizer, "Why? ", part, "So?")], 1) for part in (Video(1), Image())
        )
        with pytest.raises(Unsupported, match="cannot be pruned if the cache already holds tokens"):
            model.generate(video, **more)
        inputs = {"input_ids": image, "attention_mask": torch.ones_like(image)}
        tokens, logits = by_generate(model, inputs, 4, **more)
        kept = left_of(pruned.report.samples[0], first["attention_mask"][0])
    kept = [torch.cat([own, torch.arange(first["input_ids"].shape[1], image.shape[1])]) for own in kept]
    inputs["pixel_values"] = torch.cat([first["pixel_values"], pixels])
    again = recompute(model, inputs, 0, tokens[0, :-1], kept)
    torch.testing.assert_close(logits[0], again[-4:], **CLOSE)


def test_bf16(kind, tokenizer):
    model = make_model(kind).to(torch.bfloat16)
    inputs = make_inputs("internvl", model, tokenizer, PROMPTS["images"])
    with adatp.apply(model, tokenizer, CUTS) as pruned:
        _, logits = by_generate(model, inputs, 4)
        assert logits.isfinite().all()
        assert pruned.report.samples[0].kept[-1] < pruned.report.samples[0].kept[0]


def test_is_video_marks_the_frames_only(qwen2, tokenizer):
    family = family_of(qwen2, tokenizer)
    ids = make_inputs("internvl", qwen2, tokenizer, PROMPTS["images"])["input_ids"]
    marked = family.is_video(ids)
    assert marked.shape == ids.shape
    assert marked.sum(1).tolist() == [11 * 16, 0, 6 * 16]
    assert (ids[marked] == qwen2.config.image_token_id).all()
    for row, own in zip(ids, marked, strict=True):
        assert torch.equal(family.is_video(row), own)
        assert family.has_video(row[None]) is bool(own.any())
    layout = family.layout(ids[0])
    assert [video.frames for video in layout.videos] == [7, 4]
    assert torch.equal(layout.visual, marked[0].nonzero()[:, 0])
    assert tokenizer.decode(ids[0][layout.rows]) == "\n\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_an_image_that_is_named_by_hand_is_a_frame(qwen2, tokenizer):
    """The published way to ask about a video without a video processor."""
    family = family_of(qwen2, tokenizer)
    ids = one_ids(tokenizer, "Frame1: ", Image(), "Frame2: ", Image(), "Frame1: ", Image(), "What?")[0]
    assert [video.frames for video in family.layout(ids).videos] == [2, 1]
    assert family.layout(one_ids(tokenizer, "1", Video(101), "What?")[0]).frames == 101, "long names"
    ids = tokenizer(f"Frame1: x{CONTEXT * 16}</img>\nFrame1: <img>x{CONTEXT * 16}", return_tensors="pt").input_ids
    assert not family.has_video(ids), "a name stands right before <img>, and that right before the placeholders"


@torch.no_grad()
def test_the_feature_of_a_frame_is_the_mean_of_its_patches(qwen2):
    encoded = qwen2.get_image_features(torch.randn(3, 3, 32, 32), return_dict=True)
    features = family_of(qwen2).frame_features(encoded, None)
    torch.testing.assert_close(features, encoded.last_hidden_state[:, 1:].sum(1) / 64)


@pytest.mark.parametrize(
    ("parts", "question"),
    [
        ([Video(3), "What is it?"], "What is it?"),
        (["What is it? ", Video(3)], "What is it?"),
        (["Look: ", Image(), Video(3), "And ", TILES, "this?"], "And \nthis?"),
        ([Video(3), "What?<|im_end|>\n<|im_start|>assistant\nA car.<|im_end|>\n<|im_start|>user\nWhy?"], "Why?"),
        ([Video(12), Video(2), "Is it in Frame1:"], "Is it in Frame1:"),
        ([Video(3)], ""),
    ],
)
def test_the_question(qwen2, tokenizer, parts, question):
    family = family_of(qwen2, tokenizer)
    ids = one_ids(tokenizer, "<|im_start|>system\nBe brief.<|im_end|>\n", *user_turn(*parts))[0]
    assert family.question(ids, family.layout(ids), tokenizer) == question


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"Frame1: {FRAME}\nFrame2: <img>{CONTEXT * 9}", "Frame2 has 9 tokens, not 16"),
        (f"Frame1: <img>{CONTEXT * 32}</img>\nWhat?", "Frame1 has 32 tokens, not 16"),
        (f"Frame1: {FRAME}\nFrame3: {FRAME}\nWhat?", "Frame3 comes after Frame1"),
        (f"{CONTEXT * 3}</img>\nFrame2: {FRAME}\nWhat?", "Frame2 comes after no frame"),
        (f"Frame1: {FRAME}\nFrame2: {FRAME}\nFrame2: {FRAME}\nWhat?", "Frame2 comes after Frame2"),
    ],
)
def test_part_of_a_video(qwen2, tokenizer, text, message):
    ids = tokenizer(text, return_tensors="pt").input_ids
    with adatp.apply(qwen2, tokenizer, CUTS):
        for run in (qwen2, qwen2.generate):
            with pytest.raises(Unsupported, match=f"part of a video: {message}; the whole video must be in one"):
                run(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))


def test_inputs_embeds_do_not_tell_frames_from_images(qwen2, tokenizer):
    inputs = make_inputs("internvl", qwen2, tokenizer, [ONE])
    ids = inputs.pop("input_ids")
    embeds = qwen2.get_input_embeddings()(ids).detach()
    with adatp.apply(qwen2, tokenizer, CUTS) as pruned, torch.no_grad():
        for run in (qwen2, qwen2.generate):
            with pytest.raises(Unsupported, match=r"inputs_embeds hold images, .* pass input_ids"):
                run(inputs_embeds=embeds, **inputs)
        qwen2(inputs_embeds=embeds[:, -5:])
        assert not pruned.report.pruned, "text alone is known to hold no video"


def test_the_tokenizer_is_needed(qwen2, tokenizer):
    with pytest.raises(Unsupported, match="processor is needed to find the frames of a video"):
        adatp.apply(qwen2, method="fastv")
    inputs = make_inputs("internvl", qwen2, tokenizer, [ONE])
    with pytest.raises(Unsupported, match="processor is needed to find the frames of a video"):
        visual_attention(qwen2, inputs)
    assert visual_attention(qwen2, inputs, tokenizer).scores.shape == (16, 7, 16)


def test_the_tokenizer_of_another_family(qwen2):
    other = make_tokenizer("qwen2_vl")
    with adatp.apply(qwen2, other, CUTS), pytest.raises(Unsupported, match="tokenizer lacks '<img>'"):
        qwen2(input_ids=torch.tensor([[5, qwen2.config.image_token_id, 5]]))


def test_a_wrong_model_is_refused(qwen2, tokenizer):
    class Wrapper(torch.nn.Module):
        config = qwen2.config

    with pytest.raises(UnsupportedType, match="must be the InternVLForConditionalGeneration itself, got a Wrapper"):
        adatp.apply(Wrapper(), tokenizer)
    config = transformers.InternVLConfig(
        vision_config=qwen2.config.vision_config,
        text_config=transformers.Phi3Config(hidden_size=64, num_hidden_layers=1, vocab_size=9, pad_token_id=0),
    )
    phi = transformers.InternVLForConditionalGeneration._from_config(config)
    with pytest.raises(UnsupportedType, match="decoder like Qwen2, Qwen3 or Llama, got 'phi3'"):
        adatp.apply(phi, tokenizer)


def test_visionzip_is_refused_by_name(qwen2, tokenizer):
    with pytest.raises(Unsupported, match=r"'visionzip' reads the attention of the vision tower, which internvl"):
        adatp.apply(qwen2, tokenizer, "visionzip")
