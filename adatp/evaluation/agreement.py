"""How far a next-token distribution is from the one it should be."""

from typing import NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError


class Agreement(NamedTuple):
    """Of two distributions p, the reference, and q.

    Attributes:
        kl: KL(p || q) in nats; inf where q rules out what p does not.
        same_top: whether both have the same most likely token, the first of equals.
        total_variation: half the sum of |p - q|, in [0, 1].
    """

    kl: float
    same_top: bool
    total_variation: float


def agreement(reference: Tensor, other: Tensor) -> Agreement:
    """Compare `[V]` logits, in fp64 on the host; -inf is a token that is suppressed.

    Raises:
        InputError: no two vectors of one length, a NaN or inf among them, or every token suppressed.
    """
    if reference.ndim != 1 or reference.shape != other.shape:
        raise InputError(
            f"reference and other must be [V] logits of one vocabulary, "
            f"got {tuple(reference.shape)} and {tuple(other.shape)}"
        )
    log_p, log_q = _log_probabilities("reference", reference), _log_probabilities("other", other)
    p, q = log_p.exp(), log_q.exp()
    # what p gives nothing adds nothing, even where the logarithms' difference is -inf + inf
    divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum()
    return Agreement(
        kl=max(0.0, float(divergence)),  # below 0 by rounding only
        same_top=int(log_p.argmax()) == int(log_q.argmax()),
        total_variation=float((p - q).abs().sum()) / 2,
    )


def _log_probabilities(name: str, logits: Tensor) -> Tensor:
    logits = logits.detach().cpu().double()
    if bool(logits.isnan().any() or logits.isposinf().any()):
        raise InputError(f"{name} must hold no NaN and no inf, which no softmax can take")
    if not bool(logits.isfinite().any()):
        raise InputError(f"{name} must leave at least one token, got every logit -inf")
    return logits.log_softmax(0)
