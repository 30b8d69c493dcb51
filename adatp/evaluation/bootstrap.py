"""The confidence interval of a difference between two methods on the same questions."""

from collections.abc import Sequence

import numpy as np

from adatp.errors import InputError

RESAMPLES = 10_000
_SEED = 0


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool], clips: Sequence[int]) -> tuple[float, float, float]:
    """Compute the difference of two accuracies, and its 95 % interval.

    The method is a paired bootstrap over clips. Answers about one clip depend on each other. So whole clips are drawn,
    each with all its questions and both answers to each. The interval is the 2.5th to the 97.5th percentile.

    Args:
        ours, theirs: whether each question was answered rightly.
        clips: number of the clip that each question is about.

    Returns:
        Difference (ours minus theirs), low and high end of the interval.

    Raises:
        InputError: there is no question, or the three lengths differ.
    """
    if not len(ours) == len(theirs) == len(clips) > 0:
        raise InputError(
            "ours, theirs and clips must have one entry for each question, at least one, "
            f"got {len(ours)}, {len(theirs)} and {len(clips)}"
        )
    _, clip = np.unique(clips, return_inverse=True)
    gain = np.bincount(clip, np.asarray(ours, float) - np.asarray(theirs, float))
    asked = np.bincount(clip)
    drawn = np.random.default_rng(_SEED).integers(0, len(asked), (RESAMPLES, len(asked)))
    resampled = gain[drawn].sum(1) / asked[drawn].sum(1)
    low, high = np.percentile(resampled, (2.5, 97.5)).tolist()
    return float(gain.sum() / asked.sum()), low, high
