"""A server of vLLM in a process of its own, on a free port of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

HOST = "127.0.0.1"
STARTING, STOPPING = 900, 60  # seconds that a server may take; compiling a model takes minutes


class Server:
    """A server that runs within a `with` block.

    Args:
        module: arguments of Python that start it: `-m`, the name of the module, and what comes before the flags.
        flags: flags of `vllm serve`.
        log: file for what it prints.
        environment: its variables, beside those of this process.

    Attributes:
        base: its address.
    """

    def __init__(
        self, module: Sequence[str], flags: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        self.base = f"http://{HOST}:{port}"
        self._command = [sys.executable, *module, *flags, "--host", HOST, "--port", str(port)]
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over --kv-cache-memory-bytes

    def __enter__(self) -> "Server":
        """Start the server, and wait until it answers.

        Raises:
            RuntimeError: it ends, or does not answer in time.
        """
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, _: Any = None, error: BaseException | None = None, *__: Any) -> None:
        """Stop the server with all of its processes. An error of the block is told what the server has printed."""
        if error is not None:
            error.add_note("\n".join(self._errors()))
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOPPING)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def metrics(self) -> dict[str, float]:
        """Return what the server counts: the sum over all labels of each metric."""
        found: dict[str, float] = {}
        for sample in self._samples():
            found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    def blocks(self) -> int:
        """Return the number of blocks of its cache. One of a pruned server has room for fewer layers."""
        (sample,) = (sample for sample in self._samples() if sample.name == "vllm:cache_config_info")
        return int(sample.labels["num_gpu_blocks"])

    def _samples(self) -> Iterator[Any]:
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self._read("/metrics")):
            yield from family.samples

    def _wait(self) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < STARTING:
            if self._process.poll() is not None:
                raise RuntimeError("\n".join([f"the server has ended: {shown(self._command)}", *self._errors()]))
            with suppress(URLError, ConnectionError):
                self._read("/health")
                return
            time.sleep(0.5)
        raise RuntimeError(f"the server does not answer after {STARTING} seconds: {shown(self._command)}")

    def _errors(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if "Error: " in line]

    def _read(self, path: str) -> str:
        with urlopen(self.base + path) as answer:
            return str(answer.read().decode())


def shown(command: Sequence[str]) -> str:
    """Return a command without the path of Python."""
    return " ".join(["python", *command[1:]])
