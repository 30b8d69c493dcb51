"""Run one step in the process that `bench.gpu.run` starts for it: `python -m bench.gpu.step NAME FILE`."""

import importlib
import sys
import traceback
from pathlib import Path

from bench.record import Record


def main() -> int:
    """Measure, and write the results. Return the exit code."""
    name, file = sys.argv[1:]
    record = Record(Path(file), name)
    try:
        importlib.import_module(f"bench.gpu.{name}").measure(record)
    except Exception as error:
        traceback.print_exc()
        record.put(status="failed", error=f"{type(error).__name__}: {error}")
        return 1
    record.put(status="done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
