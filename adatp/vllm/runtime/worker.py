"""The platform's worker, which tells the model about the requests of a step."""

from typing import Any

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class Worker(PlatformWorker):
    """The platform's worker. vLLM's V1 runner tells a model neither the prompts nor where they end; this class does."""

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step of the requests; see vLLM."""
        with self.model_runner.get_model().pruning.step(self.model_runner):
            return super().execute_model(scheduler_output)
