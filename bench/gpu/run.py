"""Runs a step in a process of its own and settles how it ended."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.plan import Step
from bench.gpu.process import finished, tail
from bench.record import write_json


def _command(step: Step, file: Path) -> list[str]:
    """What measures a step and writes its file."""
    return [sys.executable, "-m", "bench.gpu.step", step.name, str(file)]


def run(step: Step, folder: Path, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a step to its end, or to its limit.

    Args:
        step: what to run.
        folder: where `STEP.json` and `STEP.log`, what it printed, go.
        command: to run instead of the step's own.

    Returns:
        What its file holds in the end: `status` is `"done"`, `"failed"` or `"ended at its limit"`, and where it is
        not `"done"` `error` says why.
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
