"""Checks of the kernels on this device: the tests, repeated runs with equal bits, and NVIDIA's sanitizer."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.process import finished, tail
from bench.gpu.versions import tool
from bench.inputs import (
    BASE,
    DEVICE,
    Case,
    compact_inputs,
    run_compact,
    run_score,
    run_select,
    score_inputs,
    select_inputs,
)
from bench.record import Record

ON_GPU = DEVICE.type == "cuda"
# These groups run at the same time, because the time goes to compilation on the host.
ALONE = (
    ("tests/kernels/test_cuda.py",),
    ("tests/kernels/test_score.py",),
    ("tests/kernels/test_select.py",),
    ("tests/kernels/test_compact.py", "tests/kernels/test_operators.py", "tests/engine/test_cuts.py"),
)
REST = ("tests", *(f"--ignore={file}" for files in ALONE for file in files))
GROUPS = tuple((*files, "-m", "cuda") for files in (*ALONE, REST)) if ON_GPU else (
    ("tests/kernels/test_operators.py", "-k", "registration and compact"),
)  # fmt: skip
INTERPRETER = {} if ON_GPU else {"TRITON_INTERPRET": "1"}
PARALLEL = ["-n", "3"] if ON_GPU and find_spec("xdist") else []
PYTEST_LIMIT, SANITIZER_LIMIT = 95, 45
NO_TEST = 5  # pytest's exit code if it has collected no test
FAULT = 99  # the exit code that the sanitizer returns for a fault
REPEATS = 100 if ON_GPU else 3
# as pytest prints it, and as pytest-xdist does
OUTCOME = re.compile(r"^(?:tests/\S+::.* |\[gw\d+\] \[ *\d+%\] )(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)
# as its summary names in the end what has failed
FAILED = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)


@torch.inference_mode()
def measure(record: Record) -> None:
    """Run all three checks; then raise an error if one of them has found a fault."""
    faults = [*pytest_faults(record), *repeat_faults(record), *sanitizer_faults(record)]
    if faults:
        raise AssertionError("; ".join(faults))


def pytest_faults(record: Record) -> list[str]:
    """Run the tests, with a process for each group."""

    def run(number: int) -> dict[str, Any]:
        log = record.folder / f"tests-{number}.log"
        command = [sys.executable, "-m", "pytest", "-v", "-rf", "--tb=short", "--color=no", "--benchmark-disable"]
        code = finished([*command, *PARALLEL, *GROUPS[number]], PYTEST_LIMIT, log, INTERPRETER)
        printed = log.read_text(encoding="utf-8", errors="replace")
        return {
            "tests": " ".join(GROUPS[number]),
            "exit": code,
            **Counter(outcome.lower() for outcome in OUTCOME.findall(printed)),
            "end": "" if code in (0, NO_TEST) else "\n".join(FAILED.findall(printed)) or tail(log),
        }

    faults = []
    with ThreadPoolExecutor(len(GROUPS)) as pool:
        for done in as_completed([pool.submit(run, number) for number in range(len(GROUPS))]):
            found = done.result()
            record.add("pytest", found)
            if found["exit"] is None:
                faults.append(f"{found['tests']}: ended after {PYTEST_LIMIT} s")
            elif found["exit"] not in (0, NO_TEST):
                faults.append(f"{found['tests']}: exit code {found['exit']}")
    return faults


def repeat_faults(record: Record) -> list[str]:
    """Run each operation many times on the same input. The results must have the same bits."""
    case = Case(BASE) if ON_GPU else Case(BASE, 2)
    static = Case(case.model, case.frames, one_segment=True)
    # equal scores, so that ties decide
    equal = Case(case.model, case.frames, scores="equal", one_segment=True)
    faults = []

    def repeat(name: str, run: Callable[[], list[Tensor]]) -> None:
        first = [tensor.clone() for tensor in run()]
        same = all(
            torch.equal(_bits(again), _bits(once))
            for _ in range(REPEATS)
            for again, once in zip(run(), first, strict=True)
        )
        record.add("repeats", {"operation": name, "repeats": REPEATS, "same": same})
        if not same:
            faults.append(f"{name}: other bits in a repeat")

    scored = score_inputs(case)
    repeat("score", lambda: [run_score(scored)])
    for name, own in (("select", case), ("select, one segment", static), ("select, equal scores", equal)):
        repeat(name, partial(_selected, select_inputs(own)))
    compacted = compact_inputs(case)
    repeat("compact", lambda: run_compact(compacted))
    return faults


def sanitizer_faults(record: Record) -> list[str]:
    """Run the kernels under NVIDIA's sanitizer, if it is installed, to find races and accesses out of bounds."""
    sanitizer = tool("compute-sanitizer")
    if not ON_GPU or sanitizer is None:
        record.put(sanitizer="not run: " + ("it is not installed" if ON_GPU else "no GPU"))
        return []

    def run(check: str) -> tuple[str, int | None, str]:
        log = record.folder / f"tests-{check}.log"
        command = [sanitizer, "--tool", check, "--error-exitcode", str(FAULT), sys.executable, "-m", "bench.gpu.once"]
        # each tensor has its own memory, so that the bytes after it are out of bounds
        code = finished([*command, BASE, "4"], SANITIZER_LIMIT, log, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        return check, code, tail(log)

    faults = []
    with ThreadPoolExecutor() as pool:
        for check, code, end in pool.map(run, ("memcheck", "racecheck")):
            record.add("sanitizer", {"check": check, "exit": code, "end": end})
            if code == FAULT:
                faults.append(f"{check} has found a fault")
    return faults


def _selected(x: SimpleNamespace) -> list[Tensor]:
    return [run_select(x)]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
