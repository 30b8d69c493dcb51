"""The steps in order of importance: their measurements, time limits and expected results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A part of the plan, measured by the module of its name.

    Attributes:
        name: name of the module, and of the result file.
        what: the measurements of the step, in words.
        limit: seconds after which the step is ended; the results so far are kept.
        expected: estimated figures for an H100, from the review of the code.
    """

    name: str
    what: str
    limit: int
    expected: tuple[str, ...]


# The first four take 9 minutes at most, all of them 25.
STEPS = (
    Step(
        "versions",
        "versions and device; roofs of copy, matrix product and exponentials",
        40,
        ("copy 3.0 TB/s, bf16 matrix product 790 TFLOP/s, 3.7 T exponentials/s (16 a clock and multiprocessor)",),
    ),
    Step(
        "tests",
        "the CUDA tests; the same bits in a hundred repeats; compute-sanitizer's memcheck and racecheck",
        150,
        ("all pass, no bit differs, no fault is found",),
    ),
    Step(
        "kernels",
        "device time by CUDA graph replay: score by pass, select, compact, a first and a later cut; Nsight Compute",
        100,
        (
            "7B, 32 frames: score 60 us at commit 3b3dcc5 and 30 us with the splits joined once; roof 15 us",
            "0.5B, 32 frames: score 27 us at commit 3b3dcc5; 1,024 frames: 7B 1.7 ms, 0.5B 0.6 ms",
            "select: 8 segments 7 us; one segment of 6,272 tokens 21 to 35 us, of 200,704 tokens 0.5 to 0.9 ms",
            "host: 0.7 ms for a first cut, 0.2 ms for a later one",
        ),
    ),
    Step(
        "prefill",
        "0.5B and 7B: wall time beside the unpruned prefill, eager and compiled; own cost; a trace; a cut's host time",
        250,
        (
            "0.5B, eager: 19 ms unpruned, 14 to 15 ms at p = 1 without relevance, 20 ms with it; the ideal is 4.2x",
            "7B at p = 1: own cost 1.6 % of the prefill on the GPU, 1 % waiting for the host, and relevance",
        ),
    ),
    Step(
        "ttft",
        "generate to the first token: tower, projector, relevance and decoder, with relevance and without",
        240,
        ("relevance: text tower 4 to 6 ms, vision layer 2 ms",),
    ),
    Step(
        "scale",
        "8 to 1,024 frames, batches, and a cut's cost by length",
        480,
        ("a cut's cost a token stays the same from 32 to 1,024 frames",),
    ),
)


def chosen(names: str) -> list[Step]:
    """Return the steps of a comma-separated list, in the plan's order.

    Raises:
        ValueError: a name is not one of the steps.
    """
    wanted = names.split(",")
    known = [step.name for step in STEPS]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"there is no step {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return [step for step in STEPS if step.name in wanted]
