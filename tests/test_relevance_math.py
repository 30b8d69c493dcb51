import math

import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adatp.methods.segments import mean_per_segment
from adatp.relevance import similarity


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 16),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_cosine_of_every_frame_with_its_own_question(seed, batch, n, dim, dtype):
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.randn(batch, n, dim, generator=generator) * 10).to(dtype)
    text = torch.randn(batch, dim, generator=generator).to(dtype)
    assume(bool((frames != 0).any(-1).all()) and bool((text != 0).any(-1).all()))
    got = similarity(frames, text)
    assert got.dtype == torch.float32
    want = [
        [oracle.cosine(frame, question) for frame in sample]
        for sample, question in zip(frames.double().tolist(), text.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_exact_cosines():
    frames = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [-2, -2, -2, -2]]])
    assert similarity(frames, torch.full((1, 4), 3.0)).tolist() == [[1.0, 0.5, 0.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_are_compared_in_fp32(dtype):
    generator = torch.Generator().manual_seed(0)
    frames = (torch.randn(1, 4, 1152, generator=generator) * 300).to(dtype)  # squares overflow fp16
    text = torch.randn(1, 1152, generator=generator).to(dtype)
    want = [oracle.cosine(frame, text[0].double().tolist()) for frame in frames[0].double().tolist()]
    torch.testing.assert_close(similarity(frames, text), torch.tensor([want]), rtol=1e-5, atol=1e-6)


# Similarities in eighths and segments of 1, 2, 4 or 8 frames: every mean is exact, so the threshold can be hit.
EIGHTHS = st.integers(-8, 8).map(lambda k: k / 8)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6), EIGHTHS, st.data())
def test_significant_segments_exceed_the_threshold_strictly(sizes, tau_t, data):
    ids = [segment for segment, size in enumerate(sizes) for _ in range(size)]
    values = data.draw(st.lists(EIGHTHS, min_size=len(ids), max_size=len(ids)))
    means = mean_per_segment(torch.tensor(values), torch.tensor(ids))
    assert (means > tau_t)[: len(sizes)].tolist() == oracle.significant(values, ids, tau_t)


def test_a_mean_at_the_threshold_is_not_significant():
    means = mean_per_segment(torch.tensor([0.25, 0.75, 0.5, 0.625]), torch.tensor([0, 0, 1, 2]))
    assert (means > 0.5).tolist() == [False, False, True, False]


def test_from_features_to_significant_segments():
    """Frames that look at the question in one of two segments."""
    question = [1.0, 0.0, 0.0]
    towards = [[math.cos(a), math.sin(a), 0.0] for a in (1.2, 1.25, 1.3)]  # cosines 0.36 .. 0.27
    away = [[0.0, 0.1, 1.0], [0.01, 0.0, 1.0]]  # cosines 0 and 0.01
    frames = towards + away
    ids = oracle.segments(frames, 0.95)
    assert ids == [0, 0, 0, 1, 1]
    similar = similarity(torch.tensor([frames]), torch.tensor([question]))
    means = mean_per_segment(similar[0], torch.tensor(ids))
    assert (means > 0.05)[:2].tolist() == [True, False]
    assert oracle.significant([oracle.cosine(f, question) for f in frames], ids, 0.05) == [True, False]
