"""The biases of attention that the paper's section 3.2 shows, as numbers. Scores are `[N, n, c]`: N layers, n frames.

Layers, frames, rows and columns are counted from 0.
"""

import math
from enum import IntEnum
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError

# as in the paper
TOP_SHARE = 0.1  # of the visual tokens, whose places the paper looks at
LAST_FRAMES = 4  # in which it counts them
# which token is called biased is settled here
END_SHARE = 8  # the first and the last 1/8 of the frames are the ends of the sequence
RECURRENT_SHARE = 2  # a position recurs that is at the top in at least 1/2 of the frames


class Bias(IntEnum):
    """What brought a token to the top, if it is there; see `classify`."""

    NOT_AT_THE_TOP = 0
    NEITHER = 1
    ENDS = 2
    POSITION = 3
    BOTH = 4


def per_frame(scores: Tensor) -> Tensor:
    """`[N, n]`: the attention to all tokens of a frame (fig. 2 and 7)."""
    return scores.sum(2)


def per_position(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[N, rows, columns]`: the attention to a position in all frames, over the mean position's (fig. 3 and 6)."""
    position = scores.sum(1)
    return (position / position.mean(1, keepdim=True)).view(-1, *grid)


def top_tokens(scores: Tensor, share: float = TOP_SHARE) -> Tensor:
    """`[N, n, c]` bool: the tokens with the highest scores of each layer, ties to the earlier (fig. 1).

    Args:
        scores: `[N, n, c]`.
        share: of the n * c tokens, above 0 and up to 1; half a token counts as one, and one there is at least.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share}")
    flat = scores.flatten(1)
    count = max(1, math.floor(Fraction(str(share)) * flat.shape[1] + Fraction(1, 2)))
    best = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best, True).view_as(scores)


def share_in_last(top: Tensor, frames: int = LAST_FRAMES) -> Tensor:
    """`[N]` float64: the share of the `[N, n, c]` top tokens that is in the last frames (section 3.2: 86.8 %).

    All of them where there are no more frames than that.
    """
    if frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    return top[:, -frames:].sum((1, 2)) / top.sum((1, 2)).double()


class Peak(NamedTuple):
    """The position with the most attention, of each of N layers (section 3.2: 5.77 at row 11, column 1).

    Attributes:
        factor: `[N]` over the mean of all positions.
        row, column: `[N]` int64.
    """

    factor: Tensor
    row: Tensor
    column: Tensor


def peak(scores: Tensor, grid: tuple[int, int]) -> Peak:
    """The peak of `per_position`; the earlier one of equals."""
    factor, position = per_position(scores, grid).flatten(1).sort(dim=1, descending=True, stable=True)
    return Peak(factor[:, 0], position[:, 0] // grid[1], position[:, 0] % grid[1])


def frames_at_ends(frames: int) -> Tensor:
    """`[n]` bool: the first and the last eighth of the frames, rounded up."""
    width = -(-frames // END_SHARE)
    index = torch.arange(frames)
    return (index < width) | (index >= frames - width)


def classify(top: Tensor) -> Tensor:
    """`[N, n, c]` uint8, a `Bias` for every token: by where it is among the top ones, not by what it shows.

    `ENDS`, the global bias: the token is in the first or the last eighth of the frames. `POSITION`, the local bias: its
    spatial position is at the top in at least half of the frames. `BOTH`, `NEITHER`: as the words say.

    Args:
        top: `[N, n, c]` bool, as `top_tokens` finds them.
    """
    frames = top.shape[1]
    ends = frames_at_ends(frames).to(top.device)[:, None]
    recurs = (RECURRENT_SHARE * top.sum(1) >= frames)[:, None]
    kinds = torch.full_like(top, Bias.NEITHER, dtype=torch.uint8)
    for kind, chosen in ((Bias.ENDS, ends & ~recurs), (Bias.POSITION, recurs & ~ends), (Bias.BOTH, ends & recurs)):
        kinds[chosen.expand_as(top)] = kind
    return kinds * top


class Biases(NamedTuple):
    """All of the above, of one map of attention.

    Attributes:
        per_frame: `[N, n]`.
        per_position: `[N, rows, columns]`.
        kinds: `[N, n, c]` uint8, see `Bias`.
        in_last: `[N]` float64 share of the top tokens in the last `LAST_FRAMES` frames.
        peak: of every layer.
    """

    per_frame: Tensor
    per_position: Tensor
    kinds: Tensor
    in_last: Tensor
    peak: Peak


def measure(scores: Tensor, grid: tuple[int, int]) -> Biases:
    """The biases of `[N, n, c]` scores."""
    top = top_tokens(scores)
    return Biases(per_frame(scores), per_position(scores, grid), classify(top), share_in_last(top), peak(scores, grid))


def shares(kinds: Tensor) -> Tensor:
    """`[N, 4]` float64: of each layer's top tokens the share of each `Bias`, from `NEITHER` to `BOTH`."""
    counts = torch.stack([(kinds == kind).sum((1, 2)) for kind in Bias if kind], 1)
    return counts / counts.sum(1, keepdim=True).double()
