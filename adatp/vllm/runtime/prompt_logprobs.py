"""Refuses requests for log probabilities of the prompt: a pruned prefill has none for the tokens that it drops."""

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

from adatp.errors import InputError


class RefusePromptLogprobs(LogitsProcessor):
    """Changes no logits. vLLM lets it check the parameters of every request, before the request is queued."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise an InputError if the request asks for log probabilities of the prompt."""
        if sampling_params.prompt_logprobs is not None:
            raise InputError(
                "prompt_logprobs cannot be given: this server prunes videos, so it has no logits for the dropped tokens"
            )

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

    def apply(self, logits: Any) -> Any:
        """Return the logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return True: no logit changes."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Keep no state of the requests."""
