import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp_kernels.select import FIXED, PADDING, select

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def keep_of(score, segment, position, quota, *, positions=8, dtype=torch.float32, **options):
    """`select` on the lists of one sample."""
    kept = select(
        torch.tensor([score], dtype=dtype),
        torch.tensor([segment], dtype=torch.int64),
        torch.tensor([position], dtype=torch.int64),
        torch.tensor([quota], dtype=torch.int64),
        positions=positions,
        **options,
    )
    assert kept.shape == (1, len(score))
    assert kept.dtype == torch.bool
    return kept[0].tolist()


def indices(keep):
    return [i for i, stays in enumerate(keep) if stays]


@st.composite
def batches(draw, special=True):
    """Samples with tokens in any order, of any segment, fixed or padding; few distinct scores, so that ties abound."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(0, 24))
    segments, positions = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    few = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, NAN, INF, -INF] if special else [0.0, 0.25, 0.5])
    value = st.one_of(few, st.floats(0, 1, width=16))

    def table(strategy, width):
        row = st.lists(strategy, min_size=width, max_size=width)
        return draw(st.lists(row, min_size=batch, max_size=batch))

    segment = table(st.integers(-2, segments - 1), length)
    position = table(st.integers(0, positions - 1), length)
    return {
        "score": table(value, length),
        "segment": segment,
        "position": position,
        "quota": table(st.integers(0, length + 2), segments),
        "positions": positions,
    }


def run(case, dtype=torch.float32, **options):
    shape = (len(case["score"]), len(case["score"][0]))
    return select(
        torch.tensor(case["score"], dtype=dtype).view(shape),
        torch.tensor(case["segment"], dtype=torch.int64).view(shape),
        torch.tensor(case["position"], dtype=torch.int64).view(shape),
        torch.tensor(case["quota"]),
        positions=case["positions"],
        **options,
    )


def expected(case, deduplicate=True):
    samples = zip(case["score"], case["segment"], case["position"], case["quota"], strict=True)
    return [oracle.select(*sample, deduplicate=deduplicate) for sample in samples]


@settings(deadline=None, max_examples=300)
@given(batches(), st.booleans(), st.sampled_from(DTYPES))
def test_same_tokens_as_top_k_and_algorithm_1(case, deduplicate, dtype):
    # scores are exact in fp16; in bf16 the measure gets the rounded ones
    case["score"] = torch.tensor(case["score"], dtype=dtype).tolist()
    assert run(case, dtype, deduplicate=deduplicate).tolist() == expected(case, deduplicate)


@settings(deadline=None, max_examples=100)
@given(batches())
def test_deduplication_only_drops_and_never_keeps_a_position_twice(case):
    kept, selected = run(case).tolist(), run(case, deduplicate=False).tolist()
    for b, row in enumerate(kept):
        assert all(selected[b][i] for i in indices(row))
        prunable = [i for i in indices(row) if case["segment"][b][i] >= 0]
        groups = [(case["segment"][b][i], case["position"][b][i]) for i in prunable]
        assert len(groups) == len(set(groups))


@settings(deadline=None, max_examples=100)
@given(batches())
def test_without_deduplication_every_segment_keeps_its_quota_or_all_it_has(case):
    for b, row in enumerate(run(case, deduplicate=False).tolist()):
        for s, quota in enumerate(case["quota"][b]):
            tokens = [i for i, own in enumerate(case["segment"][b]) if own == s]
            assert sum(row[i] for i in tokens) == min(quota, len(tokens))


@settings(deadline=None, max_examples=150)
@given(batches(), st.data())
def test_after_a_deduplicated_cut_there_is_nothing_left_to_deduplicate(case, data):
    kept = run(case)
    # survivors of ragged samples: what was dropped becomes padding
    survivors = {**case, "segment": torch.where(kept, torch.tensor(case["segment"]).view(kept.shape), PADDING).tolist()}
    length = kept.shape[1]
    fresh = st.lists(st.floats(0, 1, width=16), min_size=length, max_size=length)
    survivors["score"] = [data.draw(fresh) for _ in case["score"]]
    assert torch.equal(run(survivors), run(survivors, deduplicate=False))


@settings(deadline=None, max_examples=50)
@given(batches())
def test_samples_do_not_see_each_other(case):
    together = run(case).tolist()
    for b in range(len(case["score"])):
        alone = {name: value if name == "positions" else [value[b]] for name, value in case.items()}
        assert run(alone).tolist() == [together[b]]


@pytest.mark.parametrize("c", [1, 7, 182, 196])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_video_of_usual_frame_sizes(c, deduplicate):
    generator = torch.Generator().manual_seed(c)
    frames = [0, 0, 0, 1, 2, 2, 2]
    segment = [FIXED] * 3 + [s for s in frames for _ in range(c)] + [FIXED] * 5
    position = [0] * 3 + list(range(c)) * len(frames) + [0] * 5
    score = torch.rand(len(segment), generator=generator).mul(50).round().div(50).tolist()  # with many ties
    quota = [int(1.3 * c), c // 2, 2 * c]
    keep = keep_of(score, segment, position, quota, positions=c, deduplicate=deduplicate)
    assert keep == oracle.select(score, segment, position, quota, deduplicate)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_earlier_token(dtype):
    assert indices(keep_of([0.5, 1.0, 1.0, 1.0], [0] * 4, [0, 1, 2, 3], [2], dtype=dtype)) == [1, 2]


def test_ties_of_one_position_keep_the_earlier_token():
    assert indices(keep_of([0.5, 0.5, 0.5], [0] * 3, [4, 4, 4], [3])) == [0]


def test_constant_scores_keep_the_first_tokens_even_in_long_inputs():
    length = 3000  # long enough for an unstable sort to show
    keep = keep_of([0.25] * length, [0] * length, list(range(length)), [1000], positions=length)
    assert indices(keep) == list(range(1000))


def test_constant_scores_with_interleaved_segments():
    keep = keep_of([0.0] * 9, [2, 1, 0] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2], [1, 2, 0])
    assert indices(keep) == [1, 2, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_ranks_after_minus_infinity(dtype):
    score = [NAN, -INF, NAN, -5.0]
    for quota, stays in [(1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])]:
        assert indices(keep_of(score, [0] * 4, [0, 1, 2, 3], [quota], dtype=dtype)) == stays


def test_nan_of_either_sign_ranks_last():
    score = torch.tensor([[-NAN, NAN, 0.5]])
    score[0, 0] = torch.copysign(score[0, 0], torch.tensor(-1.0))
    keep = select(score, torch.zeros_like(score).long(), torch.tensor([[0, 1, 2]]), torch.tensor([[1]]), positions=3)
    assert keep.tolist() == [[False, False, True]]


def test_nan_loses_its_position_to_a_number():
    assert indices(keep_of([NAN, -INF], [0, 0], [3, 3], [2])) == [1]


def test_all_nan_keeps_the_first_tokens():
    assert indices(keep_of([NAN] * 4, [0] * 4, [0, 1, 2, 3], [2])) == [0, 1]


def test_infinities_tie_among_themselves():
    assert indices(keep_of([1.0, INF, INF, INF], [0] * 4, [0, 1, 2, 3], [2])) == [1, 2]


@pytest.mark.parametrize("score", [[0.0, -0.0], [-0.0, 0.0]])
def test_minus_zero_ties_with_zero(score):
    assert indices(keep_of(score, [0, 0], [0, 1], [1])) == [0]
    assert indices(keep_of(score, [0, 0], [1, 1], [2])) == [0]


def test_deduplication_comes_after_the_top_k_and_does_not_refill():
    # the two best share position 0; the third best is not taken in place of the dropped one
    assert indices(keep_of([0.9, 0.8, 0.7], [0] * 3, [0, 0, 1], [2])) == [0]


def test_the_same_position_stays_once_in_every_segment():
    assert indices(keep_of([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [5, 5, 5, 5], [2, 2])) == [1, 3]


def test_deduplication_off_keeps_a_position_twice():
    assert indices(keep_of([0.9, 0.8, 0.7], [0] * 3, [0, 0, 1], [2], deduplicate=False)) == [0, 1]


def test_deduplication_is_the_default():
    assert indices(keep_of([0.9, 0.8], [0, 0], [0, 0], [2])) == [0]


def test_fixed_tokens_stay_and_padding_goes_whatever_score_or_position_they_have():
    score = [-INF, INF, NAN, NAN, 0.5]
    segment = [FIXED, PADDING, FIXED, PADDING, 0]
    assert indices(keep_of(score, segment, [10**9, -7, 0, 0, 0], [1])) == [0, 2, 4]
    assert indices(keep_of(score, segment, [10**9, -7, 0, 0, 0], [0])) == [0, 2]


def test_fixed_and_padding_tokens_take_no_quota_and_no_position():
    keep = keep_of([0.9, 0.9, 0.1, 0.2], [FIXED, PADDING, 0, 0], [0, 0, 0, 1], [2])
    assert indices(keep) == [0, 2, 3]


def test_quota_zero_drops_the_whole_segment():
    assert indices(keep_of([0.9, 0.8, 0.1], [0, 0, 1], [0, 1, 0], [0, 1])) == [2]


def test_quota_above_the_segment_takes_all_and_hands_nothing_on():
    assert indices(keep_of([0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], [0, 1, 0, 1], [100, 1])) == [0, 1, 2]


def test_empty_segments_between_others():
    assert indices(keep_of([0.3, 0.2, 0.1], [3, 1, 3], [0, 0, 1], [5, 1, 5, 1])) == [0, 1]


def test_all_single_frame_segments():
    segment = [s for s in range(4) for _ in range(3)]
    score = [0.1, 0.3, 0.2] * 4
    assert indices(keep_of(score, segment, [0, 1, 2] * 4, [1, 2, 3, 0])) == [1, 4, 5, 6, 7, 8]


def test_one_segment_one_position():
    assert indices(keep_of([0.1, 0.9, 0.5], [0] * 3, [0] * 3, [3], positions=1)) == [1]


def test_batches_with_different_left_padding_and_ragged_survivors():
    case = {
        "score": [[9.0, 9.0, 0.1, 0.2, 0.3, 0.4], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [9.0] * 6],
        "segment": [[PADDING, PADDING, FIXED, 0, 0, 1], [0, 1, 0, 1, 0, FIXED], [PADDING] * 6],
        "position": [[0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0], [0] * 6],
        "quota": [[1, 1], [3, 1], [6, 6]],
        "positions": 2,
    }
    kept = run(case).tolist()
    assert kept == expected(case)
    assert [indices(row) for row in kept] == [[2, 4, 5], [0, 1, 4, 5], []]


def test_no_tokens():
    assert keep_of([], [], [], [3]) == []


def test_only_fixed_tokens():
    assert keep_of([0.5] * 3, [FIXED] * 3, [0] * 3, [0]) == [True] * 3


def test_non_contiguous_inputs():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(20, 2, generator=generator).T
    segment = torch.randint(-2, 3, (2, 40), generator=generator)[:, ::2]
    position = torch.arange(20).remainder(4).expand(2, -1)
    quota = torch.randint(0, 6, (3, 2), generator=generator).T
    kept = select(score, segment, position, quota, positions=4)
    plain = [t.contiguous().clone() for t in (score, segment, position, quota)]
    assert torch.equal(kept, select(*plain, positions=4))
    assert kept.tolist() == [oracle.select(*(t[b].tolist() for t in plain)) for b in range(2)]


def test_inputs_are_left_alone():
    inputs = [torch.tensor([[0.5, NAN]]), torch.tensor([[0, FIXED]]), torch.tensor([[0, -3]]), torch.tensor([[1]])]
    before = [t.clone() for t in inputs]
    select(*inputs, positions=1)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(inputs, before, strict=True))


def test_no_host_read():
    """On the meta device there is no value that the host could read."""
    score = torch.empty(2, 30, device="meta")
    integers = torch.empty(2, 30, dtype=torch.int64, device="meta")
    quota = torch.empty(2, 4, dtype=torch.int64, device="meta")
    assert select(score, integers, integers, quota, positions=5).shape == (2, 30)


def test_same_result_twice():
    case = {
        "score": [[math.sin(i // 3) for i in range(500)]],
        "segment": [[i % 3 for i in range(500)]],
        "position": [[i % 50 for i in range(500)]],
        "quota": [[20, 50, 90]],
        "positions": 50,
    }
    assert torch.equal(run(case), run(case))


GOOD = {
    "score": torch.zeros(2, 4),
    "segment": torch.zeros(2, 4, dtype=torch.int64),
    "position": torch.zeros(2, 4, dtype=torch.int64),
    "quota": torch.ones(2, 3, dtype=torch.int64),
    "positions": 5,
}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"score": torch.zeros(2, 3)}, "score"),
        ({"score": torch.zeros(1, 4)}, "score"),
        ({"segment": torch.zeros(2, 5, dtype=torch.int64)}, "segment"),
        ({"position": torch.zeros(8, dtype=torch.int64)}, "position"),
        ({name: GOOD[name].flatten() for name in ("score", "segment", "position")}, "score"),
        ({name: GOOD[name][None] for name in ("score", "segment", "position")}, "score"),
        ({"quota": torch.ones(3, dtype=torch.int64)}, "quota"),
        ({"quota": torch.ones(1, 3, dtype=torch.int64)}, "quota"),
        ({"quota": torch.ones(2, 0, dtype=torch.int64)}, "quota"),
        ({"positions": 0}, "positions"),
        ({"positions": -1}, "positions"),
        ({"impl": "nonsense"}, "impl"),
        ({"impl": ""}, "impl"),
    ],
)
def test_wrong_arguments_are_named(wrong, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        select(**{**GOOD, **wrong})


def test_triton_never_becomes_the_reference():
    with pytest.raises(RuntimeError, match="triton"):
        select(**GOOD, impl="triton")


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_names_of_the_reference(impl):
    assert torch.equal(select(**GOOD, impl=impl), select(**GOOD))
