"""Running of a step in its own process, and recording of how it ended."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.plan import Step
from bench.gpu.process import finished, tail
from bench.record import write_json


def _command(step: Step, file: Path) -> list[str]:
    """Return the command that measures a step and writes its file."""
    return [sys.executable, "-m", "bench.gpu.step", step.name, str(file)]


def run(step: Step, folder: Path, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a step to its end, or to its limit.

    Args:
        step: the step to run.
        folder: folder for the results `STEP.json` and the output `STEP.log`.
        command: a command to run instead of the step's own.

    Returns:
        The final content of the result file. `status` is `"done"`, `"failed"` or `"ended at its limit"`. If it is not
        `"done"`, `error` gives the reason.
    """
    file, log = (folder / step.name).with_suffix(".json"), (folder / step.name).with_suffix(".log")
    file.unlink(missing_ok=True)
    code = finished(command or _command(step, file), step.limit, log, with_children=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"step": step.name}
    if code is None:
        found |= {"status": "ended at its limit", "error": f"ended after {step.limit} s"}
    elif code or found.get("status") != "done":
        found = {"error": f"exit code {code}\n{tail(log)}", **found, "status": "failed"}
    write_json(file, found)
    return found
