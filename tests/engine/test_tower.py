"""The attention that a vision tower's patches receive, and their keys."""

import math

import pytest
import torch

from adatp.engine.scoring import Scoring
from adatp.engine.tower import saliency_and_keys

FRAMES, HEADS, PATCHES, WIDTH = 2, 4, 9, 8


@pytest.fixture
def attention():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, FRAMES, HEADS, PATCHES, WIDTH, generator=generator)


def threes(maps):
    """Pool three patches to one."""
    return maps.unflatten(1, (3, 3)).mean(2)


def test_each_query_gives_its_attention_to_all_patches(attention):
    query, key = attention.double()
    received, keys = torch.zeros(2, FRAMES, PATCHES, WIDTH).double()
    for n in range(FRAMES):
        for h in range(HEADS):
            for q in range(PATCHES):
                weights = [math.exp(query[n, h, q] @ key[n, h, p] / math.sqrt(WIDTH)) for p in range(PATCHES)]
                for p in range(PATCHES):
                    received[n, p] += weights[p] / sum(weights) / HEADS / PATCHES
            keys[n] += key[n, h] / HEADS
    saliency, mean = saliency_and_keys(*attention, threes, Scoring())
    assert saliency.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(saliency.double(), threes(received)[..., 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(mean.double(), threes(keys), rtol=0, atol=1e-6)


def test_ranks_that_share_the_heads_average_both(attention):
    told: list[list[torch.Tensor]] = []
    for own in attention.chunk(2, 2):
        told.append([])
        saliency_and_keys(*own, threes, Scoring(average=lambda values: told[-1].append(values) or values))
    means = [torch.stack(values).mean(0) for values in zip(*told, strict=True)]
    taken = iter(means)
    averaged = saliency_and_keys(*attention[:, :, :2], threes, Scoring(average=lambda _: next(taken)))
    for own, whole in zip(averaged, saliency_and_keys(*attention, threes, Scoring()), strict=True):
        torch.testing.assert_close(own, whole, rtol=0, atol=1e-6)
