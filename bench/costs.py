"""The cost model of each operation: the least work that it can do, and the roof that follows from it.

All providers of an operation are compared with the same work, so GB/s and TFLOP/s compare as the times do. This holds
even if a provider does more work (eager attention) or less (the reference computes normaliser and columns in one
product).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """The least work of an operation.

    Attributes:
        bytes: bytes to move, if each input is read once and each output is written once.
        flops: FLOPs; a multiply-add counts as two.
        exponentials: number of exponentials in fp32.
    """

    bytes: int
    flops: int = 0
    exponentials: int = 0


@dataclass(frozen=True)
class Roofs:
    """The rates that this machine reaches in this run. The three kinds of work overlap, so the slowest is the roof.

    Attributes:
        copy: bytes/s of a large copy (read and written).
        matmul: FLOP/s of a large matrix product.
        exponentials: exponentials/s in fp32.
    """

    copy: float
    matmul: float
    exponentials: float

    def seconds(self, cost: Cost) -> float:
        """Return the time of the roof. With a cold cache, no implementation is faster."""
        return max(cost.bytes / self.copy, cost.flops / self.matmul, cost.exponentials / self.exponentials)


def score_cost(query: Tensor, key: Tensor, columns: tuple[int, int]) -> Cost:
    """Return the cost of `score`.

    FLOPs: 2 B H T D (L + C), for the multiply-adds of two passes, over all L keys and over the C columns. Exponentials:
    B H T (L + C), one for each logit. Bytes: queries, keys, the rows' places (int64) and the scores (fp32).
    """
    batch, heads, rows, dim = query.shape
    wanted = columns[1] - columns[0]
    moved = (query.numel() + key.numel()) * query.element_size() + 8 * batch * rows + 4 * batch * wanted
    logits = batch * heads * rows * (key.shape[2] + wanted)
    return Cost(moved, 2 * dim * logits, logits)


def select_cost(score: Tensor, position: Tensor) -> Cost:
    """Return the cost of `select`: scores and positions are read, and a byte of mask is written for each token."""
    return Cost(score.numel() * score.element_size() + position.numel() * (8 + 1))


def compact_cost(keep: Tensor, counts: list[int], tensors: list[Tensor]) -> Cost:
    """Return the cost of `compact`: the kept rows are read and written, and the mask is read."""
    row = sum(t[0, 0].numel() * t.element_size() for t in tensors)
    return Cost(2 * sum(counts) * row + keep.numel())
