"""The helpers for Qwen-VL and InternVL, held to the unpruned models and to transformers' processors."""

from contextlib import ExitStack
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from decoding import by_generate, by_loop
from recompute_families import embed, recompute
from small_models import KINDS, make_model
from small_prompts import Image, Video, make_inputs, make_tokenizer, user_turn, write

STEPS = 32
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
DECODE = {"generate": by_generate, "loop": by_loop}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind)


def prompts(kind: str) -> dict[str, list]:
    """Batches. The second video's time runs ahead of the text after it, where positions count time by seconds."""
    if kind.startswith("internvl"):
        first, second, image = Video(7), Video(4), Image(8, 16)
    else:
        first, second, image = Video(7, 8, 12), Video(5, 12, 8, seconds=9.0), Image(4, 8)
    if kind == "qwen2_vl":
        second = Video(40, 2, 4)
    one = user_turn(second, "What is it?")
    return {
        "one": [one],
        "padded": [one, user_turn("Look: ", first, "Is it a car?")],
        "mixed": [user_turn(first, "And ", image, second, "What?"), user_turn(image, second, "Is it?")],
    }


@pytest.mark.parametrize("batch", ["one", "padded", "mixed"])
@pytest.mark.parametrize("follow", DECODE)
def test_recomputation_is_the_unpruned_model(kind, model, batch, follow):
    inputs = make_inputs(kind, model, make_tokenizer(kind), prompts(kind)[batch])
    tokens, logits = DECODE[follow](model, inputs, STEPS)
    for b, mask in enumerate(inputs["attention_mask"]):
        everything = [mask.nonzero()[:, 0]] * 16
        again = recompute(model, inputs, b, tokens[b, :-1], everything, follow=follow)
        torch.testing.assert_close(again[-STEPS:], logits[b], **CLOSE)


def test_recomputation_drops_tokens(kind, model):
    """A token that enters no layer from one on is a key that nobody sees from there on."""
    inputs = make_inputs(kind, model, make_tokenizer(kind), prompts(kind)["one"])
    visual = (inputs["input_ids"][0] == placeholder(kind, model)).nonzero()[:, 0]
    gone = {1: visual[::3], 2: visual[::2], 9: visual}
    enters = torch.ones(16, inputs["input_ids"].shape[1], dtype=torch.bool)
    for layer, tokens in gone.items():
        enters[layer:, tokens] = False
    with ExitStack() as hooks, torch.no_grad():
        for layer, seen in zip(model.model.language_model.layers, enters, strict=True):
            hooks.callback(layer.register_forward_pre_hook(partial(hide, seen), with_kwargs=True).remove)
        expected = model(**inputs).logits[0]

    kept, attentions, before = [seen.nonzero()[:, 0] for seen in enters], [], []
    none = inputs["input_ids"].new_empty(0)
    again = recompute(model, inputs, 0, none, kept, attentions=attentions, before=before)
    torch.testing.assert_close(again, expected[kept[-1]], **CLOSE)
    for collected, wanted in ((attentions, kept), (before, [kept[0], *kept[:-1]])):
        for (attention, tokens), among in zip(collected, wanted, strict=True):
            assert tokens.equal(among)
            torch.testing.assert_close(attention.sum(-1), torch.ones(4, len(tokens)))


@pytest.mark.parametrize("kind", ["internvl", "internvl-qwen3"])
@torch.no_grad()
def test_recomputation_renumbers(kind):
    """Tokens that are dropped before the first layer might then never have been there."""
    model = make_model(kind)
    inputs = make_inputs(kind, model, make_tokenizer(kind), prompts(kind)["one"])
    kept = torch.arange(inputs["input_ids"].shape[1])[::3]
    none = inputs["input_ids"].new_empty(0)
    embeds = embed(model, inputs, 0, none)[0][kept]
    expected = model.lm_head(model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state[0])
    again = recompute(model, inputs, 0, none, [kept] * 16, renumber=True)
    torch.testing.assert_close(again, expected, **CLOSE)


def hide(seen, _, args, kwargs):
    """Let every token of a layer see only these tokens, and none of its future."""
    length = len(seen)
    bar = torch.zeros(length, length).masked_fill(~seen, -1e9) + torch.full((length, length), -1e9).triu(1)
    return args, {**kwargs, "attention_mask": bar[None, None]}


def placeholder(kind: str, model) -> int:
    return model.config.image_token_id if kind.startswith("internvl") else model.config.video_token_id


def test_shots_make_segments(kind, model):
    """Similar frames in a row have similar features, and other shots others."""
    inputs = make_inputs(kind, model, make_tokenizer(kind), [user_turn(Video(7), "What?")])
    if kind.startswith("internvl"):
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    else:
        pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        features = model.model.get_video_features(pixels, grid, return_dict=True).pooler_output[0].unflatten(0, (7, -1))
    frames = features.mean(1)
    similar = torch.cosine_similarity(frames[1:], frames[:-1]) > 0.95
    assert similar.tolist() == [True, True, False, True, True, False]


@torch.no_grad()
def test_windows_permute_a_frame():
    """Qwen2.5-VL's tower computes a frame's patches in another order than it gives them to the decoder."""
    model = make_model("qwen2_5_vl", layers=1)
    inputs = make_inputs("qwen2_5_vl", model, make_tokenizer("qwen2_5_vl"), [user_turn(Video(2, 8, 12))])
    output = model.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    windows = model.model.visual.merger(output.last_hidden_state).unflatten(0, (2, 24))
    for computed, given in zip(windows, output.pooler_output.unflatten(0, (2, 24)), strict=True):
        order = torch.cdist(computed, given).argmin(1)
        torch.testing.assert_close(computed, given[order], **CLOSE)
        assert order[:6].tolist() == [0, 1, 6, 7, 2, 3]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_prompts_are_those_of_the_processors(kind):
    """The real code writes them, in a processor without its image and video processors."""
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "internvl": "InternVL"}[kind]
    classes = vars(import_module(f"transformers.models.{kind}.processing_{kind}"))
    processor = object.__new__(classes[f"{name}Processor"])
    processor.video_processor = processor.image_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    if kind == "internvl":
        processor.video_token, processor.image_token = "<video>", "<IMG_CONTEXT>"
        processor.start_image_token, processor.end_image_token, processor.image_seq_length = "<img>", "</img>", 16
        template = "<IMG_CONTEXT>\nand<video>\n!"
    else:
        processor.video_token, processor.image_token = "<|video_pad|>", "<|image_pad|>"
        processor.vision_start_token, processor.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        template = "<|vision_start|><|image_pad|><|vision_end|>and<|vision_start|><|video_pad|><|vision_end|>!"
    half_seconds = SimpleNamespace(fps=30, frames_indices=list(range(0, 14 * 15, 15)))
    video = processor.replace_video_token(
        {
            "video_grid_thw": torch.tensor([[7, 8, 8]]),
            "pixel_values_videos": torch.zeros(1, 7, 3, 1, 1),
            "video_metadata": [half_seconds],
        },
        video_idx=0,
    )
    sizes = {"image_grid_thw": torch.tensor([[1, 8, 16]]), "num_patches": [3]}
    image = processor.replace_image_token(sizes, image_idx=0)
    (text,), _ = processor.get_text_with_replacements([template], [image], [video])
    assert "".join(write(kind, part) for part in (Image(8, 16), "and", Video(7), "!")) == text


@pytest.mark.parametrize(
    ("kind", "part"),
    [("qwen3_vl", Video(2, 7, 8)), ("qwen2_vl", Image(8, 7)), ("internvl", Video(2, 8, 12)), ("internvl", Image(8, 4))],
)
def test_sizes_that_no_model_takes(kind, part):
    with pytest.raises(ValueError, match=r"must be multiples of|8 x 8 patches"):
        write(kind, part)
