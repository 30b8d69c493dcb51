"""Device time of the operations with their roofs, and of whole cuts."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from adatp.evaluation.comparison import quartiles
from bench.costs import Cost, Roofs, compact_cost, score_cost, select_cost
from bench.gpu.cuts import measure_cuts
from bench.gpu.process import finished
from bench.gpu.trace import kernel_seconds
from bench.gpu.versions import tool
from bench.inputs import (
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
from bench.timing import device_seconds, host_seconds, measure_roofs, replayed

ON_GPU = DEVICE.type == "cuda"
BIG, SMALL = "onevision-7b", "onevision-0.5b"
CASES = [Case(BIG), Case(SMALL), Case(BIG, 1024), Case(SMALL, 1024)] if ON_GPU else [Case(SMALL, 8)]
NCU_LIMIT = 40
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "ComputeWorkloadAnalysis")


@torch.inference_mode()
def measure(record: Record) -> None:
    """Measure the operations in every case, whole cuts, and the column kernel by Nsight Compute."""
    roofs = measure_roofs()
    record.put(roofs=asdict(roofs))
    for case in CASES:
        x = score_inputs(case)
        run: Callable[[], object] = partial(run_score, x)
        row = _row(case, "score", run, score_cost(x.query, x.key, x.columns), roofs)
        record.add("operations", {**row, "kernels": kernel_seconds(run)})
        for own in (case, _static(case)):
            x = select_inputs(own)
            row = _row(own, "select", partial(run_select, x), select_cost(x.score, x.position), roofs)
            record.add("operations", row)
        x = compact_inputs(case)
        row = _row(case, "compact", partial(run_compact, x), compact_cost(x.keep, x.counts, x.tensors), roofs)
        record.add("operations", row)
    for case in CASES:
        for own in (case, _static(case)):
            for row in measure_cuts(own):
                record.add("cuts", {**_names(own), **row})
    record.put(ncu=_ncu(record))


def _static(case: Case) -> Case:
    """Return the inputs for a video in which nothing moves."""
    return Case(case.model, case.frames, one_segment=True)


def _row(case: Case, name: str, run: Callable[[], object], cost: Cost, roofs: Roofs) -> dict[str, Any]:
    warm, how = replayed(run)
    low, middle, high = quartiles(warm)
    return {
        **_names(case),
        "operation": name,
        "how": how,
        "seconds": middle,
        "q1": low,
        "q3": high,
        "cold_seconds": median(device_seconds(run, cold=True)),
        "host_seconds": median(host_seconds(run)),
        "roof_seconds": roofs.seconds(cost),
        "times_roof": middle / roofs.seconds(cost),
        **asdict(cost),
    }


def _names(case: Case) -> dict[str, Any]:
    return {"model": case.model, "frames": case.frames, "visual_tokens": case.visual, "segments": case.segments}


def _ncu(record: Record) -> str:
    """Return the CSV of Nsight Compute for one launch of the column kernel, or why there is none."""
    ncu = tool("ncu")
    if not ON_GPU or ncu is None:
        return "not run: " + ("it is not installed" if ON_GPU else "no GPU")
    log = record.folder / "kernels-ncu.log"
    sections = [argument for name in SECTIONS for argument in ("--section", name)]
    chosen = ["--kernel-name", "regex:column", "--launch-skip", "1", "--launch-count", "1"]
    command = [ncu, "--csv", "--page", "details", *sections, *chosen, sys.executable, "-m", "bench.gpu.once", BIG, "32"]
    if finished(command, NCU_LIMIT, log) is None:
        return f"ended after {NCU_LIMIT} s"
    return log.read_text(encoding="utf-8", errors="replace")[-20_000:]
