"""The attention biases of the paper's section 3.2, as numbers.

Scores are `[N, n, c]`: N layers, n frames, c tokens a frame. Layers, frames, rows and columns are counted from 0.
"""

import math
from enum import IntEnum
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError
from adatp.layout import Grid

# as in the paper
TOP_SHARE = 0.1  # share of the visual tokens that are the top tokens
LAST_FRAMES = 4  # number of last frames in which the paper counts top tokens
# not from the paper: our definition of a biased token
END_SHARE = 8  # the first and the last 1/8 of the frames are the ends of the sequence
RECURRENT_SHARE = 2  # a position recurs if it holds a top token in at least 1/2 of the frames


class Bias(IntEnum):
    """The place of a top token: at the ends, at a recurring position, both or neither; see `classify`."""

    NOT_AT_THE_TOP = 0
    NEITHER = 1
    ENDS = 2
    POSITION = 3
    BOTH = 4


def per_frame(scores: Tensor) -> Tensor:
    """Return the attention to all tokens of each frame, `[N, n]` (fig. 2 and 7)."""
    return scores.sum(2)


def per_position(scores: Tensor, grid: Grid) -> Tensor:
    """Return the attention to each position in all frames, over the mean of the positions (fig. 3 and 6).

    Returns:
        `[N, rows, columns]`.
    """
    position = scores.sum(1)
    return (position / position.mean(1, keepdim=True)).view(-1, *grid.shape)


def top_tokens(scores: Tensor, share: float = TOP_SHARE) -> Tensor:
    """Find the tokens with the highest scores of each layer (fig. 1). Of equal scores, the earlier token comes first.

    Args:
        scores: `[N, n, c]`.
        share: share of the n * c tokens to find, in (0, 1]. Their number is rounded (half up), and is at least 1.

    Returns:
        `[N, n, c]` bool.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {share}")
    flat = scores.flatten(1)
    count = max(1, math.floor(Fraction(str(share)) * flat.shape[1] + Fraction(1, 2)))
    best = flat.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best, True).view_as(scores)


def share_in_last(top: Tensor, frames: int = LAST_FRAMES) -> Tensor:
    """Compute the share of the `[N, n, c]` top tokens that is in the last frames (section 3.2: 86.8 %).

    Returns:
        `[N]` float64; 1 if the clip has no other frames.
    """
    if frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    return top[:, -frames:].sum((1, 2)) / top.sum((1, 2)).double()


class Peak(NamedTuple):
    """The position with the most attention in each of N layers (section 3.2: 5.77 at row 11, column 1).

    Attributes:
        factor: `[N]` attention to it, over the mean of all positions.
        row, column: `[N]` int64.
    """

    factor: Tensor
    row: Tensor
    column: Tensor


def peak(scores: Tensor, grid: Grid) -> Peak:
    """Find the peak of `per_position`; of equal positions, the earlier one."""
    factor, position = per_position(scores, grid).flatten(1).sort(dim=1, descending=True, stable=True)
    return Peak(factor[:, 0], position[:, 0] // grid.columns, position[:, 0] % grid.columns)


def frames_at_ends(frames: int) -> Tensor:
    """Mark the first and the last eighth of the frames (rounded up), `[n]` bool."""
    width = -(-frames // END_SHARE)
    index = torch.arange(frames)
    return (index < width) | (index >= frames - width)


def classify(top: Tensor) -> Tensor:
    """Give a `Bias` to every top token, by its place and not by its content.

    `ENDS`, the global bias: the token is in the first or the last eighth of the frames. `POSITION`, the local bias: its
    spatial position holds a top token in at least half of the frames. `BOTH` and `NEITHER` combine these two.

    Args:
        top: `[N, n, c]` bool, as `top_tokens` finds them.

    Returns:
        `[N, n, c]` uint8.
    """
    frames = top.shape[1]
    ends = frames_at_ends(frames).to(top.device)[:, None]
    recurs = (RECURRENT_SHARE * top.sum(1) >= frames)[:, None]
    kinds = torch.full_like(top, Bias.NEITHER, dtype=torch.uint8)
    for kind, chosen in ((Bias.ENDS, ends & ~recurs), (Bias.POSITION, recurs & ~ends), (Bias.BOTH, ends & recurs)):
        kinds[chosen.expand_as(top)] = kind
    return kinds * top


class Biases(NamedTuple):
    """All biases of one attention map.

    Attributes:
        per_frame: `[N, n]`, see `per_frame`.
        per_position: `[N, rows, columns]`, see `per_position`.
        kinds: `[N, n, c]` uint8, see `Bias`.
        in_last: `[N]` float64 share of the top tokens in the last `LAST_FRAMES` frames.
        peak: the position with the most attention in every layer.
    """

    per_frame: Tensor
    per_position: Tensor
    kinds: Tensor
    in_last: Tensor
    peak: Peak


def measure(scores: Tensor, grid: Grid) -> Biases:
    """Compute the biases of `[N, n, c]` scores."""
    top = top_tokens(scores)
    return Biases(per_frame(scores), per_position(scores, grid), classify(top), share_in_last(top), peak(scores, grid))


def shares(kinds: Tensor) -> Tensor:
    """Compute the share of each `Bias`, from `NEITHER` to `BOTH`, among each layer's top tokens, `[N, 4]` float64."""
    counts = torch.stack([(kinds == kind).sum((1, 2)) for kind in Bias if kind], 1)
    return counts / counts.sum(1, keepdim=True).double()
