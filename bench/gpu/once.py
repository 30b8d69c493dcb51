"""Run the three operations, for tools that watch a process: `python -m bench.gpu.once MODEL FRAMES`."""

import sys

import torch

from bench.inputs import Case, compact_inputs, run_compact, run_score, run_select, score_inputs, select_inputs
from bench.timing import synchronize


@torch.inference_mode()
def main() -> None:
    """Run the operations of a first cut twice, then the selection of a later cut, and of a video with one segment."""
    model, frames = sys.argv[1:]
    case = Case(model, int(frames))
    scored, selected, compacted = score_inputs(case), select_inputs(case), compact_inputs(case)
    for _ in range(2):
        run_score(scored)
        run_select(selected)
        run_compact(compacted)
    selected.deduplicate = False
    run_select(selected)
    run_select(select_inputs(Case(model, int(frames), one_segment=True)))
    synchronize()


if __name__ == "__main__":
    main()
