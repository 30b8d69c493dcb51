"""Serves Video LLMs with vLLM, pruned between the decoder's layers. See docs/serving.md."""

from adatp.vllm.arguments import engine_args

__all__ = ["engine_args"]
