"""What a server must be started with, and why. What does not fit is refused before the server starts."""

import json
import shlex
from typing import Any

from adatp.errors import Unsupported
from adatp.methods import Method, Unpruned
from adatp.methods.method import BeforeDecoder
from adatp.vllm.arguments import NAME, PROMPT_LOGPROBS, SCHEDULER, WORKER, architectures_for
from adatp.vllm.prompts import family_of_config
from adatp.vllm.runtime.stages import BACKENDS
from adatp.vllm.settings import Settings


def check(vllm_config: Any) -> None:
    """Raise Unsupported with all that does not fit, and the flags to set.

    Args:
        vllm_config: vLLM's configuration of the server.
    """
    problems = _problems(vllm_config)
    if problems:
        raise Unsupported("adatp cannot prune in this server:\n" + "\n".join(f"- {problem}" for problem in problems))


def _problems(config: Any) -> list[str]:
    method = Settings.read(config).method
    method.check(config.model_config.hf_config.get_text_config().num_hidden_layers)
    problems = _method_problems(method, config.model_config)
    return problems if isinstance(method, BeforeDecoder) else [*problems, *_between_layers_problems(config)]


def _method_problems(method: Method, model: Any) -> list[str]:
    architecture = architectures_for(method).get(model.hf_config.model_type)
    found = [
        (
            isinstance(method, Unpruned),
            "method 'none' prunes nothing: start vLLM itself, without adatp's --hf-overrides and --additional-config",
        ),
        (
            model.architecture != architecture,
            f"method {method.name!r} is not one of the model {model.architecture}: "
            + (f"--hf-overrides {_shell({'architectures': [architecture]})}" if architecture else "choose another"),
        ),
        (
            method.decoding is not None,
            f"method {method.name!r} attends to a share of the tokens in decoding, which vLLM's attention does not: "
            f"--additional-config {_shell({NAME: {'method': method.name, 'settings': {**method.settings(), 'p': 0}}})}",
        ),
        (
            model.multimodal_config is not None and model.multimodal_config.enable_mm_embeds,
            "videos may come as embeddings, which would not be pruned: leave out --enable-mm-embeds",
        ),
    ]
    return [text for wrong, text in found if wrong]


def _shell(value: Any) -> str:
    return shlex.quote(json.dumps(value))


def _between_layers_problems(config: Any) -> list[str]:
    cache, scheduler, parallel, model = (
        getattr(config, f"{part}_config") for part in ("cache", "scheduler", "parallel", "model")
    )
    found = [
        (parallel.worker_cls != WORKER, f"its worker does not tell where prompts end: --worker-cls {WORKER}"),
        (
            scheduler.scheduler_cls != SCHEDULER,
            f"its scheduler may split a prompt, and gives every layer room for all tokens: --scheduler-cls {SCHEDULER}",
        ),
        (
            PROMPT_LOGPROBS not in (model.logits_processors or ()),
            "requests for prompt_logprobs would be answered without the dropped tokens: "
            f"--logits-processors {PROMPT_LOGPROBS}",
        ),
        (
            cache.enable_prefix_caching,
            "prefix caching is on, but what stays of a video depends on the question: --no-enable-prefix-caching",
        ),
        (
            scheduler.enable_chunked_prefill,
            "chunked prefill is on, but the question must be in one step with the video: --no-enable-chunked-prefill",
        ),
        (
            0 < scheduler.long_prefill_token_threshold < model.max_model_len,
            "long prompts are split: --long-prefill-token-threshold 0",
        ),
        (
            scheduler.disable_hybrid_kv_cache_manager is True,
            "pruned layers need blocks of their own: --no-disable-hybrid-kv-cache-manager",
        ),
        (
            config.speculative_config is not None,
            "speculative decoding is on, whose drafts would need a cache of the dropped tokens: leave out "
            "--speculative-config",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "the layers are on several machines, but the cuts need them in one process: --pipeline-parallel-size 1 "
            "(--tensor-parallel-size works)",
        ),
        (
            max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
            "the tokens are on several devices: --decode-context-parallel-size 1 --prefill-context-parallel-size 1",
        ),
        (parallel.use_ubatching, "a step is split in two: leave out --enable-dbo and --ubatch-size"),
        (
            config.kv_transfer_config is not None,
            "keys and values leave the server, and a receiver would not know which tokens they belong to: leave out "
            "--kv-transfer-config and --kv-offloading-size",
        ),
        (config.ec_transfer_config is not None, "videos are encoded elsewhere: leave out --ec-transfer-config"),
        (config.lora_config is not None, "LoRA has not been tested with pruning: leave out --enable-lora"),
        (
            model.enable_prompt_embeds,
            "prompts may come as embeddings, in which no question can be read: leave out --enable-prompt-embeds",
        ),
        (
            config.use_v2_model_runner,
            "vLLM's model runner V2 has not been tested with pruning: set VLLM_USE_V2_MODEL_RUNNER=0",
        ),
    ]
    return [*_media_problems(config), *(text for wrong, text in found if wrong)]


def _media_problems(config: Any) -> list[str]:
    media = config.model_config.multimodal_config
    found = [
        (
            media.is_multimodal_pruning_enabled(),
            "vLLM itself drops tokens of videos before the decoder: leave out --video-pruning-rate",
        ),
        (
            media.mm_encoder_tp_mode == "data",
            "each rank encodes other videos, and the features of their frames would be missing: "
            "--mm-encoder-tp-mode weights",
        ),
        (
            config.compilation_config.cudagraph_mm_encoder,
            "CUDA graphs of the vision tower leave out the features of frames: set cudagraph_mm_encoder to false in "
            "--compilation-config",
        ),
        (
            media.mm_processor_cache_type == "shm" and bool(family_of_config(config).size_arguments),
            "the sizes of the videos are in shared memory, which the scheduler does not read: "
            "--mm-processor-cache-type lru",
        ),
    ]
    return [text for wrong, text in found if wrong]


def check_attention(backend: Any, cudagraph_mode: Any) -> None:
    """Raise Unsupported if the attention of the model cannot see fewer tokens in some layers.

    Args:
        backend: the attention backend that vLLM has chosen.
        cudagraph_mode: vLLM's mode of CUDA graphs.
    """
    if backend.get_name() not in BACKENDS:
        raise Unsupported(
            f"adatp cannot prune with the attention backend {backend.get_name()}, which reads the lengths of sequences "
            "on the host: set --attention-backend FLASH_ATTN or TRITON_ATTN"
        )
    if cudagraph_mode is not None and cudagraph_mode.has_full_cudagraphs():
        raise Unsupported(
            "adatp has not been tested with CUDA graphs of the whole model: set "
            '--compilation-config \'{"cudagraph_mode": "PIECEWISE"}\''
        )
