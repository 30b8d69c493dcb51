import itertools
from fractions import Fraction

import oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adatp.methods import AdaTP, budget
from adatp.methods.budget import round_half_up


def quotas(ratios, frames, significant, c, method):
    return budget.quotas(ratios, frames, significant, c, alpha=method.alpha, gamma=method.gamma)


def quotas_of(ratio, frames, significant, c, **settings_):
    """The quotas of one cut."""
    got = quotas([ratio], torch.tensor(frames), torch.tensor(significant), c, AdaTP(**settings_))
    assert got.dtype == torch.int64
    assert got.shape == (1, len(frames))
    return got[0].tolist()


def expected(ratio, frames, significant, c, alpha=2.2, gamma=0.75):
    return oracle.quotas(ratio, frames, significant, c, alpha, gamma)


SIZES = [1, 7, 182, 196]
# Multiples of 1/64 are exact in binary, and so is every product and sum of them here: exact ties stay ties.
RATIO = st.integers(1, 64).map(lambda k: k / 64)


@st.composite
def exact_cases(draw):
    """Segments whose shares are binary fractions: the significant frames and the others are powers of two in number,
    or all frames, or none.
    """

    def split(total):
        parts = []
        while total:
            parts.append(draw(st.integers(1, total)))
            total -= parts[-1]
        return parts

    inside, outside = draw(st.sampled_from([0, 1, 2, 4, 8, 16])), draw(st.sampled_from([0, 1, 2, 4, 8, 16]))
    assume(inside + outside > 0)
    labelled = [(size, True) for size in split(inside)] + [(size, False) for size in split(outside)]
    labelled = draw(st.permutations(labelled))
    return {
        "ratio": draw(RATIO),
        "frames": [size for size, _ in labelled],
        "significant": [chosen for _, chosen in labelled],
        "c": draw(st.sampled_from(SIZES)),
        "alpha": draw(st.integers(64, 192).map(lambda k: k / 64)),
        "gamma": draw(RATIO),
    }


@settings(deadline=None, max_examples=400)
@given(exact_cases())
def test_equations_4_and_5_with_exact_ties(case):
    assert quotas_of(**case) == expected(**case)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(SIZES),
    st.floats(0.01, 1),
    st.floats(1, 4),
    st.floats(0.01, 1),
)
def test_equations_4_and_5_with_any_numbers(segments, c, ratio, alpha, gamma):
    frames, significant = [size for size, _ in segments], [chosen for _, chosen in segments]
    exact = oracle.exact_quotas(ratio, frames, significant, c, alpha, gamma)
    # Where two different segments tie, or the total lies at a half, to within fp64's rounding, either way is right.
    # Segments of the same kind and size have the same quota bit by bit, so their ties are decided.
    noise = Fraction(1, 10**9)
    rest = {kind: quota % 1 for kind, quota in zip(segments, exact, strict=True)}
    distinct = sorted(rest.values())
    assume(all(b - a > noise for a, b in itertools.pairwise(distinct)))
    assume(all(noise < value < 1 - noise for value in distinct))
    assume(abs(sum(exact) % 1 - Fraction(1, 2)) > noise)
    assert quotas_of(ratio, frames, significant, c, alpha=alpha, gamma=gamma) == oracle.largest_remainder(exact)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(SIZES),
    st.sampled_from([1.0, 1.5, 2.0]),
)
def test_the_papers_settings(segments, c, p):
    """Every cut of a 24-layer model, against the decimals of section 4.1."""
    config = AdaTP(p=p)
    frames, significant = [size for size, _ in segments], [chosen for _, chosen in segments]
    got = quotas(list(config.cuts(24).values()), torch.tensor(frames), torch.tensor(significant), c, config)
    decimals = oracle.schedule(24, Fraction(p), 2, 12, Fraction("0.40"), Fraction("0.12"))[2:14]
    for r, row in zip(decimals, got.tolist(), strict=True):
        exact = oracle.exact_quotas(r, frames, significant, c, Fraction("2.2"), Fraction("0.75"))
        assert all(abs(quota - value) < 1 for quota, value in zip(row, exact, strict=True) if value.denominator > 1)
        assert all(quota == value for quota, value in zip(row, exact, strict=True) if value.denominator == 1)
        # 0.40 and 0.12 have no binary fraction, so a total at a half is not one in fp64
        if sum(exact) % 1 != Fraction(1, 2):
            assert sum(row) == int(sum(exact) + Fraction(1, 2))


@settings(deadline=None, max_examples=200)
@given(exact_cases())
def test_quotas_add_up_to_the_rounded_total(case):
    inside = sum(size for size, chosen in zip(case["frames"], case["significant"], strict=True) if chosen)
    total = Fraction(case["ratio"]) * sum(case["frames"]) * case["c"]
    if inside == sum(case["frames"]):
        total *= min(Fraction(case["alpha"]), Fraction(case["gamma"]))
    assert sum(quotas_of(**case)) == int(total + Fraction(1, 2))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(SIZES),
    st.integers(1, 16).map(lambda k: k / 16),
)
def test_sharing_out_does_not_change_the_total(segments, c, r):
    """R n c is exact here, and so is a half of it, although 2.2 and the shares of equations 4 and 5 are not."""
    frames, significant = [size for size, _ in segments], [chosen for _, chosen in segments]
    assume(not all(significant))
    assert sum(quotas_of(r, frames, significant, c)) == int(Fraction(r) * sum(frames) * c + Fraction(1, 2))


@pytest.mark.parametrize(
    ("r", "frames", "c", "total"),
    [(0.5, [3, 14], 7, 60), (0.25, [3, 15], 7, 32), (0.75, [1, 14], 182, 2048), (0.25, [1, 34], 182, 1593)],
)
def test_a_total_at_a_half_is_rounded_up_with_significant_segments_too(r, frames, c, total):
    assert r * sum(frames) * c == total - 0.5
    assert sum(quotas_of(r, frames, [True, False], c)) == total


@settings(deadline=None, max_examples=100)
@given(exact_cases(), st.integers(1, 5), RATIO)
def test_cuts_and_slots_without_frames(case, empty, second):
    """Two cuts in one call, and more slots than there are segments."""
    frames = case["frames"] + [0] * empty
    # whatever is said of a slot without frames counts for nothing
    significant = case["significant"] + [True] * empty
    config = AdaTP(alpha=case["alpha"], gamma=case["gamma"])
    ratios = [case["ratio"], second]
    got = quotas(ratios, torch.tensor(frames), torch.tensor(significant), case["c"], config).tolist()
    for ratio, row in zip(ratios, got, strict=True):
        want = expected(ratio, case["frames"], case["significant"], case["c"], case["alpha"], case["gamma"])
        assert row == want + [0] * empty


def test_r1_limited_by_alpha():
    # 8 of 32 frames: 32 / 8 * 0.75 = 3 > 2.2. Significant 2.2 * 0.4 * 8 * 196 = 1379.84, the others share
    # 0.4 * 6272 - 1379.84 = 1128.96 as 16 : 8; the total 2508.8 is rounded to 2509.
    assert quotas_of(0.4, [16, 8, 8], [False, True, False], 196) == [753, 1380, 376]


def test_r1_limited_by_gamma():
    # 16 of 32 frames: 32 / 16 * 0.75 = 1.5 < 2.2. Significant 1.5 * 0.4 * 16 * 196 = 1881.6, the others 627.2
    assert quotas_of(0.4, [16, 16], [True, False], 196) == [1882, 627]


def test_alpha_and_gamma_meet():
    # 3 of 12 frames: 12 / 3 * 0.5 = 2 = alpha
    assert quotas_of(0.25, [3, 9], [True, False], 8, alpha=2.0, gamma=0.5) == [12, 12]


def test_no_significant_segment_keeps_r_everywhere():
    assert quotas_of(0.25, [4, 2, 2], [False] * 3, 8, gamma=0.5) == [8, 4, 4]


def test_all_segments_significant_keep_r1():
    # n / sum = 1, so r1 = gamma r: half of 0.25 * 8 * 8 = 16
    assert quotas_of(0.25, [4, 2, 2], [True] * 3, 8, gamma=0.5) == [4, 2, 2]


def test_one_segment():
    assert quotas_of(0.4, [32], [False], 196) == [2509]  # 2508.8
    assert quotas_of(0.4, [32], [True], 196) == [1882]  # 0.75 * 2508.8 = 1881.6


def test_all_single_frame_segments():
    frames = [1] * 9
    assert quotas_of(0.5, frames, [False] * 9, 3) == expected(0.5, frames, [False] * 9, 3) == [2] * 5 + [1] * 4
    significant = [i % 4 == 0 for i in range(9)]  # 3 of 9: min(2.2, 3 * 0.75) = 2.2, the others (9 - 6.6) / 6 = 0.4
    assert quotas_of(0.5, frames, significant, 10) == [11, 2, 2, 2, 11, 2, 2, 2, 11]


def test_gamma_one_leaves_the_others_nothing():
    assert quotas_of(0.25, [4, 4], [True, False], 8, gamma=1.0) == [16, 0]
    assert quotas_of(0.4, [7, 3, 11], [True, False, True], 196, gamma=1.0)[1] == 0
    # n / 3 and n / 7 are no binary fractions: r2 must come out as no less than 0 all the same
    for inside in range(1, 40):
        got = quotas_of(0.4, [inside, 5, 2], [True, False, False], 196, gamma=1.0, alpha=100.0)
        assert got == [int(Fraction(4, 10) * (inside + 7) * 196 + Fraction(1, 2)), 0, 0]


def test_quotas_may_exceed_the_segment():
    # p = 2: r = 0.8 and r1 = 2.2 * 0.8 = 1.76 of the segment's 8 tokens
    assert quotas_of(0.8, [1, 9], [True, False], 8, p=2.0) == expected(0.8, [1, 9], [True, False], 8) == [14, 50]


def test_odd_frame_counts():
    for frames in ([1, 2, 4], [3, 5, 7, 11], [33], [1, 31, 1]):
        for chosen in range(len(frames)):
            significant = [i == chosen for i in range(len(frames))]
            assert quotas_of(0.4, frames, significant, 182) == expected(0.4, frames, significant, 182)


def test_remainder_ties_go_to_the_earlier_segment():
    assert quotas_of(0.5, [1, 1, 1, 1], [False] * 4, 1) == [1, 1, 0, 0]
    assert quotas_of(0.5, [3, 1, 5, 1], [False] * 4, 1) == [2, 1, 2, 0]


def test_the_larger_remainder_is_served_before_the_earlier_segment():
    assert quotas_of(0.25, [1, 2, 3], [False] * 3, 1) == [0, 1, 1]  # 0.25, 0.5, 0.75


def test_a_total_at_a_half_is_rounded_up():
    assert quotas_of(0.5, [1], [False], 1) == [1]
    assert quotas_of(0.5, [1, 2, 2], [False] * 3, 1) == [1, 1, 1]  # 2.5, where half to even gives 2
    assert quotas_of(0.25, [1], [False], 1) == [0]


def test_debiasing_takes_from_the_others_what_it_gives():
    for p in (1.0, 1.5, 2.0):
        plain = quotas_of(0.25 * p, [8, 8, 16], [False] * 3, 196, p=p)
        boosted = quotas_of(0.25 * p, [8, 8, 16], [True, False, False], 196, p=p)
        assert sum(plain) == sum(boosted)
        assert boosted[0] > plain[0]
        assert boosted[2] < plain[2]


def test_no_host_read():
    """On the meta device there is no value that the host could read."""
    frames = torch.empty(5, dtype=torch.int64, device="meta")
    significant = torch.empty(5, dtype=torch.bool, device="meta")
    assert quotas([0.4, 0.3, 0.2], frames, significant, 196, AdaTP()).shape == (3, 5)


@pytest.mark.parametrize(
    ("value", "nearest"), [(0.5, 1), (1.5, 2), (2.5, 3), (2.4999, 2), (0.0, 0), (7.0, 7), (2508.8, 2509)]
)
def test_halves_are_rounded_up(value, nearest):
    assert round_half_up(torch.tensor(value, dtype=torch.float64)).item() == nearest


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(2, 60), st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.01, 1))
def test_the_schedule_of_section_4_1(data, layers, start_ratio, end_share, p_share):
    first = data.draw(st.integers(1, layers - 1))
    last = data.draw(st.integers(first, layers - 1))
    end_ratio, p = start_ratio * end_share, p_share / start_ratio
    assume(end_ratio <= start_ratio and p <= 1 / start_ratio)
    config = AdaTP(p=p, first=first, last=last, start_ratio=start_ratio, end_ratio=end_ratio)
    cuts = config.cuts(layers)
    want = oracle.schedule(layers, p, first, last, start_ratio, end_ratio)
    assert list(cuts) == [layer for layer in range(first, layers) if layer <= last + 1]
    ratio = 1.0  # the input of a layer without a cut is the last layer's
    for layer in range(layers):
        ratio = cuts.get(layer, ratio)
        assert ratio == pytest.approx(float(want[layer]), rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(("layers", "last"), [(24, 12), (28, 16)])
def test_the_papers_schedule(layers, last, p):
    cuts = AdaTP(p=p).cuts(layers)
    assert list(cuts) == list(range(2, last + 2))
    assert cuts[2] == pytest.approx(0.40 * p, rel=1e-14)
    assert cuts[last + 1] == pytest.approx(0.12 * p, rel=1e-14)
    ratios = list(cuts.values())
    steps = [a - b for a, b in itertools.pairwise(ratios)]
    assert steps == pytest.approx([0.28 * p / (last - 1)] * (last - 1), rel=1e-12)  # a fixed number at each cut


def test_one_gradual_layer():
    assert AdaTP(first=3, last=3).cuts(8) == {3: pytest.approx(0.40), 4: pytest.approx(0.12)}


def test_a_schedule_up_to_the_models_last_layer_has_no_cut_after_it():
    assert list(AdaTP(last=7).cuts(8)) == [2, 3, 4, 5, 6, 7]


def test_a_flat_schedule():
    cuts = AdaTP(start_ratio=0.25, end_ratio=0.25, last=6).cuts(24)
    assert set(cuts.values()) == {0.25}


def test_a_schedule_needs_enough_layers():
    with pytest.raises(ValueError, match="last"):
        AdaTP().cuts(14)
