"""What Qwen-VL's families refuse: before the vision tower or a layer of the decoder runs, and by a clear error."""

from contextlib import ExitStack

import pytest
import torch
from small_models import QWEN_CLASSES, make_model
from small_prompts import Image, Video, make_inputs, make_tokenizer, user_turn

import adatp

FIRST, SECOND = Video(7, 8, 12), Video(5, 12, 8)
ONE, TWO = [user_turn(FIRST, "What?")], [user_turn(FIRST, Image(4, 8), SECOND, "What?")]
PAIR = [user_turn(SECOND, "What is it?"), user_turn("Look: ", FIRST, "Is it a car?")]


@pytest.fixture(scope="module", params=QWEN_CLASSES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind, layers=4)


@pytest.fixture(scope="module")
def tokenizer(kind):
    return make_tokenizer(kind)


def without_a_grid(_, inputs):
    del inputs["video_grid_thw"]


def grid(*rows, **settings):
    """The grid is these rows."""

    def change(_, inputs):
        inputs["video_grid_thw"] = torch.tensor(rows, **settings)

    return change


def a_frame_less(_, inputs):
    """Of the pixels and the grid, but not of the prompt."""
    inputs["video_grid_thw"][0, 0] -= 1
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][8 * 12 :]


def swapped(_, inputs):
    """The videos, with their grids."""
    own = inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(1).tolist())
    inputs["pixel_values_videos"] = torch.cat(own[::-1])
    inputs["video_grid_thw"] = inputs["video_grid_thw"].flip(0)


def nothing_after_the_video(model, inputs):
    end = int((inputs["input_ids"][0] == model.config.vision_end_token_id).nonzero()[-1]) + 1
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, :end]


BAD = {
    "no grid": (ONE, without_a_grid, "video_grid_thw is missing: .*the whole output of the processor"),
    "a list": (ONE, lambda _, inputs: inputs.update(video_grid_thw=[[7, 8, 12]]), r"video_grid_thw must be a \[videos"),
    "two columns": (ONE, grid([7, 96]), r"video_grid_thw must be a \[videos, 3\] tensor of whole numbers, got tensor"),
    "fractions": (ONE, grid([7, 8, 12], dtype=torch.float), r"video_grid_thw must be a \[videos, 3\] tensor of whole"),
    "odd": (ONE, grid([8, 12, 7]), r"video_grid_thw holds \[8, 12, 7\]: .*multiples of 2"),
    "no frame": (ONE, grid([0, 8, 12]), r"video_grid_thw holds \[0, 8, 12\]"),
    "other pixels": (ONE, grid([6, 8, 12]), "pixel_values_videos holds 672 patches, but video_grid_thw tells 576"),
    "a frame less": (ONE, a_frame_less, r"hold \[168\] video tokens, but the grids of the videos say 144: 6 x 4 x 6"),
    "swapped in a prompt": (TWO, swapped, "do not stand as the videos of video_grid_thw|in another order"),
    "swapped in a batch": (PAIR, swapped, r"hold \[120, 168\] video tokens, .*7 x 4 x 6, 5 x 6 x 4.* in the order"),
    "a video too many": (ONE, grid([7, 8, 12], [1, 8, 12]), "pixel_values_videos holds 672 patches"),
    "no text": (ONE, nothing_after_the_video, "no text after its video"),
}


def refused(model, tokenizer, match, run):
    """Run the pruned model, which must refuse before anything of it runs."""
    ran = []
    with ExitStack() as hooks:
        for module in (model.model.visual, *model.model.language_model.layers):
            hooks.callback(module.register_forward_pre_hook(lambda *_: ran.append(1)).remove)
        method = adatp.AdaTP(last=2, global_debias=False)
        hooks.enter_context(adatp.apply(model, tokenizer, method))
        with torch.no_grad(), pytest.raises(adatp.errors.InputError, match=match):
            run()
    assert not ran


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize(("prompts", "change", "match"), BAD.values(), ids=BAD)
def test_bad_input(kind, model, tokenizer, prompts, change, match, way):
    inputs = make_inputs(kind, model, tokenizer, prompts)
    change(model, inputs)
    refused(model, tokenizer, match, lambda: (model if way == "forward" else model.generate)(**inputs))


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_vl_moe"])
def test_frames_of_another_size(kind):
    """Of which a prompt would have as many tokens."""
    model, tokenizer = make_model(kind, layers=4), make_tokenizer(kind)
    inputs = {**make_inputs(kind, model, tokenizer, ONE), "video_grid_thw": torch.tensor([[14, 6, 8]])}
    match = "the 168 video tokens of a prompt do not stand as the videos of video_grid_thw do, 14 x 3 x 4 tokens"
    refused(model, tokenizer, match, lambda: model(**inputs))


def test_chunked_prefill(kind, model, tokenizer):
    inputs = make_inputs(kind, model, tokenizer, ONE)
    match = "prefill_chunk_size cannot be set"
    refused(model, tokenizer, match, lambda: model.generate(**inputs, prefill_chunk_size=16))
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = inputs[name][:, :100]
    refused(model, tokenizer, "the whole videos must be in one prefill", lambda: model(**inputs))


def test_the_cache_of_another_prompt(kind, model, tokenizer):
    inputs = make_inputs(kind, model, tokenizer, ONE)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    match = "a video cannot be pruned if the cache already holds tokens"
    refused(model, tokenizer, match, lambda: model(**inputs, past_key_values=cache))


def test_what_the_family_does_not_offer(kind, model, tokenizer, tmp_path):
    with pytest.raises(adatp.Unsupported, match=f"'visionzip'.*{kind} models"):
        adatp.apply(model, tokenizer, "visionzip")
    method = adatp.AdaTP(last=2)
    with pytest.raises(ValueError, match="processor must be the model's processor, whose image_mean"):
        adatp.apply(model, tokenizer, method, relevance=tmp_path)
    with pytest.raises(adatp.Unsupported, match=f"{type(model).__name__} itself, got a {type(model.model).__name__}"):
        adatp.apply(model.model, tokenizer, method)
