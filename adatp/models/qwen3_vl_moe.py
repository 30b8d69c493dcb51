"""The Qwen3-VL family with layers of experts, such as Qwen3-VL-30B-A3B."""

from transformers import Qwen3VLMoeForConditionalGeneration

from adatp.models.qwen3_vl import Qwen3VL


class Qwen3VLMoe(Qwen3VL):
    """The family; the engine sees no difference to dense layers."""

    model_type = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration
