"""The distance of a next-token distribution from a reference distribution."""

from typing import NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError


class Agreement(NamedTuple):
    """The agreement of a distribution q with the reference distribution p.

    Attributes:
        kl: KL(p || q) in nats; inf if q gives probability 0 to a token that p allows.
        same_top: whether both have the same most likely token; the first one, if several are equal.
        total_variation: half the sum of |p - q|, in [0, 1].
    """

    kl: float
    same_top: bool
    total_variation: float


def agreement(reference: Tensor, other: Tensor) -> Agreement:
    """Compare `[V]` logits, in fp64 on the host. A logit of -inf means a suppressed token.

    Raises:
        InputError: the logits are not two vectors of one length, hold NaN or +inf, or suppress every token.
    """
    if reference.ndim != 1 or reference.shape != other.shape:
        raise InputError(
            f"reference and other must be [V] logits of one vocabulary, "
            f"got {tuple(reference.shape)} and {tuple(other.shape)}"
        )
    log_p, log_q = _log_probabilities("reference", reference), _log_probabilities("other", other)
    p, q = log_p.exp(), log_q.exp()
    # a token with p = 0 adds 0, even if the difference of the logarithms is -inf + inf
    divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum()
    return Agreement(
        kl=max(0.0, float(divergence)),  # below 0 by rounding only
        same_top=int(log_p.argmax()) == int(log_q.argmax()),
        total_variation=float((p - q).abs().sum()) / 2,
    )


def _log_probabilities(name: str, logits: Tensor) -> Tensor:
    logits = logits.detach().cpu().double()
    if bool(logits.isnan().any() or logits.isposinf().any()):
        raise InputError(f"{name} must hold no NaN and no +inf: their softmax is undefined")
    if not bool(logits.isfinite().any()):
        raise InputError(f"{name} must have at least one finite logit, got -inf for every token")
    return logits.log_softmax(0)
