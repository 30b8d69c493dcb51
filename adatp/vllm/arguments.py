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

ARCHITECTURES = {"llava_onevision": "AdaTPLlavaOnevisionForConditionalGeneration"}  # by the model_type
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
    return {
        "hf_overrides": {"architectures": [architecture_of(model)]},
        "additional_config": {NAME: {"method": method.name, "settings": method.settings(), "relevance": relevance}},
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "logits_processors": [PROMPT_LOGPROBS],
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "compilation_config": {"cudagraph_mode": "PIECEWISE"},
    }


def architecture_of(model: str | os.PathLike[str]) -> str:
    """Return the name of the pruned model for a checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        UnsupportedType: models of this kind cannot be pruned inside vLLM.
    """
    import adatp.models  # noqa: F401  registers LLaVA-Video with transformers

    checkpoint = name_or_path("model", model)
    with loading("model", checkpoint):
        kind = AutoConfig.from_pretrained(checkpoint).model_type
    if kind not in ARCHITECTURES:
        raise UnsupportedType(
            f"model {checkpoint} is a {kind}, which cannot be pruned inside vLLM; supported are: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def flags(args: Mapping[str, Any]) -> list[str]:
    """Return `engine_args` as flags of `vllm serve`."""
    return [
        *("--hf-overrides", json.dumps(args["hf_overrides"])),
        *("--additional-config", json.dumps(args["additional_config"])),
        *("--worker-cls", args["worker_cls"]),
        *("--scheduler-cls", args["scheduler_cls"]),
        *("--logits-processors", *args["logits_processors"]),
        "--no-enable-prefix-caching",
        "--no-enable-chunked-prefill",
        *("--compilation-config", json.dumps(args["compilation_config"])),
    ]
