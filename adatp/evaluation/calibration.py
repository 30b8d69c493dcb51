"""How tau_s divides videos into segments, from the cosines of adjacent frames' features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError
from adatp.methods.segments import adjacent_cosines

LOWEST, HIGHEST = -1.0, 1.0  # of tau_s
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # the quantiles of a distribution, from its minimum to its maximum
FRAMES_PER_SEGMENT = 4  # what is wanted where nothing is said


class Found(NamedTuple):
    """A threshold.

    Attributes:
        tau_s: the threshold.
        segments: number of segments of all videos at this threshold.
    """

    tau_s: float
    segments: int


def cosines_of(features: Tensor) -> Tensor:
    """Compute `[n - 1]` float64, sorted: the cosines of a video's adjacent frames, where -inf stands for NaN.

    A NaN begins a new segment at every threshold, as -inf does.

    Args:
        features: `[n, D]` one feature per frame, any floating dtype.
    """
    return adjacent_cosines(features).nan_to_num(nan=-torch.inf).sort().values


def count_segments(cosines: Tensor, tau_s: float) -> int:
    """Count the segments of one video at a threshold.

    Args:
        cosines: `[n - 1]` as `cosines_of` returns them.
        tau_s: the threshold.
    """
    return 1 + int((cosines < tau_s).sum())


def quantiles(cosines: Tensor) -> list[float] | None:
    """Compute the quantiles `SHARES` of `[m]` cosines, linear between neighbours; None if there is no finite cosine."""
    finite = cosines[cosines.isfinite()]
    if not len(finite):
        return None
    found: list[float] = torch.quantile(finite, torch.tensor(SHARES, dtype=finite.dtype)).tolist()
    return found


def default_segments(cosines: Sequence[Tensor]) -> float:
    """Compute the default mean number of segments: one for `FRAMES_PER_SEGMENT` frames, at least 1."""
    frames = sum(len(own) + 1 for own in cosines)
    return max(1.0, frames / len(cosines) / FRAMES_PER_SEGMENT)


def find_tau(cosines: Sequence[Tensor], wanted: float) -> Found:
    """Find the tau_s whose mean number of segments per video is the nearest to the wanted one.

    Between two neighbouring cosines every threshold gives the same number. Of these the one with the fewest decimals
    near the middle is taken. If two numbers are equally near, the smaller is taken.

    Args:
        cosines: one sorted tensor per video, as `cosines_of` returns them.
        wanted: the wanted mean number, at least 1.

    Raises:
        InputError: `wanted` is below 1 or no number, or no video has two frames.
    """
    if not 1 <= wanted < torch.inf:
        raise InputError(f"segments must be a number of at least 1, got {wanted}")
    every = torch.cat(list(cosines)).sort().values
    if not len(every):
        raise InputError("no video has two frames to compare; give a longer video, or more frames")
    # a threshold in (low, high] leaves the cosines up to `low` below it
    inner = every[(every >= LOWEST) & (every < HIGHEST)].unique().tolist()
    edges = [*inner, HIGHEST]
    lows = [-torch.inf, *inner]
    counts = torch.searchsorted(every, torch.tensor(lows, dtype=every.dtype), right=True).tolist()
    counts[0] = int((every < LOWEST).sum())
    goal = wanted * len(cosines) - len(cosines)
    best = min(range(len(edges)), key=lambda i: (abs(counts[i] - goal), counts[i]))
    return Found(_between(lows[best], edges[best]), len(cosines) + counts[best])


def _between(low: float, high: float) -> float:
    """Return a number in (low, high], and in [-1, 1], with few decimals and near the middle."""
    middle = (max(low, LOWEST) + high) / 2
    for digits in range(2, 17):
        rounded = round(middle, digits)
        if low < rounded <= high:
            return rounded
    return high


class Calibration(NamedTuple):
    """The cosines of some videos on one model, and the threshold for them.

    Attributes:
        aligned: whether the features are those of an aligned SigLIP; if not, they are the vision tower's own.
        cosines: by video, as `cosines_of` returns them.
        wanted: the wanted mean number of segments per video.
        chosen: whether the user chose it.
        found: the threshold.
    """

    aligned: bool
    cosines: list[Tensor]
    wanted: float
    chosen: bool
    found: Found

    @property
    def reached(self) -> bool:
        """Whether the number of segments is the wanted one, up to a whole segment in all videos."""
        return abs(self.found.segments - self.wanted * len(self.cosines)) < 1


def calibrate(features: Sequence[Tensor], wanted: float | None, *, aligned: bool) -> Calibration:
    """Find the threshold for some videos.

    Args:
        features: `[n, D]` of each video.
        wanted: the wanted mean number of segments per video; None takes `default_segments`.
        aligned: see `Calibration`.

    Raises:
        InputError: see `find_tau`.
    """
    cosines = [cosines_of(own) for own in features]
    goal = default_segments(cosines) if wanted is None else wanted
    return Calibration(aligned, cosines, goal, wanted is not None, find_tau(cosines, goal))
