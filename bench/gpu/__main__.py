"""Run all measurements that need a GPU, step by step: `python -m bench.gpu`.

Each step has a time limit, and writes DIR/STEP.json while it runs. If a step fails, the next one still runs. On a CPU
the steps run at small sizes, as a test.
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
    """Run the steps. Return the exit code, which is 0 if all have succeeded."""
    names = ",".join(step.name for step in STEPS)
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=names, metavar="STEP,...", help=f"Steps to run, of {names} (default: all).")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Folder of the result files (default: bench/results/gpu-NAME, by the device).",
    )
    parser.add_argument("--dry-run", action="store_true", help="Print the plan and measure nothing.")
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
    """Return the plan as text."""
    lines = []
    for step in steps:
        lines.append(f"{step.name}, at most {step.limit} s: {step.what}")
        lines += [f"    expected on an H100 (estimate, not measured): {figure}" for figure in step.expected]
    return "\n".join([*lines, f"together at most {sum(step.limit for step in steps) / 60:.0f} minutes"])


def device_name() -> str:
    """Return the name of this device in the names of result folders."""
    return re.sub(r"[^a-z0-9]+", "-", (machine()["gpu"] or "none").lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
