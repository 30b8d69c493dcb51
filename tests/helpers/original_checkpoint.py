"""A small LLaVA-Video checkpoint in the layout its authors publish, with random weights.

Names, shapes and fields are written out here rather than taken from a model, so that they are evidence.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor

LAYERS, HIDDEN, HEADS, KEY_HEADS, INNER, ROWS = 4, 48, 4, 2, 80, 264
TOWER_LAYERS, TOWER_HIDDEN, TOWER_HEADS, TOWER_INNER = 2, 32, 2, 64  # of the three layers that its config.json tells
PATCH, SIDE = 14, 7  # an odd side, so that "average" and "bilinear" pool to different sizes
TOWER = "model.vision_tower.vision_tower.vision_model."
SHARDS = 3


def write_original(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any
) -> dict[str, Tensor]:
    """Write the checkpoint to `folder/original`, and the config.json of its vision tower to `folder/siglip`.

    Args:
        folder: where to write.
        seed: of the weights.
        dtype: of the weights.
        **fields: of config.json, instead of the usual ones; with `tie_word_embeddings` there is no lm_head.

    Returns:
        The weights by their original names.
    """
    source, tower = folder / "original", folder / "siglip"
    source.mkdir(parents=True)
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(_tower_config()))
    config = {**_config(), "mm_vision_tower": str(tower), **fields}
    (source / "config.json").write_text(json.dumps(config))
    _write_tokenizer(source)

    random = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=random).mul(0.3).to(dtype)
        for name, shape in _shapes().items()
        if not (config["tie_word_embeddings"] and name == "lm_head.weight")
    }
    write_weights(source, weights)
    return weights


def write_weights(source: Path, weights: dict[str, Tensor]) -> None:
    """Write `weights` to `source` in three shards and an index."""
    where = {name: f"model-{i % SHARDS + 1:05}-of-{SHARDS:05}.safetensors" for i, name in enumerate(weights)}
    for file in set(where.values()):
        save_file({n: w for n, w in weights.items() if where[n] == file}, source / file, metadata={"format": "pt"})
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_config(source: Path, **fields: Any) -> None:
    """Set fields of `source/config.json`; those that are `...` are removed."""
    path = source / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def _config() -> dict[str, Any]:
    return {
        "_name_or_path": "checkpoints/previous-stage",
        "add_faster_video": False,
        "add_time_instruction": True,
        "architectures": ["LlavaQwenForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "faster_token_stride": 10,
        "force_sample": True,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[98, 98], [98, 196], [196, 98], [196, 196], [294, 98]],
        "image_token_index": 151646,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 4096,
        "max_window_layers": LAYERS,
        "mm_hidden_size": TOWER_HIDDEN,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": "llava",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "rms_norm_eps": 1e-2,
        "rope_scaling": None,
        "rope_theta": 50000.0,
        "sliding_window": 4096,
        "text_config": {"model_type": "llama"},
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": ROWS,
    }


def _tower_config() -> dict[str, Any]:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": TOWER_HIDDEN,
        "intermediate_size": TOWER_INNER,
        "num_hidden_layers": TOWER_LAYERS + 1,
        "num_attention_heads": TOWER_HEADS,
        "image_size": PATCH * SIDE,
        "patch_size": PATCH,
    }
    return {"model_type": "siglip", "vision_config": vision, "text_config": {"model_type": "siglip_text_model"}}


def _shapes() -> dict[str, tuple[int, ...]]:
    keys = HIDDEN // HEADS * KEY_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (ROWS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (ROWS, HIDDEN),
        "model.image_newline": (HIDDEN,),
        "model.mm_projector.0.weight": (HIDDEN, TOWER_HIDDEN),
        "model.mm_projector.0.bias": (HIDDEN,),
        "model.mm_projector.2.weight": (HIDDEN, HIDDEN),
        "model.mm_projector.2.bias": (HIDDEN,),
        f"{TOWER}embeddings.patch_embedding.weight": (TOWER_HIDDEN, 3, PATCH, PATCH),
        f"{TOWER}embeddings.patch_embedding.bias": (TOWER_HIDDEN,),
        f"{TOWER}embeddings.position_embedding.weight": (SIDE * SIDE, TOWER_HIDDEN),
        f"{TOWER}post_layernorm.weight": (TOWER_HIDDEN,),
        f"{TOWER}post_layernorm.bias": (TOWER_HIDDEN,),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for part, rows in (("q_proj", HIDDEN), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{layer}self_attn.{part}.weight"] = (rows, HIDDEN)
            shapes[f"{layer}self_attn.{part}.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{layer}mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{layer}input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    for i in range(TOWER_LAYERS):
        layer = f"{TOWER}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}self_attn.{part}.weight"] = (TOWER_HIDDEN, TOWER_HIDDEN)
            shapes[f"{layer}self_attn.{part}.bias"] = (TOWER_HIDDEN,)
        shapes[f"{layer}mlp.fc1.weight"] = (TOWER_INNER, TOWER_HIDDEN)
        shapes[f"{layer}mlp.fc1.bias"] = (TOWER_INNER,)
        shapes[f"{layer}mlp.fc2.weight"] = (TOWER_HIDDEN, TOWER_INNER)
        shapes[f"{layer}mlp.fc2.bias"] = (TOWER_HIDDEN,)
        for part in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{part}.weight"] = shapes[f"{layer}{part}.bias"] = (TOWER_HIDDEN,)
    return shapes


def _write_tokenizer(source: Path) -> None:
    """Qwen2's with a token a byte, its special tokens behind them, none for images and videos, and its own template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(len(alphabet) + i): {"content": token, "special": True, "normalized": False}
            for i, token in enumerate(special)
        },
        "additional_special_tokens": special[1:],
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
    }
    (source / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(alphabet)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
