"""The entry point that vLLM calls in each of its processes. It registers the pruned models, and does nothing else."""

from typing import Any

from adatp.vllm.arguments import ARCHITECTURES, COMPRESSED, NAME
from adatp.vllm.version import SUPPORTED, installed


def register() -> None:
    """Add the pruned models to those of vLLM, by the names that `hf_overrides` chooses; imported when chosen."""
    from vllm import ModelRegistry

    import adatp.models  # noqa: F401  registers LLaVA-Video with transformers

    for family, architecture in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, f"adatp.vllm.runtime.models.{family}:{architecture}")
    for family, architecture in COMPRESSED.items():
        ModelRegistry.register_model(architecture, f"adatp.vllm.runtime.models.compressed_{family}:{architecture}")
    if installed() in SUPPORTED:  # of another version the models themselves refuse to be imported
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        MODELS_CONFIG_MAP.update(dict.fromkeys((*ARCHITECTURES.values(), *COMPRESSED.values()), _Requirements))


class _Requirements:
    """Refuses a server that cannot prune while vLLM reads its configuration, before it starts any process."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise Unsupported if the server cannot prune."""
        from adatp.vllm.runtime.requirements import check
        from adatp.vllm.settings import given_settings

        check(vllm_config)
        # vLLM gives the processor of prompts no other part of the configuration
        setattr(vllm_config.model_config.hf_config, NAME, given_settings(vllm_config))

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Change nothing."""
