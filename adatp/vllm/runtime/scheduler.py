"""vLLM's scheduler, which computes a prompt in one step and knows how many tokens of it stay."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from adatp.layout import PromptLayout
from adatp.vllm.prompts import Layouts, family_of_config
from adatp.vllm.runtime.cache import PrunedManager


class _OneStepPrefill:
    """What a pruned server needs beside vLLM's scheduler; it stands before one of vLLM's classes."""

    requests: dict[str, Any]
    kv_cache_manager: Any
    encoder_cache_manager: Any

    def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(*args, vllm_config=vllm_config, **kwargs)  # type: ignore[call-arg]
        self._layouts = Layouts(family_of_config(vllm_config))
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            if isinstance(manager, PrunedManager):
                manager.videos_of = self._videos_of

    def _videos_of(self, request_id: str) -> PromptLayout | None:
        return self._layouts[self.requests[request_id]]

    def _try_schedule_encoder_inputs(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int, **kwargs: Any
    ) -> Any:
        """Let a request wait if the tower cannot encode all of its videos in this step.

        vLLM would compute the prompt up to the video now and the rest later, even with chunked prefill off.
        """
        scheduled = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, **kwargs
        )
        if scheduled[1] == num_new_tokens:
            return scheduled
        self.encoder_cache_manager.free(request)
        return [], 0, encoder_compute_budget, [], []


class PrunedScheduler(_OneStepPrefill, Scheduler):
    """For servers that wait for each step before they schedule the next."""


class PrunedAsyncScheduler(_OneStepPrefill, AsyncScheduler):
    """For servers that schedule a step while the last one runs."""


def make_scheduler(*args: Any, vllm_config: Any, **kwargs: Any) -> Scheduler:
    """Make the scheduler of a server, as its configuration wants it."""
    is_async = vllm_config.scheduler_config.async_scheduling
    kind = PrunedAsyncScheduler if is_async else PrunedScheduler
    return kind(*args, vllm_config=vllm_config, **kwargs)
