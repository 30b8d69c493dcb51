"""Small models of the newer families with random weights, in fp32 on the CPU."""

import pytest
import torch
import transformers
from small_prompts import make_tokenizer

from adatp.small.untrained import byte_tokenizer, load_untrained

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "internvl-qwen3")
WIDTH, TOWER_WIDTH, PATCH = 64, 32, 4
QWEN_CLASSES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}


def make_model(kind: str, attention: str = "sdpa", layers: int = 16, seed: int = 2, heads: int = 4):
    """A model of `layers` decoder layers that never stops early; skips the test where transformers lacks its class.

    Half as many key heads as `heads` share a width of 64.

    Qwen's towers take patches of 4 x 4 pixels in 2 frames, and merge 2 x 2 of them. InternVL's takes tiles of
    32 x 32 pixels, 8 x 8 patches, and makes 16 tokens of each.
    """
    tokenizer = make_tokenizer(kind)
    config, name = (_internvl if kind.startswith("internvl") else _qwen)(kind, layers, heads, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _class(name)._from_config(config, attn_implementation=attention).eval()
        _fill(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_siglip():
    """A SigLIP of 28 x 28 pixels that can stand beside any model, and its tokenizer."""
    like = load_untrained(image_size=28, layers=15).relevance.text_model.config
    vision = {"image_size": 28, "patch_size": 14, "hidden_size": 64, "intermediate_size": 64}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.SiglipConfig(text_config=like.to_dict(), vision_config=vision)
        return transformers.SiglipModel(config).eval(), byte_tokenizer("right")


def _class(name: str):
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def _qwen(kind: str, layers: int, heads: int, tokenizer):
    name = QWEN_CLASSES[kind]
    vision = {"depth": 4, "hidden_size": TOWER_WIDTH, "num_heads": 2, "patch_size": PATCH}
    section = {4: [2, 3, 3], 2: [6, 5, 5]}[heads]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    text = _text(layers, heads, tokenizer)
    if kind == "qwen2_vl":
        vision |= {"embed_dim": TOWER_WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    else:
        vision |= {"out_hidden_size": WIDTH, "intermediate_size": 2 * TOWER_WIDTH}
    if kind == "qwen2_5_vl":  # windows of 2 x 2 merged patches, in two of the four blocks
        vision |= {"window_size": 4 * PATCH, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
    if kind.startswith("qwen3"):
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
        text |= {"head_dim": WIDTH // heads}
        rope |= {"mrope_interleaved": True}
    if kind == "qwen3_vl_moe":
        text |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
    ids = {
        f"{field}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for field, token in (
            ("video_token", "video_pad"),
            ("image_token", "image_pad"),
            ("vision_start_token", "vision_start"),
            ("vision_end_token", "vision_end"),
        )
    }
    config = _class(f"{name}Config")(
        vision_config=vision, text_config={**text, "rope_parameters": rope}, tie_word_embeddings=False, **ids
    )
    return config, f"{name}ForConditionalGeneration"


def _internvl(kind: str, layers: int, heads: int, tokenizer):
    text = _text(layers, heads, tokenizer)
    if kind == "internvl-qwen3":
        decoder = transformers.Qwen3Config(**text, head_dim=WIDTH // heads)
    else:
        decoder = transformers.Qwen2Config(**text)
    vision = _class("InternVLVisionConfig")(
        hidden_size=TOWER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=2 * TOWER_WIDTH,
        attention_bias=True,
        image_size=8 * PATCH,
        patch_size=PATCH,
    )
    config = _class("InternVLConfig")(
        vision_config=vision,
        text_config=decoder,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return config, "InternVLForConditionalGeneration"


def _text(layers: int, heads: int, tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


@torch.no_grad()
def _fill(model) -> None:
    """Draw every weight so that leaving it out shows, and that attention prefers some tokens."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and not name.endswith("bias"):  # norms, and InternVL's scales of a layer's output
            sharper = 1.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 0.5
            weight.uniform_(sharper, sharper + 1)
        elif weight.ndim == 1:
            weight.normal_(0, 0.2)
        elif "token" in name or ("embed" in name and weight.ndim == 2):  # the vocabulary, and learned positions
            weight.normal_()
        else:
            inputs = weight[0].numel() if weight.ndim > 3 else weight.shape[-1]  # of convolutions, of linear maps
            weight.normal_(0, _gain(name) * inputs**-0.5)
    model.lm_head.weight[256:] *= 0.1  # a special token is seldom the likeliest


def _gain(name: str) -> float:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return 1.5
    return 0.5 if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")) else 1.0
