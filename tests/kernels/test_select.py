import math
from contextlib import nullcontext
from unittest import mock

import numpy as np
import oracle
import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from operators import cases

import adatp_kernels.select_triton as triton_module
from adatp_kernels import select_kernels
from adatp_kernels.dispatch import interpreted
from adatp_kernels.select import FIXED, PADDING, select

pytestmark = pytest.mark.interpreter

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def chosen(operators, score, segment, position, quota, *, frames=False, **options):
    """What `select` keeps, where every token is given its segment, `FIXED` or `PADDING`; and it counts what it keeps.

    `frames`: segments consist of several stretches of tokens.
    """
    begin = torch.tensor([begins(row, quota.shape[1]) for row in segment.tolist()])
    if frames:
        begin, options["segment"] = stretches(begin, segment.shape[1])
    position = torch.where(segment < 0, segment, position)
    keep, kept = operators.select(score, position, begin, quota, **options)
    assert keep.shape == segment.shape
    assert keep.dtype == torch.bool
    assert kept.dtype == torch.int64
    assert kept.tolist() == [
        [int(row[own == s].sum()) for s in range(quota.shape[1])] for row, own in zip(keep, segment, strict=True)
    ]
    return keep


def begins(segment, segments):
    """Of one sample: the first token of each segment or of a later one."""
    return [next((i for i, own in enumerate(segment) if own >= s), len(segment)) for s in range(segments)]


def stretches(begin, length):
    """Segments `[B, S]` in stretches of three tokens, some of them empty; empty segments have one or none."""
    rows = []
    for row in begin.tolist():
        row = [*row, length]
        cut = [(at, s) for s in range(len(row) - 1) for at in range(row[s], max(row[s + 1], row[s] + s % 2), 3)]
        rows.append(sorted(cut + cut[1::4]))
    longest = max(1, *map(len, rows))
    rows = [row + [(length, begin.shape[1] - 1)] * (longest - len(row)) for row in rows]
    return torch.tensor(rows).unbind(2)


def keep_of(operators, score, segment, position, quota, *, positions=8, dtype=torch.float32, **options):
    """`chosen` on the lists of one sample."""
    score = torch.tensor([score], dtype=dtype)
    integers = (torch.tensor([ids], dtype=torch.int64) for ids in (segment, position, quota))
    return chosen(operators, score, *integers, positions=positions, **options)[0].tolist()


def indices(keep):
    return [i for i, stays in enumerate(keep) if stays]


WHOLE = {"SMALL": 8, "LARGE": 64}
PIECES = {"SMALL": 4, "LARGE": 16, "CHUNK": 16, "SAMPLE": 256}
MEDIUM = {"SMALL": 64, "LARGE": 256, "CHUNK": 128, "SAMPLE": 1024}
ROUGH = {**PIECES, "SAMPLE": 2}  # a sample that is mostly wrong


def sizes(of):
    """Limits so low that every loop of the kernels goes round, in the interpreter; a GPU compiles for each."""
    return mock.patch.multiple(triton_module, **of) if of and interpreted() else nullcontext()


any_sizes = st.sampled_from([{}, WHOLE, PIECES, ROUGH])


@st.composite
def batches(draw, longest=50):
    """Segments in order, fixed and padding tokens anywhere among them; few distinct scores, so that ties abound."""
    batch, length = draw(st.integers(1, 2)), draw(st.integers(0, longest))
    segments, positions = draw(st.integers(1, 4 - batch)), draw(st.integers(1, 6))
    start = draw(st.integers(0, length))
    stop = draw(st.integers(start, length))
    few = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, NAN, INF, -INF, 1e-45, -1e-40, 6e-8, 3e38])
    value = st.one_of(few, st.floats(0, 1, width=16))

    def table(strategy, width):
        row = st.lists(strategy, min_size=width, max_size=width)
        return draw(st.lists(row, min_size=batch, max_size=batch))

    return {
        "score": table(value, stop - start),
        "segment": [in_order(row, start, stop) for row in table(st.integers(-2, segments - 1), length)],
        "position": table(st.integers(0, positions - 1), length),
        "quota": table(st.integers(0, length + 2), segments),
        "positions": positions,
        "start": start,
    }


def in_order(ids, start, stop):
    """Ids between `start` and `stop` that never fall but for -1 and -2, and nothing else outside."""
    rising = iter(sorted(i for i in ids[start:stop] if i >= 0))
    return [i if i < 0 else next(rising) if start <= at < stop else -1 - i % 2 for at, i in enumerate(ids)]


def run(operators, case, dtype=torch.float32, **options):
    batch, length = len(case["segment"]), len(case["segment"][0])
    return chosen(
        operators,
        torch.tensor(case["score"], dtype=dtype).view(batch, -1 if batch * len(case["score"][0]) else 0),
        torch.tensor(case["segment"], dtype=torch.int64).view(batch, length),
        torch.tensor(case["position"], dtype=torch.int64).view(batch, length),
        torch.tensor(case["quota"]),
        positions=case["positions"],
        start=case.get("start", 0),
        **options,
    )


def expected(case, deduplicate=True):
    """By the oracle, and by a stable sort as well: neither shares a line with the other or with the package."""
    start = case.get("start", 0)
    samples = zip(case["score"], case["segment"], case["position"], case["quota"], strict=True)
    result = []
    for score, segment, position, quota in samples:
        wide = [NAN] * start + score + [NAN] * (len(segment) - start - len(score))
        result.append(oracle.select(wide, segment, position, quota, deduplicate=deduplicate))
        assert by_argsort(wide, segment, position, quota, deduplicate).tolist() == result[-1]
    return result


def by_argsort(score, segment, position, quota, deduplicate=True):
    """Which tokens of one sample stay, by a stable argsort of each segment."""
    score, segment, position = np.asarray(score, np.float32), np.asarray(segment, int), np.asarray(position, int)
    keep = segment == FIXED
    for s, k in enumerate(quota):
        tokens = np.flatnonzero(segment == s)
        order = tokens[np.argsort(-score[tokens], kind="stable")][: int(k)]
        if deduplicate:
            order = order[np.unique(position[order], return_index=True)[1]]
        keep[order] = True
    return keep


@cases(300, 60)
@given(batches(), st.booleans(), st.sampled_from(DTYPES), st.booleans(), any_sizes)
def test_same_tokens_as_top_k_and_algorithm_1(operators, case, deduplicate, dtype, frames, of):
    # the measure gets the rounded scores
    rounded = torch.tensor(case["score"], dtype=dtype)
    if interpreted() and dtype == torch.bfloat16:  # whose subnormal numbers the interpreter takes for 0
        rounded = torch.where(rounded.abs() < torch.finfo(dtype).tiny, torch.zeros_like(rounded), rounded)
    case["score"] = rounded.tolist()
    with sizes(of):
        kept = run(operators, case, dtype, frames=frames, deduplicate=deduplicate)
    assert kept.tolist() == expected(case, deduplicate)


@cases(200, 10)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([1, 2, 9]), st.booleans(), any_sizes)
def test_any_bits_of_scores(operators, seed, segments, levels, deduplicate, of):
    """Every pattern of 32 bits in equal measure: all exponents, subnormals, NaN with payloads, of both signs."""
    random = np.random.default_rng(seed)
    length = int(random.integers(1, 90))
    pool = random.integers(0, 2**32, length // levels + 1, dtype=np.uint32).view(np.float32)
    score = random.choice(pool, length)
    segment = np.where(
        random.random(length) < 0.1, random.integers(-2, 0, length), np.sort(random.integers(0, segments, length))
    )
    position, quota = random.integers(0, 30, length), random.integers(0, length // segments + 2, segments)
    tensors = [torch.from_numpy(a)[None] for a in (score, segment, position, quota)]
    with sizes(of):
        kept = chosen(operators, *tensors, positions=30, deduplicate=deduplicate)
    assert kept[0].tolist() == by_argsort(score, segment, position, quota, deduplicate).tolist()


@cases(100, 10)
@given(batches())
def test_deduplication_only_drops_and_never_keeps_a_position_twice(operators, case):
    kept, selected = run(operators, case).tolist(), run(operators, case, deduplicate=False).tolist()
    for b, row in enumerate(kept):
        assert all(selected[b][i] for i in indices(row))
        prunable = [i for i in indices(row) if case["segment"][b][i] >= 0]
        groups = [(case["segment"][b][i], case["position"][b][i]) for i in prunable]
        assert len(groups) == len(set(groups))


@cases(100, 10)
@given(batches())
def test_without_deduplication_every_segment_keeps_its_quota_or_all_it_has(operators, case):
    for b, row in enumerate(run(operators, case, deduplicate=False).tolist()):
        for s, quota in enumerate(case["quota"][b]):
            tokens = [i for i, own in enumerate(case["segment"][b]) if own == s]
            assert sum(row[i] for i in tokens) == min(quota, len(tokens))


@cases(150, 10)
@given(batches(), st.data())
def test_after_a_deduplicated_cut_there_is_nothing_left_to_deduplicate(operators, case, data):
    kept = run(operators, case)
    # survivors of ragged samples: what was dropped becomes padding
    survivors = {**case, "segment": torch.where(kept, torch.tensor(case["segment"]).view(kept.shape), PADDING).tolist()}
    length = len(case["score"][0])
    fresh = st.lists(st.floats(0, 1, width=16), min_size=length, max_size=length)
    survivors["score"] = [data.draw(fresh) for _ in case["score"]]
    assert torch.equal(run(operators, survivors), run(operators, survivors, deduplicate=False))


@cases(50, 10)
@given(batches())
def test_samples_do_not_see_each_other(operators, case):
    together = run(operators, case).tolist()
    for b in range(len(case["score"])):
        alone = {name: value if name in ("positions", "start") else [value[b]] for name, value in case.items()}
        assert run(operators, alone).tolist() == [together[b]]


def video(c, frames, quota, seed=0, levels=50):
    """A prompt of 3 tokens, `frames` (their segments) of c tokens, 5 more; heavy-tailed scores with a bias."""
    generator = torch.Generator().manual_seed(seed)
    count = c * len(frames)
    bias = (torch.arange(c) % max(1, int(c**0.5)) == 0).float().repeat(len(frames))
    score = (torch.randn(count, generator=generator) * 3 + bias * 4).exp()
    score = score / score.sum()
    if levels:  # with many ties
        score = (score.log() * levels / 50).round().mul(50 / levels).exp()
    segment = torch.tensor([FIXED] * 3 + [s for s in frames for _ in range(c)] + [FIXED] * 5)
    position = torch.tensor([0] * 3 + list(range(c)) * len(frames) + [0] * 5)
    return score[None], segment[None], position[None], torch.tensor([quota])


def assert_as_by_argsort(operators, score, segment, position, quota, start=0, deduplicate=True, **options):
    kept = chosen(operators, score, segment, position, quota, start=start, deduplicate=deduplicate, **options)
    for b, row in enumerate(kept):
        wide = torch.full(segment.shape[1:], NAN)
        wide[start : start + score.shape[1]] = score[b]
        want = by_argsort(wide, segment[b], position[b], quota[b], deduplicate)
        assert torch.equal(row, torch.from_numpy(want))
    return kept


@pytest.mark.parametrize("c", [1, 7, 182, 196, 729])
@pytest.mark.parametrize(("deduplicate", "frames"), [(True, True), (False, False)])
def test_a_video_of_usual_frame_sizes(operators, c, deduplicate, frames):
    inputs = video(c, [0, 0, 0, 1, 2, 2, 2], [int(1.3 * c), c // 2, 2 * c], seed=c)
    assert_as_by_argsort(operators, *inputs, start=3, positions=c, deduplicate=deduplicate, frames=frames)


def test_later_cuts_of_a_video_select_among_survivors(operators):
    """Every cut sees the survivors of the one before, ragged and behind left padding, with scores of its own."""
    c, frames, cut = 49, [0, 0, 0, 1, 1, 3, 3, 3], [[70, 40, 9, 60], [90, 90, 0, 100]]
    score, segment, position, _ = video(c, frames, [])
    segment, position = (t.expand(2, -1) for t in (segment, position))
    start, generator = 3, torch.Generator().manual_seed(4)
    for keep_share in (1.0, 0.6, 0.3):
        quota = (torch.tensor(cut) * keep_share).long()
        length = segment.shape[1]
        score = torch.randn(2, length - 5 - start, generator=generator).mul(2).exp()
        kept = assert_as_by_argsort(operators, score, segment, position, quota, start, positions=c)
        counts = kept.sum(1).tolist()
        segment, position = operators.compact(kept, counts, [segment, position])
        start = min(max(counts) - n for n in counts) + 3


LONG = triton_module.LARGE


@pytest.mark.parametrize("length", [triton_module.SMALL, triton_module.SMALL + 1, LONG, LONG + 1, 2 * LONG])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_segments_as_long_as_the_kernel_s_limits(operators, length, deduplicate):
    """With ties on both sides of each limit, and more positions than the kernel looks at in one go."""
    inputs = video(length, [0], [length // 3], levels=3)
    assert_as_by_argsort(operators, *inputs, start=3, positions=length, deduplicate=deduplicate)


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize(("deduplicate", "frames"), [(True, True), (False, False)])
def test_long_segments_beside_short_ones(operators, levels, deduplicate, frames):
    """Two long ones that meet within a chunk, a short one, and a third of whole chunks; other samples differ."""
    with sizes(MEDIUM):
        long = triton_module.LARGE
        rows = [[long + long // 10, long + 9, long // 12, 2 * long], [40, long + 1, long, 2 * long - 40]]
        segment = torch.full((2, sum(rows[0])), PADDING)
        for b, row in enumerate(rows):
            segment[b, : sum(row)] = torch.arange(4).repeat_interleave(torch.tensor(row))
        segment[:, 5::97] = FIXED
        generator = torch.Generator().manual_seed(levels)
        score = torch.randn(segment.shape, generator=generator).mul(3).exp()
        score = score.log().mul(levels).round() if levels else score
        score[torch.rand(segment.shape, generator=generator) < 0.01] = NAN
        position = torch.arange(segment.shape[1]).remainder(300).repeat(2, 1)
        quota = torch.tensor([[long // 3, long, 20, 1], [30, long // 2, long, 3]])
        assert_as_by_argsort(
            operators, score, segment, position, quota, positions=300, deduplicate=deduplicate, frames=frames
        )


@pytest.mark.parametrize("quota", [0, 4096, 4097, 12_287, 12_288])
@pytest.mark.parametrize("value", [0.25, NAN])
def test_equal_scores_of_a_long_segment_keep_the_first_tokens(operators, quota, value):
    length = 12_288
    keep = keep_of(operators, [value] * length, [0] * length, list(range(length)), [quota], positions=length)
    assert indices(keep) == list(range(min(quota, length)))


@pytest.mark.parametrize("sorting", [False, True])
def test_a_sample_that_knows_nothing_of_the_threshold(operators, sorting):
    """All that is taken stands in a few places, which the sample may miss."""
    with sizes(MEDIUM):
        length = 4 * triton_module.LARGE
        score = torch.arange(length).float().mul(1e-9)
        score[7 :: length // 10][:10] += torch.arange(10).float() + 1
        score = score.sort(descending=True).values if sorting else score
        segment, position = torch.zeros(1, length, dtype=torch.int64), torch.arange(length)[None]
        for quota in (3, 10, 11, length - 1):
            inputs = score[None], segment, position, torch.tensor([[quota]])
            assert_as_by_argsort(operators, *inputs, positions=length, deduplicate=False)


@pytest.mark.skipif(not interpreted(), reason="a compiled kernel has its functions within it")
@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0xFFFFFFFF), (0, 1), (0, 0x80000000), (0xFFFFFFFE, 0xFFFFFFFF), (0xBF000000, 0xFFFFFFFF), (7, 3)],
)
def test_whatever_the_sample_says_the_same_tokens_stay(operators, monkeypatch, low, high):
    def bracket(*_):
        return tl.full((), low, tl.uint32), tl.full((), high, tl.uint32)

    monkeypatch.setattr(select_kernels, "_bracket", bracket)
    score, segment, position, _ = video(12, [0, 0, 0, 1], [])
    with sizes(PIECES):
        for deduplicate in (True, False):
            for quota in ([15, 2], [37, 0]):
                inputs = score, segment, position, torch.tensor([quota])
                assert_as_by_argsort(operators, *inputs, start=3, positions=12, deduplicate=deduplicate)


@pytest.mark.parametrize(("columns", "launches"), [(LONG, 1), (LONG + 1, 2)])
def test_one_launch_and_a_second_where_a_segment_may_be_long(kernels, monkeypatch, columns, launches):
    seen = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            seen.append(self.kernel)
            return self.kernel[grid]

    for name in ("select_kernel", "long_segment_kernel"):
        monkeypatch.setattr(triton_module, name, Counted(getattr(triton_module, name)))
    segment = torch.arange(columns + 9)[None] // 3000
    segment[:, columns:] = FIXED
    position, quota = torch.arange(columns + 9)[None] % 4, torch.tensor([[3000, 3, 0, 9]])
    score = torch.linspace(1, 0, columns)[None]
    assert_as_by_argsort(kernels, score, segment, position, quota, positions=4, deduplicate=False)
    assert len(seen) == launches


@pytest.mark.parametrize("quota", [0, 1, 2047, 2048, 2049, 4999, 5000, 5001])
def test_constant_scores_keep_the_first_tokens_even_in_long_inputs(operators, quota):
    length = 5000  # long enough for an unstable sort to show
    keep = keep_of(operators, [0.25] * length, [0] * length, list(range(length)), [quota], positions=length)
    assert indices(keep) == list(range(min(quota, length)))


@pytest.mark.parametrize("quota", [1, 3000])
def test_one_position_shared_by_all_tokens_keeps_the_best(operators, quota):
    score = [0.25] * 5000
    score[4097] = score[4098] = 0.5
    assert indices(keep_of(operators, score, [0] * 5000, [3] * 5000, [quota])) == [4097]


@pytest.mark.parametrize("frames", [True, False])
def test_many_segments_most_of_them_empty(operators, frames):
    ids = [0] * 5 + [7] * 3 + [FIXED, 7, 8, PADDING] + [20] * 9 + [38] * 2
    score = torch.rand(1, len(ids), generator=torch.Generator().manual_seed(1))
    position = torch.arange(len(ids))[None] % 4
    quota = torch.tensor([[i % 5 for i in range(40)]])
    assert_as_by_argsort(operators, score, torch.tensor([ids]), position, quota, positions=4, frames=frames)


def test_leading_and_trailing_tokens_without_segment_in_every_sample(operators):
    """Also where the first and the last segment are empty, and where a sample has none at all."""
    segment = [[FIXED, PADDING, 1, 1, FIXED, PADDING, FIXED], [0, FIXED, 2, PADDING, FIXED, FIXED, PADDING],
               [PADDING, FIXED, FIXED, PADDING, FIXED, PADDING, FIXED]]  # fmt: skip
    score, position = torch.zeros(3, 7), torch.zeros(3, 7, dtype=torch.int64)
    quota = torch.ones(3, 3, dtype=torch.int64)
    kept = chosen(operators, score, torch.tensor(segment), position, quota, positions=1)
    assert [indices(row) for row in kept.tolist()] == [[0, 2, 4, 6], [0, 1, 2, 4, 5], [1, 2, 4, 6]]


def test_scores_of_no_token(operators):
    segment = torch.tensor([[FIXED, PADDING, FIXED]])
    for start in (0, 2, 3):
        kept = chosen(operators, torch.empty(1, 0), segment, segment, torch.tensor([[4, 4]]), positions=2, start=start)
        assert kept.tolist() == [[True, False, True]]


def test_scores_that_start_later_belong_to_later_tokens(operators):
    segment, position = [FIXED, FIXED, 0, 0, 0, FIXED], [0, 1, 2, 3, 4, 5]
    keep = keep_of(operators, [0.1, 0.9, 0.5], segment, position, [1], start=2)
    assert indices(keep) == [0, 1, 3, 5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_earlier_token(operators, dtype):
    assert indices(keep_of(operators, [0.5, 1.0, 1.0, 1.0], [0] * 4, [0, 1, 2, 3], [2], dtype=dtype)) == [1, 2]


def test_ties_of_one_position_keep_the_earlier_token(operators):
    assert indices(keep_of(operators, [0.5, 0.5, 0.5], [0] * 3, [4, 4, 4], [3])) == [0]


def test_constant_scores_with_fixed_and_padding_tokens_among_the_segments(operators):
    keep = keep_of(
        operators, [0.0] * 9, [0, FIXED, 0, PADDING, 1, 1, FIXED, 2, 2], [0, 0, 1, 0, 0, 1, 1, 0, 1], [1, 2, 0]
    )
    assert indices(keep) == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_ranks_after_minus_infinity(operators, dtype):
    score = [NAN, -INF, NAN, -5.0]
    for quota, stays in [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])]:
        assert indices(keep_of(operators, score, [0] * 4, [0, 1, 2, 3], [quota], dtype=dtype)) == stays


def test_nan_of_either_sign_ranks_last(operators):
    score = torch.tensor([NAN, NAN, -INF, 0.5]).copysign(torch.tensor([-1.0, 1.0, -1.0, 1.0]))[None]
    segment, position = torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)[None]
    for quota, stays in [(1, [3]), (2, [2, 3]), (3, [0, 2, 3])]:
        keep = chosen(operators, score, segment, position, torch.tensor([[quota]]), positions=4)
        assert indices(keep[0].tolist()) == stays


def test_nan_of_both_signs_tie(operators):
    score = torch.tensor([[NAN, NAN, NAN]]).copysign(torch.tensor([1.0, -1.0, 1.0]))
    keep = chosen(
        operators, score, torch.zeros(1, 3).long(), torch.tensor([[0, 0, 1]]), torch.tensor([[2]]), positions=2
    )
    assert indices(keep[0].tolist()) == [0]


@pytest.mark.parametrize("sign", [1, -1])
def test_subnormals_are_no_zeros(operators, sign):
    score = [0.0, sign * 1e-45, sign * 1e-39, sign * 1e-45]
    stays = [[], [2], [1, 2], [1, 2, 3]] if sign > 0 else [[], [0], [0, 1], [0, 1, 3]]
    for quota, kept in enumerate(stays):
        assert indices(keep_of(operators, score, [0] * 4, [0, 1, 2, 3], [quota])) == kept


def test_scores_a_bit_apart_in_each_byte(operators):
    bits = [0x3F800000 ^ (1 << i) for i in range(30)] + [0x3F800000]
    score = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    segment, position = torch.zeros(31, dtype=torch.int64), torch.arange(31)
    for quota in (1, 9, 17, 30):
        inputs = (t[None] for t in (torch.cat([score, -score]), segment.repeat(2), position.repeat(2)))
        assert_as_by_argsort(operators, *inputs, torch.tensor([[quota + 31]]), positions=31, deduplicate=False)


def test_nan_loses_its_position_to_a_number(operators):
    assert indices(keep_of(operators, [NAN, -INF], [0, 0], [3, 3], [2])) == [1]


def test_all_nan_keeps_the_first_tokens(operators):
    assert indices(keep_of(operators, [NAN] * 4, [0] * 4, [0, 1, 2, 3], [2])) == [0, 1]


def test_infinities_tie_among_themselves(operators):
    assert indices(keep_of(operators, [1.0, INF, INF, INF], [0] * 4, [0, 1, 2, 3], [2])) == [1, 2]


@pytest.mark.parametrize("score", [[0.0, -0.0], [-0.0, 0.0]])
def test_minus_zero_ties_with_zero(operators, score):
    assert indices(keep_of(operators, score, [0, 0], [0, 1], [1])) == [0]
    assert indices(keep_of(operators, score, [0, 0], [1, 1], [2])) == [0]


def test_deduplication_comes_after_the_top_k_and_does_not_refill(operators):
    # the two best share position 0; the third best is not taken in place of the dropped one
    assert indices(keep_of(operators, [0.9, 0.8, 0.7], [0] * 3, [0, 0, 1], [2])) == [0]


def test_the_same_position_stays_once_in_every_segment(operators):
    assert indices(keep_of(operators, [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [5, 5, 5, 5], [2, 2])) == [1, 3]


def test_deduplication_off_keeps_a_position_twice(operators):
    assert indices(keep_of(operators, [0.9, 0.8, 0.7], [0] * 3, [0, 0, 1], [2], deduplicate=False)) == [0, 1]


def test_deduplication_is_the_default(operators):
    assert indices(keep_of(operators, [0.9, 0.8], [0, 0], [0, 0], [2])) == [0]


def test_fixed_tokens_stay_and_padding_goes_whatever_score_they_have(operators):
    score = [-INF, INF, NAN, NAN, 0.5]
    segment = [FIXED, PADDING, FIXED, PADDING, 0]
    assert indices(keep_of(operators, score, segment, [0] * 5, [1])) == [0, 2, 4]
    assert indices(keep_of(operators, score, segment, [0] * 5, [0])) == [0, 2]


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("of", [{}, PIECES], ids=["whole", "pieces"])
def test_positions_out_of_range_are_as_padding(operators, deduplicate, of):
    position = torch.tensor([[0, 8, 1, -3, 2, 2**32, 3, -(2**63), 4, 2**63 - 1, 5, FIXED, 6, 2**31, 7, 2**32 - 1]])
    inputs = torch.ones(position.shape), position, torch.zeros(1, 1, dtype=torch.int64)
    with sizes(of):
        keep, kept = operators.select(*inputs, torch.tensor([[5]]), positions=8, deduplicate=deduplicate)
    assert indices(keep[0].tolist()) == [0, 2, 4, 6, 8, 11]
    assert kept.tolist() == [[5]]


@pytest.mark.parametrize("quota", [-1, -(2**63), 2**31, 2**63 - 1])
@pytest.mark.parametrize("of", [{}, PIECES], ids=["whole", "pieces"])
def test_quotas_beyond_all_counts(operators, quota, of):
    with sizes(of):
        keep = keep_of(operators, [0.5] * 40, [0] * 40, list(range(40)), [quota], positions=40)
    assert sum(keep) == (40 if quota > 0 else 0)


@pytest.mark.parametrize("of", [{}, PIECES], ids=["whole", "pieces"])
def test_begins_out_of_range_or_order_write_nowhere_else(kernels, monkeypatch, of):
    """All that is allocated lies between guards."""
    plain, memories = torch.empty, []

    def guarded(*shape, **options):
        size, room = math.prod(shape), 4096
        memory = plain(size + 2 * room, **options).fill_(1)
        memories.append((memory[:room], memory[room + size :]))
        return memory[room : room + size].view(shape)

    position, score = torch.arange(60).repeat(2, 1) % 9, torch.rand(2, 60)
    begin = torch.tensor([[40, -7, 2**40, 3], [-(2**62), 61, 59, 2**63 - 1]])
    quota, frames = torch.full((2, 4), 3), torch.tensor([[0, 3, 1, 2], [3, 0, 0, 9]])
    for segment in (None, frames):
        for deduplicate in (True, False):
            tensors = kernels.move([score, position, begin, quota, segment])
            with sizes(of):
                monkeypatch.setattr(torch, "empty", guarded)
                select(*tensors[:4], segment=tensors[4], positions=9, deduplicate=deduplicate, impl="triton")
                monkeypatch.undo()
    assert len(memories) >= 12
    for before, after in memories:
        assert (before == 1).all()
        assert (after == 1).all()


def test_fixed_and_padding_tokens_take_no_quota_and_no_position(operators):
    keep = keep_of(operators, [0.9, 0.9, 0.1, 0.2], [FIXED, PADDING, 0, 0], [0, 0, 0, 1], [2])
    assert indices(keep) == [0, 2, 3]


def test_quota_zero_drops_the_whole_segment(operators):
    assert indices(keep_of(operators, [0.9, 0.8, 0.1], [0, 0, 1], [0, 1, 0], [0, 1])) == [2]


def test_quota_above_the_segment_takes_all_and_hands_nothing_on(operators):
    assert indices(keep_of(operators, [0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], [0, 1, 0, 1], [100, 1])) == [0, 1, 2]


def test_empty_segments_between_others(operators):
    assert indices(keep_of(operators, [0.2, 0.3, 0.1], [1, 3, 3], [0, 0, 1], [5, 1, 5, 1])) == [0, 1]


def test_all_single_frame_segments(operators):
    segment = [s for s in range(4) for _ in range(3)]
    score = [0.1, 0.3, 0.2] * 4
    assert indices(keep_of(operators, score, segment, [0, 1, 2] * 4, [1, 2, 3, 0])) == [1, 4, 5, 6, 7, 8]


def test_one_segment_one_position(operators):
    assert indices(keep_of(operators, [0.1, 0.9, 0.5], [0] * 3, [0] * 3, [3], positions=1)) == [1]


def test_batches_with_different_left_padding_and_ragged_survivors(operators):
    case = {
        "score": [[9.0, 9.0, 0.1, 0.2, 0.3, 0.4], [0.6, 0.4, 0.2, 0.5, 0.3, 0.1], [9.0] * 6],
        "segment": [[PADDING, PADDING, FIXED, 0, 0, 1], [0, 0, 0, 1, 1, FIXED], [PADDING] * 6],
        "position": [[0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0], [0] * 6],
        "quota": [[1, 1], [3, 1], [6, 6]],
        "positions": 2,
    }
    kept = run(operators, case).tolist()
    assert kept == expected(case)
    assert [indices(row) for row in kept] == [[2, 4, 5], [0, 2, 3, 5], []]


def test_no_tokens(operators):
    assert keep_of(operators, [], [], [], [3]) == []


def test_only_fixed_tokens(operators):
    assert keep_of(operators, [0.5] * 3, [FIXED] * 3, [0] * 3, [0]) == [True] * 3


def test_non_contiguous_inputs(operators):
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(20, 2, generator=generator).T
    segment = torch.randint(-2, 3, (2, 40), generator=generator)
    segment[:, ::2] = torch.tensor([in_order(row, 0, 20) for row in segment[:, ::2].tolist()])
    segment = segment[:, ::2]
    position = torch.arange(20).remainder(4).expand(2, -1)
    quota = torch.randint(0, 6, (3, 2), generator=generator).T
    begin = torch.tensor([begins(row, 3) for row in segment.tolist()]).T.contiguous().T
    ids = torch.arange(3).expand(2, -1)
    marked = torch.where(segment < 0, segment, position).T.contiguous().T
    assert not any(t.is_contiguous() for t in (score, marked, quota, begin, ids))
    want = chosen(operators, score, segment, position, quota, positions=4)
    for options in ({}, {"segment": ids}):
        keep, _ = operators.select(score, marked, begin, quota, positions=4, **options)
        assert torch.equal(keep, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slice_of_scores_and_one_grid_for_all_samples(operators, dtype):
    """As an engine hands them over: scores cut out of a wider buffer, all else expanded."""
    score, segment, position, quota = video(36, [0, 0, 1, 1, 1], [30, 50])
    wide = torch.cat([score, score.flip(1), score], 1).to(dtype).view(1, 3, -1)[:, ::2]  # [1, 2, C]
    begin = torch.tensor([begins(segment[0].tolist(), 2)])
    position = torch.where(segment < 0, segment, position)
    shared = (t.expand(2, -1) for t in (position, begin, quota))
    keep, kept = operators.select(wide[0], *shared, start=3, positions=36)
    for b in range(2):
        alone = operators.select(wide[0, b : b + 1], position, begin, quota, start=3, positions=36)
        assert torch.equal(keep[b], alone[0][0])
        assert torch.equal(kept[b], alone[1][0])


def test_no_host_read(operators):
    """On the meta device there is no value that the host could read."""
    score, quota = torch.empty(2, 30, device="meta"), torch.empty(2, 4, dtype=torch.int64, device="meta")
    position, begin = (torch.empty(2, n, dtype=torch.int64, device="meta") for n in (30, 7))
    for stretches in ({"begin": quota}, {"begin": begin, "segment": begin}):
        keep, kept = select(score, position, quota=quota, positions=5, impl=operators.impl, **stretches)
        assert (keep.shape, kept.shape) == ((2, 30), (2, 4))


def test_same_result_twice(operators):
    case = {
        "score": [[math.sin(i // 3) for i in range(500)]],
        "segment": [[i // 170 for i in range(500)]],
        "position": [[i % 50 for i in range(500)]],
        "quota": [[20, 50, 90]],
        "positions": 50,
    }
    assert torch.equal(run(operators, case), run(operators, case))


GOOD = {
    "score": torch.zeros(2, 4),
    "position": torch.zeros(2, 4, dtype=torch.int64),
    "begin": torch.zeros(2, 3, dtype=torch.int64),
    "quota": torch.ones(2, 3, dtype=torch.int64),
    "positions": 5,
}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"score": torch.zeros(2, 5)}, "start"),
        ({"score": torch.zeros(1, 4)}, "score"),
        ({"score": torch.zeros(3, 4)}, "score"),
        ({"score": torch.zeros(8)}, "score"),
        ({"score": torch.zeros(2, 4, 1)}, "score"),
        ({"score": torch.zeros(2, 4, dtype=torch.float64)}, "score"),
        ({"score": torch.zeros(2, 4, dtype=torch.int64)}, "score"),
        ({"start": 1}, "start"),
        ({"start": -1}, "start"),
        ({"score": torch.zeros(2, 3), "start": 2}, "start"),
        ({"score": torch.zeros(2, 3), "start": -1}, "start"),
        ({"segment": torch.zeros(2, 4, dtype=torch.int64)}, "segment"),
        ({"segment": torch.zeros(1, 3, dtype=torch.int64)}, "segment"),
        ({"segment": torch.zeros(2, 0, dtype=torch.int64), "begin": torch.zeros(2, 0, dtype=torch.int64)}, "begin"),
        ({"segment": torch.zeros(1, 9, dtype=torch.int64), "begin": torch.zeros(1, 9, dtype=torch.int64)}, "begin"),
        ({"segment": torch.zeros(3, dtype=torch.int64), "begin": torch.zeros(3, dtype=torch.int64)}, "begin"),
        ({"position": torch.zeros(8, dtype=torch.int64)}, "position"),
        ({name: GOOD[name].flatten() for name in ("score", "position")}, "position"),
        ({name: GOOD[name][None] for name in ("score", "position")}, "position"),
        ({"begin": torch.zeros(2, 2, dtype=torch.int64)}, "begin"),
        ({"begin": torch.zeros(1, 3, dtype=torch.int64)}, "begin"),
        ({"begin": torch.zeros(3, dtype=torch.int64)}, "begin"),
        ({"quota": torch.ones(3, dtype=torch.int64)}, "quota"),
        ({"quota": torch.ones(1, 3, dtype=torch.int64)}, "quota"),
        ({"quota": torch.ones(2, 0, dtype=torch.int64)}, "quota"),
        ({"positions": 0}, "positions"),
        ({"positions": -1}, "positions"),
    ],
)
def test_wrong_arguments_are_named(operators, wrong, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        operators.select(**{**GOOD, **wrong})


@pytest.mark.parametrize("impl", ["nonsense", ""])
def test_unknown_implementation(impl):
    with pytest.raises(ValueError, match="impl"):
        select(**GOOD, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_names_of_the_reference(impl):
    assert all(torch.equal(a, b) for a, b in zip(select(**GOOD, impl=impl), select(**GOOD), strict=True))
