"""The converter against a small checkpoint in the original layout, and against plain torch on its weights."""

import json
import weakref

import numpy as np
import pytest
import torch
from original_checkpoint import (
    HEADS,
    HIDDEN,
    INNER,
    KEY_HEADS,
    LAYERS,
    PATCH,
    ROWS,
    SIDE,
    TOWER,
    TOWER_HEADS,
    TOWER_LAYERS,
    edit_config,
    write_original,
    write_weights,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaOnevisionConfig, Qwen2Config, Qwen2ForCausalLM
from videollm import make_clip

import adatp.models.convert
from adatp.models import families
from adatp.models.convert import convert

QUESTION = "What happens?"
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<video>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture
def weights(tmp_path):
    """The original's weights; it lies at `tmp_path / "original"`."""
    return write_original(tmp_path)


@pytest.fixture
def source(tmp_path, weights):
    return tmp_path / "original"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "converted"


def load(target, **kwargs):
    model, info = AutoModelForImageTextToText.from_pretrained(target, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval()


def tower(weights, pixels):
    """`[F, 49, D]`: what the last of the layers leaves, before the norm that would follow it."""
    w = {name.removeprefix(TOWER): weight for name, weight in weights.items()}

    def project(name, x):
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = conv2d(pixels, w["embeddings.patch_embedding.weight"], w["embeddings.patch_embedding.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + w["embeddings.position_embedding.weight"]
    for i in range(TOWER_LAYERS):
        name, h = f"encoder.layers.{i}", norm(f"encoder.layers.{i}.layer_norm1", x)
        heads = [project(f"{name}.self_attn.{p}_proj", h).unflatten(-1, (TOWER_HEADS, -1)) for p in "qkv"]
        mixed = scaled_dot_product_attention(*(head.transpose(1, 2) for head in heads))
        x = x + project(f"{name}.self_attn.out_proj", mixed.transpose(1, 2).flatten(2))
        h = project(f"{name}.mlp.fc1", norm(f"{name}.layer_norm2", x))
        x = x + project(f"{name}.mlp.fc2", gelu(h, approximate="tanh"))
    return x


def pool(grid, mode):
    """`[7, 7, D]` to `[3, 3, D]` or `[4, 4, D]`."""
    if mode == "average":
        return torch.stack(
            [torch.stack([grid[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((0, 1)) for c in range(3)]) for r in range(3)]
        )

    def weights_of(i):
        """The two places that place i of 4 lies between, of 7, and the second's share."""
        at = max((i + 0.5) * 7 / 4 - 0.5, 0.0)
        return int(at), min(int(at) + 1, 6), at - int(at)

    pooled = torch.zeros(4, 4, grid.shape[-1])
    for r in range(4):
        for c in range(4):
            (top, bottom, down), (left, right, across) = weights_of(r), weights_of(c)
            upper = (1 - across) * grid[top, left] + across * grid[top, right]
            lower = (1 - across) * grid[bottom, left] + across * grid[bottom, right]
            pooled[r, c] = (1 - down) * upper + down * lower
    return pooled


def video_features(weights, pixels, mode):
    """`[n * side * (side + 1), D]` for the frames `[n, 3, 98, 98]`: row after row, each with the newline behind it."""
    w = weights
    h = gelu(linear(tower(w, pixels), w["model.mm_projector.0.weight"], w["model.mm_projector.0.bias"]))
    h = linear(h, w["model.mm_projector.2.weight"], w["model.mm_projector.2.bias"])
    tokens = []
    for frame in h:
        for row in pool(frame.unflatten(0, (SIDE, SIDE)), mode):
            tokens += [*row, w["model.image_newline"]]
    return torch.stack(tokens)


def decoder(weights):
    """The original's Qwen2 by itself; the original names are Qwen2's own."""
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        rms_norm_eps=1e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    )
    model = Qwen2ForCausalLM(config).eval()
    visual = ("model.vision_tower", "model.mm_projector", "model.image_newline")
    model.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith(visual)})
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_the_originals(tmp_path, target, dtype):
    weights = write_original(tmp_path, dtype=dtype)
    convert(tmp_path / "original", target, shard_bytes=60_000)
    model = load(target)
    body, left = model.model, dict(weights)
    parts = [
        (body.language_model, "model."),
        (body.vision_tower, TOWER),
        (body.multi_modal_projector.linear_1, "model.mm_projector.0."),
        (body.multi_modal_projector.linear_2, "model.mm_projector.2."),
        (model.lm_head, "lm_head."),
    ]
    for module, prefix in parts:
        for name, weight in module.state_dict().items():
            original = left.pop(prefix + name)
            assert weight.dtype == dtype
            assert torch.equal(weight, original), name
    assert torch.equal(body.image_newline, left.pop("model.image_newline"))
    assert not left
    assert model.config.dtype == AutoConfig.from_pretrained(target).dtype == dtype


def test_the_names_are_those_that_save_pretrained_writes(source, target, tmp_path):
    convert(source, target)
    load(target).save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(json.loads((target / "model.safetensors.index.json").read_text())["weight_map"])


@pytest.mark.parametrize(("mode", "side"), [("average", 3), ("bilinear", 4)])
@pytest.mark.parametrize("override", [False, True])
def test_it_computes_what_the_original_computes(tmp_path, target, mode, side, override):
    told = mode if not override else {"average": "bilinear", "bilinear": "average"}[mode]
    weights = write_original(tmp_path, mm_spatial_pool_mode=told, add_time_instruction=False)
    convert(tmp_path / "original", target, pool=mode if override else None)
    model = load(target, attn_implementation="sdpa")
    processor = families()["llava_video"].load_processor(str(target))
    assert processor.spatial_pool_mode == model.config.spatial_pool_mode == mode
    inputs = processor(text=PROMPT, videos=[make_clip(5)], return_tensors="pt")
    video = inputs["input_ids"][0] == model.config.video_token_id
    assert video.sum() == 5 * side * (side + 1)

    with torch.no_grad():
        features = video_features(weights, inputs["pixel_values_videos"][0], mode)
        found = model.model.get_video_features(inputs["pixel_values_videos"], vision_feature_layer=-1).pooler_output
        torch.testing.assert_close(found[0, : len(features) - 1], features[:-1], rtol=1e-4, atol=1e-4)
        embedded = weights["model.embed_tokens.weight"][inputs["input_ids"][0]]
        embedded[video] = features
        expected = decoder(weights)(inputs_embeds=embedded[None]).logits
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_the_prompt_is_the_authors(source, target):
    convert(source, target)
    processor = families()["llava_video"].load_processor(str(target))
    user = {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "video"}]}
    assert processor.apply_chat_template([user], add_generation_prompt=True) == PROMPT
    turns = [{"role": "system", "content": "Be brief."}, user, {"role": "assistant", "content": "A ride."}]
    assert processor.apply_chat_template(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n<video>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\nA ride.<|im_end|>\n"
    )


def test_tokens_and_pixels(source, target):
    convert(source, target)
    config = AutoConfig.from_pretrained(target)
    processor = families()["llava_video"].load_processor(str(target))
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer("<image><video>")["input_ids"] == [config.image_token_id, config.video_token_id]
    assert (config.image_token_id, config.video_token_id) == (259, 260), "the first of the spare rows"
    assert processor.add_time_instruction is True
    assert config.image_grid_pinpoints == [[98, 98], [196, 98], [98, 196], [196, 196], [98, 294]], "height first"
    white = np.full((1, 20, 20, 3), 255, np.uint8)
    assert processor.video_processor([white])["pixel_values_videos"].unique().tolist() == [1.0], "from -1 to 1"
    generation = json.loads((target / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([258, 256], 256)


@pytest.mark.parametrize("doubled", [False, True])
def test_tied_embeddings_need_no_head(tmp_path, target, doubled):
    weights = write_original(tmp_path, tie_word_embeddings=True)
    if doubled:
        write_weights(
            tmp_path / "original", {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        )
    convert(tmp_path / "original", target)
    model = load(target)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_single_file_is_read_too(source, target, weights):
    for path in source.glob("model*"):
        path.unlink()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), str(target))
    assert torch.equal(load(target).lm_head.weight, weights["lm_head.weight"])


def test_one_file_is_open_and_one_shard_in_memory(source, target, weights, monkeypatch):
    most, live, peak, opened, told = 80_000, 0, 0, 0, []

    class Counted:
        def __init__(self, *args):
            self.file = safe_open(*args)

        def __enter__(self):
            nonlocal opened
            opened += 1
            assert opened == 1
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            nonlocal opened
            opened -= 1
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return self.file.get_slice(name)

        def get_tensor(self, name):
            nonlocal live, peak
            tensor = self.file.get_tensor(name)
            live += tensor.nbytes
            peak = max(peak, live)
            weakref.finalize(tensor, release, tensor.nbytes)
            return tensor

    def release(nbytes):
        nonlocal live
        live -= nbytes

    monkeypatch.setattr(adatp.models.convert, "safe_open", Counted)
    convert(source, target, shard_bytes=most, tell=lambda done, total: told.append((done, total)))
    total = sum(weight.nbytes for weight in weights.values())
    assert 0 < peak <= most < total
    shards = sorted(target.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    assert len(shards) > 3
    assert [all_ for _, all_ in told] == [total] * len(told)
    dones = [done for done, _ in told]
    assert dones == sorted(set(dones))
    assert (dones[0], dones[-1], len(dones)) == (0, total, len(shards) + 1)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(source, target, interrupt):
    def tell(done, total):
        if done:
            raise interrupt

    with pytest.raises(interrupt):
        convert(source, target, shard_bytes=60_000, tell=tell)
    assert list(target.parent.iterdir()) == []


def refused(error, message, source, target, **kwargs):
    with pytest.raises(error, match=message) as caught:
        convert(source, target, **kwargs)
    assert not target.parent.exists(), "refused before anything is written"
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("architectures", ["LlavaLlamaForCausalLM"], "LlavaQwenForCausalLM"),
        ("mm_projector_type", "linear", "mlp2x_gelu"),
        ("mm_patch_merge_type", "flat", "spatial_unpad"),
        ("mm_newline_position", "one_token", "grid"),
        ("mm_newline_position", ..., "grid"),
        ("mm_spatial_pool_mode", "max", '"average" or "bilinear"'),
        ("mm_spatial_pool_mode", ..., '"average" or "bilinear"'),
        ("mm_spatial_pool_stride", 4, "2"),
        ("mm_resampler_type", "spatial_pool", "null"),
        ("mm_vision_select_layer", -1, "-2"),
        ("mm_vision_select_feature", "cls_patch", "patch"),
        ("mm_vision_tower", "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"),
        ("mm_vision_tower", ..., "google/siglip-so400m-patch14-384"),
        ("mm_use_im_start_end", True, "false"),
        ("mm_use_im_patch_token", ..., "false"),
        ("add_faster_video", True, "false"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "null"),
        ("image_aspect_ratio", "pad", "anyres_max_N"),
        ("image_grid_pinpoints", "(1x1),...,(6x6)", r"\[width, height\]"),
    ],
)
def test_a_setting_that_cannot_be_expressed_is_named(source, target, field, value, right):
    edit_config(source, **{field: value})
    found = "missing" if value is ... else json.dumps(value)
    message = refused(ValueError, f"{field} is .* it must be .*{right}", source, target)
    assert f"{field} is {found}," in message


def test_what_the_authors_code_presumes_may_be_missing_or_null(source, target):
    edit_config(source, mm_spatial_pool_stride=None, add_faster_video=..., mm_resampler_type=..., rope_scaling=...)
    convert(source, target)


def test_an_unknown_pool_is_refused(source, target):
    refused(ValueError, "spatial_pool_mode must be 'average' or 'bilinear'", source, target, pool="max")


def test_missing_and_unknown_tensors_are_named(source, target, weights):
    del weights["model.layers.1.self_attn.k_proj.bias"]
    weights["model.faster_token"] = torch.zeros(HIDDEN)
    write_weights(source, weights)
    message = refused(ValueError, "do not fit", source, target)
    assert "1 missing: model.layers.1.self_attn.k_proj.bias; 1 unknown: model.faster_token" in message


def test_a_long_list_is_cut(source, target, weights):
    write_weights(source, {name: weight for name, weight in weights.items() if not name.startswith(TOWER)})
    lost = sum(name.startswith(TOWER) for name in weights)
    message = refused(ValueError, rf"{lost} missing: {TOWER}.*, and {lost - 10} more", source, target)
    assert message.count(TOWER) == 10


def test_a_head_that_is_not_tied_is_needed(source, target, weights):
    del weights["lm_head.weight"]
    write_weights(source, weights)
    refused(ValueError, "1 missing: lm_head.weight", source, target)


def test_shapes_that_do_not_fit_are_told(source, target, weights):
    weights["model.mm_projector.2.bias"] = torch.zeros(HIDDEN + 1)
    write_weights(source, weights)
    message = refused(ValueError, "1 of the wrong shape", source, target)
    assert "model.mm_projector.2.bias [49] instead of [48]" in message


def test_the_published_tower_is_known_by_name(source, target):
    name = "google/siglip-so400m-patch14-384"
    edit_config(source, mm_vision_tower=name)
    message = refused(ValueError, "do not fit", source, target)
    assert f"{24 * 16} missing: {TOWER}encoder.layers.2." in message, "26 layers of 16 tensors, two of them given"
    assert f"{2 * 16 + 5 + 1} of the wrong shape: " in message, "the tower's, and the projector's first weight"
    # the tower of the converted OneVision checkpoints, which transformers takes for granted
    assert (
        adatp.models.convert._tower({"mm_vision_tower": name}).to_dict()
        == LlavaOnevisionConfig().vision_config.to_dict()
    )


def test_a_vocabulary_without_spare_rows_is_refused(tmp_path, target):
    weights = write_original(tmp_path, vocab_size=260)
    weights |= {name: weights[name][:260].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write_weights(tmp_path / "original", weights)
    refused(ValueError, "vocab_size is 260; the tokenizer needs 261", tmp_path / "original", target)


def test_a_folder_without_its_files_is_refused(source, target):
    refused(FileNotFoundError, "lacks weights: model-00002-of-00003.safetensors", without(source, "*2-of*"), target)
    refused(FileNotFoundError, "lacks weights: model.safetensors", without(source, "model*"), target)
    refused(FileNotFoundError, "no config.json", without(source, "config.json"), target)
    refused(FileNotFoundError, "no config.json", source / "absent", target)


def without(source, pattern):
    for path in source.glob(pattern):
        path.unlink()
    return source


def test_half_a_download_is_refused(source, target):
    path = source / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(ValueError, "model-00003-of-00003.safetensors is not a whole safetensors file", source, target)


def test_only_an_empty_target_is_written_to(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    convert(source, target)
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        convert(source, target)
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        convert(source, source / "config.json")
