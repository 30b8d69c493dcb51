"""What vLLM must be told to serve a model pruned. Nothing here imports vLLM."""

import json
import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from adatp.checks.checkpoints import loading
from adatp.checks.values import name_or_path
from adatp.errors import UnsupportedType
from adatp.methods import Method, method_of
from adatp.methods.method import BeforeDecoder

# the pruned models by the model_type: for methods between the layers, and for methods before the decoder
ARCHITECTURES = {
    "llava_onevision": "AdaTPLlavaOnevisionForConditionalGeneration",
    "llava_video": "AdaTPLlavaVideoForConditionalGeneration",
    "qwen2_5_vl": "AdaTPQwen25VLForConditionalGeneration",
    "qwen3_vl": "AdaTPQwen3VLForConditionalGeneration",
}
COMPRESSED = {"llava_onevision": "AdaTPCompressedLlavaOnevisionForConditionalGeneration"}
WORKER = "adatp.vllm.runtime.worker.Worker"
SCHEDULER = "adatp.vllm.runtime.scheduler.make_scheduler"
PROMPT_LOGPROBS = "adatp.vllm.runtime.prompt_logprobs:RefusePromptLogprobs"
NAME = "adatp"  # of the settings in vLLM's `additional_config`


def engine_args(
    model: str | os.PathLike[str],
    method: Method | str = "adatp",
    *,
    relevance: str | os.PathLike[str] | None = "auto",
) -> dict[str, Any]:
    """Return the arguments that make vLLM prune, for `vllm.LLM(model, **engine_args(model), ...)`.

    Args:
        model: name or path of the checkpoint.
        method: the method with its settings, or its name.
        relevance: the SigLIP that compares frames with the question, see `adatp.apply`.

    Raises:
        InputError: there is no such method.
        CheckpointError: the checkpoint cannot be loaded.
        UnsupportedType: models of this kind cannot be pruned inside vLLM.
    """
    method = method_of(method)
    relevance = relevance if relevance is None else name_or_path("relevance", relevance)
    choice = {
        "hf_overrides": {"architectures": [architecture_of(model, method)]},
        "additional_config": {NAME: {"method": method.name, "settings": method.settings(), "relevance": relevance}},
    }
    if isinstance(method, BeforeDecoder):
        return choice  # prompts are shorter, and the rest is vLLM as it is
    return {
        **choice,
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "logits_processors": [PROMPT_LOGPROBS],
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "compilation_config": {"cudagraph_mode": "PIECEWISE"},
    }


def architectures_for(method: Method) -> dict[str, str]:
    """Return the names of the models that a method can prune inside vLLM, by their model_type."""
    return COMPRESSED if isinstance(method, BeforeDecoder) else ARCHITECTURES


def architecture_of(model: str | os.PathLike[str], method: Method) -> str:
    """Return the name of the pruned model for a checkpoint and a method.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        UnsupportedType: models of this kind cannot be pruned inside vLLM.
    """
    import adatp.models  # noqa: F401  registers LLaVA-Video with transformers

    checkpoint = name_or_path("model", model)
    with loading("model", checkpoint):
        kind = AutoConfig.from_pretrained(checkpoint).model_type
    architectures = architectures_for(method)
    if kind not in architectures:
        raise UnsupportedType(
            f"model {checkpoint} is a {kind}, which cannot be pruned by {method.name} inside vLLM; supported are: "
            f"{', '.join(architectures)}"
        )
    return architectures[kind]


def flags(args: Mapping[str, Any]) -> list[str]:
    """Return `engine_args` as flags of `vllm serve`."""
    return [part for name, value in args.items() for part in _flag(name.replace("_", "-"), value)]


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}", *(value if isinstance(value, list) else [value])]
