"""The least work that each operation can do: its cost model, and the roof that follows from it.

All providers of an operation are held against the same work, so GB/s and TFLOP/s compare as the times do, whether one
does more than that (eager attention) or less (the reference finds normaliser and columns in one product).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Bytes that must be moved, each input read once and each output written once; FLOPs, a multiply-add being two; and
    exponentials in fp32.
    """

    bytes: int
    flops: int = 0
    exponentials: int = 0


@dataclass(frozen=True)
class Roofs:
    """What this machine reaches in this run: bytes/s of a large copy (read and written), FLOP/s of a large matmul, and
    exponentials/s in fp32. The three run beside each other, so the slowest of them is the roof.
    """

    copy: float
    matmul: float
    exponentials: float

    def seconds(self, cost: Cost) -> float:
        """No implementation is faster from a cold cache."""
        return max(cost.bytes / self.copy, cost.flops / self.matmul, cost.exponentials / self.exponentials)


def score_cost(query: Tensor, key: Tensor, columns: tuple[int, int]) -> Cost:
    """2 B H T D (L + C) FLOPs: B H T D (L + C) multiply-adds of two passes, over all keys and over the columns;
    and B H T (L + C) exponentials, one for each of them.

    Bytes: queries, keys, the rows' places (int64) and the scores (fp32).
    """
    batch, heads, rows, dim = query.shape
    wanted = columns[1] - columns[0]
    moved = (query.numel() + key.numel()) * query.element_size() + 8 * batch * rows + 4 * batch * wanted
    logits = batch * heads * rows * (key.shape[2] + wanted)
    return Cost(moved, 2 * dim * logits, logits)


def select_cost(score: Tensor, position: Tensor) -> Cost:
    """Scores and positions read, a byte of mask a token written."""
    return Cost(score.numel() * score.element_size() + position.numel() * (8 + 1))


def compact_cost(keep: Tensor, counts: list[int], tensors: list[Tensor]) -> Cost:
    """Kept rows read and written, and the mask read."""
    row = sum(t[0, 0].numel() * t.element_size() for t in tensors)
    return Cost(2 * sum(counts) * row + keep.numel())
