"""The Qwen2.5-VL family: Qwen2-VL with a vision tower whose blocks attend within windows."""

from transformers import Qwen2_5_VLForConditionalGeneration

from adatp.models.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """The family; nothing that the engine sees differs from Qwen2-VL."""

    model_type = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
