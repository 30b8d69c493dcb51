"""Runs what may hang, crash or fail, and comes back in time."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.checkout import ROOT


def finished(
    command: Sequence[str],
    limit: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    with_children: bool = False,
) -> int | None:
    """Run a command in the repository, and end it at a limit.

    Args:
        command: to run.
        limit: in seconds.
        log: where what it prints goes.
        environment: variables beside those that there are.
        with_children: whether it leads a group of processes that is ended with it. What it starts may not do so again,
            or would not be ended.

    Returns:
        Its exit code; None where it was ended.
    """
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=with_children,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                if with_children:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            process.wait()


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of what a command has printed."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
