import itertools
import math

import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adatp.methods.segments import mean_per_segment, partition, total_per_segment

# Vectors of four signs have norm 2 and cosines in quarters of 4: exact in every precision, so thresholds can be hit.
SIGNS = st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)
EXACT = [-1.0, -0.5, 0.0, 0.5, 1.0]


@st.composite
def partitions(draw):
    """`[n]` consecutive segment ids from 0."""
    steps = draw(st.lists(st.booleans(), max_size=11))
    return list(itertools.accumulate(steps, initial=0))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(SIGNS, min_size=1, max_size=9),
    st.sampled_from(EXACT),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_segments_with_cosines_exactly_at_the_threshold(frames, tau_s, dtype):
    got = partition(torch.tensor(frames, dtype=dtype), tau_s)
    assert got.dtype == torch.int64
    assert got.tolist() == oracle.segments(frames, tau_s)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99]))
def test_segments_of_random_frames(seed, n, tau_s):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, generator=generator)
    noise = torch.rand(n, 1, generator=generator) * torch.randn(n, 6, generator=generator)
    frames = (base + noise).tolist()
    # a cosine within fp32's rounding of the threshold may fall on either side of it
    cosines = [oracle.cosine(u, v) for u, v in itertools.pairwise(frames)]
    assume(all(abs(cosine - tau_s) > 1e-5 for cosine in cosines))
    assert partition(torch.tensor(frames), tau_s).tolist() == oracle.segments(frames, tau_s)


def test_at_the_threshold_frames_share_a_segment():
    frames = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1]])  # cosine 0.5
    assert partition(frames, 0.5).tolist() == [0, 0]
    assert partition(frames, math.nextafter(0.5, 1) + 1e-6).tolist() == [0, 1]


def test_neighbours_decide_not_the_first_frame():
    """A slow turn stays one segment although its ends are far apart."""
    angles = [0.2 * i for i in range(9)]  # cos 0.2 = 0.98
    frames = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    assert partition(frames, 0.95).tolist() == [0] * 9


def test_a_frame_like_an_earlier_one_does_not_rejoin_its_segment():
    a, b = [1.0, 0.0], [0.0, 1.0]
    assert partition(torch.tensor([a, a, b, a, a]), 0.95).tolist() == [0, 0, 1, 2, 2]


def test_length_of_the_features_does_not_matter():
    frames = torch.tensor([[1.0, 2.0], [100.0, 200.0], [0.001, 0.002]])
    assert partition(frames, 0.95).tolist() == [0, 0, 0]


def test_one_frame():
    assert partition(torch.randn(1, 8), 0.95).tolist() == [0]


def test_all_frames_alike_and_none_alike():
    assert partition(torch.ones(33, 4), 0.95).tolist() == [0] * 33
    assert partition(torch.eye(33), 0.95).tolist() == list(range(33))
    assert partition(torch.eye(4), 0.5).tolist() == [0, 1, 2, 3]
    assert partition(torch.ones(4, 4), 0.5).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("tau_s", [-1.0, 0.95])
def test_a_nan_similarity_starts_a_segment(tau_s):
    frames = torch.ones(4, 3)
    frames[1] = float("nan")
    assert partition(frames, tau_s).tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_are_compared_in_fp32(dtype):
    # 512 products of 300 * 300 overflow fp16; in bf16 sums of that many terms lose the small angle
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(512, generator=generator) * 300
    frames = torch.stack([base, base + torch.randn(512, generator=generator) * 30]).to(dtype)  # cosine 0.995
    exact = oracle.cosine(*frames.double().tolist())
    assert partition(frames, exact - 1e-5).tolist() == [0, 0]
    assert partition(frames, exact + 1e-5).tolist() == [0, 1]


@settings(deadline=None, max_examples=50)
@given(partitions())
def test_totals_per_segment(ids):
    n = len(ids)
    values = [3 + i % 5 for i in range(n)]
    got = total_per_segment(torch.tensor(values), torch.tensor(ids))
    assert got.tolist() == [sum(v for v, own in zip(values, ids, strict=True) if own == s) for s in range(n)]
    assert got.sum() == sum(values)


@settings(deadline=None, max_examples=100)
@given(partitions(), st.data())
def test_means_per_segment(ids, data):
    n = len(ids)
    values = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n))
    got = mean_per_segment(torch.tensor(values), torch.tensor(ids))
    want = oracle.segment_means(values, ids)
    want += [0.0] * (n - len(want))
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_a_nan_similarity_stays_in_its_segment():
    got = mean_per_segment(torch.tensor([0.5, float("nan"), 0.25]), torch.tensor([0, 0, 1]))
    assert math.isnan(got[0])
    assert got[1:].tolist() == [0.25, 0.0]


def test_no_host_read():
    """On the meta device there is no value that the host could read."""
    ids = partition(torch.empty(9, 16, device="meta"), 0.95)
    assert total_per_segment(ids, ids).shape == mean_per_segment(torch.empty(9, device="meta"), ids).shape == (9,)


def test_equal_frames_share_a_segment_even_at_a_threshold_of_1():
    for feature in torch.randn(50, 1152, generator=torch.Generator().manual_seed(0)):
        features = feature.expand(3, -1)
        assert (partition(features, 1.0) == 0).all()
        assert (partition(features.half(), 1.0) == 0).all()
