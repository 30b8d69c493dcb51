"""The text configurations of the published sizes, for what follows from shapes alone.

They hold what the cost of a decoder layer depends on. All else, such as the vocabulary, is the default of the class.
"""

from typing import Any

from transformers import AutoConfig

from adatp.checks.values import require, text

_QWEN2_5_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
_QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "qwen2.5-vl-7b": {"model_type": "qwen2_5_vl_text", **_QWEN2_5_7B},
    "qwen2.5-vl-72b": {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 8192,
        "intermediate_size": 29568,  # 29696 in the quantized checkpoints, which pad it
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "qwen3-vl-2b": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-vl-4b": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-vl-8b": {"model_type": "qwen3_vl_text", **_QWEN3_8B},
    "qwen3-vl-32b": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-vl-30b-a3b": {
        "model_type": "qwen3_vl_moe_text",
        "hidden_size": 2048,
        "intermediate_size": 6144,  # of no layer: each is a mixture of experts
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "internvl3-8b": {"model_type": "qwen2", **_QWEN2_5_7B},
    "internvl3.5-8b": {"model_type": "qwen3", **_QWEN3_8B},
}


def published_text_config(name: str) -> Any:
    """Build the Hugging Face text configuration of a published size, one of `TEXT_CONFIGS`.

    Raises:
        InputError: there is no such size.
    """
    require(text("name", name) in TEXT_CONFIGS, "name", name, f"one of {', '.join(TEXT_CONFIGS)}")
    return AutoConfig.for_model(**TEXT_CONFIGS[name])
