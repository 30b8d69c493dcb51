"""Result files. A file is replaced as a whole after every row, so the results survive if a run ends early."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.checkout import ROOT
from bench.harness import machine
from bench.inputs import DEVICE


class Record:
    """The result file of a measurement, with the results so far.

    Args:
        path: path of the file.
        step: name of the measurement.

    Attributes:
        found: content of the file.
    """

    def __init__(self, path: Path, step: str) -> None:
        self.found: dict[str, Any] = {
            "step": step,
            "status": "running",
            "machine": {**machine(), **_device()},
            "commit": commit(),
        }
        self._path = path
        self._begin = time.perf_counter()
        self.put()

    @property
    def folder(self) -> Path:
        """The folder of the file and of a step's other files."""
        return self._path.parent

    def put(self, **values: Any) -> None:
        """Set values, and write the file."""
        self.found.update(values)
        self.found["seconds"] = round(time.perf_counter() - self._begin, 1)
        write_json(self._path, self.found)

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Append a row to a table, and write the file."""
        self.put(**{table: [*self.found.get(table, []), row]})


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, with floats to four digits. A reader finds either the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(rounded(value), indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def rounded(value: Any) -> Any:
    """Round all floats in a value to four digits."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(own) for own in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def commit() -> dict[str, Any]:
    """Return the version of the code; its values are None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "dirty": None}


def _device() -> dict[str, Any]:
    """Return properties that affect a GPU's figures and that `machine` does not include."""
    found = {"python": platform.python_version(), "transformers": transformers.__version__, "cuda": torch.version.cuda}
    if DEVICE.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(DEVICE)
    return {
        **found,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }
