"""Whole cuts of the engine between two decoder layers, on random tensors."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adatp.engine.cuts import Cuts
from adatp.engine.tokens import Tokens
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.layout import PromptLayout, VideoSize
from adatp.methods import AdaTP
from bench.gpu.trace import trace
from bench.inputs import DEVICE, DTYPE, FRAMES_PER_SEGMENT, Case
from bench.timing import CLOCKS, host_seconds, replayed, synchronize

ROUNDS = 10 if DEVICE.type == "cuda" else 2


class RandomCuts:
    """The first two cuts of a prompt.

    Args:
        case: the prompt: all visual tokens, then all text tokens.
    """

    def __init__(self, case: Case) -> None:
        shape = MODEL_SHAPES[case.model]
        self._layout = PromptLayout(
            length=case.length,
            begins=tuple(range(0, case.visual, case.positions)),
            rows=torch.arange(case.visual, case.length),
            videos=(VideoSize(case.frames, shape.grid),),
        )
        self._layers = shape.layers
        each = case.frames if case.one_segment else FRAMES_PER_SEGMENT
        shots = self._random(case.segments, 1152).repeat_interleave(each, 0)  # the frames of a segment are similar
        self._frames = shots[: case.frames]
        self._similarity = torch.rand(case.frames, device=DEVICE) - 0.4
        self._whole = [self._random(1, case.length, size) for size in (case.hidden, case.dim, case.dim)]
        self._key = self._random(1, case.key_heads, case.length, case.dim)
        self._query = self._random(1, case.heads, case.text, case.dim)
        self._scale = case.dim**-0.5

    @staticmethod
    def _random(*size: int) -> Tensor:
        return torch.randn(*size, device=DEVICE).to(DTYPE)

    def start(self) -> tuple[Cuts, Tokens]:
        """Return the state of a prefill before its first cut."""
        cuts = Cuts(AdaTP(), self._layers, self._layout, frames=self._frames, similarity=self._similarity)
        return cuts, cuts.tokens(*self._whole)

    def cut(self, cuts: Cuts, number: int, tokens: Tokens) -> Tokens:
        """Make a cut; several times, if it is not the first."""
        layer = list(cuts.ratios)[number]
        return cuts.cut(layer, tokens, self._query, self._key[:, :, : tokens.width], self._scale)


def measure_cuts(case: Case) -> list[dict[str, Any]]:
    """Measure the first cut, and the next one that drops tokens: seconds on the device, and on the host.

    The first cut waits for the device to read the number of kept tokens; then the device waits for the host. Its device
    time includes both. If deduplication has left fewer tokens than every later quota, there is no other cut.
    """
    random = RandomCuts(case)
    cuts, tokens = random.start()
    after = random.cut(cuts, 0, tokens)  # compiles

    started = [random.start() for _ in range(2 * ROUNDS + 2)]

    def first() -> None:
        random.cut(started[-1][0], 0, started.pop()[1])

    first_row = {"cut": "first", "width": after.width, "how": "queue: it waits for the device"}
    first_row |= {"seconds": _with(list(CLOCKS.values())[-1], first), "host": _with(time.perf_counter, first)}
    rows = [{**first_row, "trace": trace(first)}]

    assert cuts.plan is not None
    widths = cuts.plan.kept.sum(1).tolist()
    number = next((number for number, width in enumerate(widths) if width < widths[0]), None)
    if number is None:
        return rows

    def later() -> None:
        random.cut(cuts, number, after)

    seconds, how = replayed(later, rounds=ROUNDS)
    later_row = {"cut": "later", "width": random.cut(cuts, number, after).width, "how": how}
    later_row |= {"seconds": seconds, "host": host_seconds(later, rounds=ROUNDS)}
    return [*rows, {**later_row, "trace": trace(later)}]


def _with(clock: Callable[[], float], run: Callable[[], None]) -> list[float]:
    """Return the seconds of each of several calls, each of which may run only once."""
    took = []
    for _ in range(ROUNDS):
        synchronize()
        begin = clock()
        run()
        took.append(clock() - begin)
    return took
