"""Measure on a GPU what can be measured nowhere else, step by step: `python -m bench.gpu`.

Each step writes DIR/STEP.json as it goes and has a time limit; where one fails, the next one runs. On a CPU it runs
small, to show that it runs.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adatp.tables.tabulate import print_tables
from bench.checkout import ROOT
from bench.gpu.plan import STEPS, Step, chosen
from bench.gpu.run import run
from bench.gpu.summary import tables
from bench.harness import machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; the exit code is 0 where all have succeeded."""
    names = ",".join(step.name for step in STEPS)
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=names, metavar="STEP,...", help=f"of {names} (default: all)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for the result files (default: bench/results/gpu-NAME, by the device)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and measure nothing")
    arguments = parser.parse_args(argv)
    try:
        steps = chosen(arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.dry_run:
        print(plan(steps))
        return 0
    folder = arguments.out or ROOT / "bench" / "results" / f"gpu-{device_name()}"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for step in steps:
        print(f"== {step.name}, at most {step.limit} s: {step.what}", flush=True)
        found.append(run(step, folder))
        print(f"   {found[-1]['status']}", flush=True)
    print_tables(tables(found))
    return 0 if all(own["status"] == "done" for own in found) else 1


def plan(steps: Sequence[Step]) -> str:
    """The plan in words."""
    lines = []
    for step in steps:
        lines.append(f"{step.name}, at most {step.limit} s: {step.what}")
        lines += [f"    expected on an H100 (estimate, not measured): {figure}" for figure in step.expected]
    return "\n".join([*lines, f"together at most {sum(step.limit for step in steps) / 60:.0f} minutes"])


def device_name() -> str:
    """What the results of this device are filed under."""
    return re.sub(r"[^a-z0-9]+", "-", (machine()["gpu"] or "none").lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
