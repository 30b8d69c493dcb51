import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp_kernels.compact import compact
from adatp_kernels.select import PADDING

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INTEGERS = [torch.int64, torch.int32, torch.int16]


@st.composite
def masks(draw):
    batch, length = draw(st.integers(1, 4)), draw(st.integers(0, 20))
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    return draw(st.lists(row, min_size=batch, max_size=batch))


def run(keep, tensors):
    mask = torch.tensor(keep, dtype=torch.bool).view(len(keep), len(keep[0]))
    return compact(mask, [sum(row) for row in keep], tensors)


@settings(deadline=None, max_examples=200)
@given(masks(), st.sampled_from(FLOATS), st.sampled_from(INTEGERS))
def test_survivors_in_order_behind_left_padding(keep, floating, integer):
    shape = (len(keep), len(keep[0]))
    numbers = torch.arange(1, 1 + shape[0] * shape[1]).view(shape)  # 1 .. 80, exact in every dtype
    plain, wide = run(keep, [numbers.to(integer), numbers[..., None, None].expand(*shape, 2, 3).to(floating)])
    assert plain.dtype == integer
    assert plain.tolist() == oracle.compact(keep, numbers.tolist(), PADDING)
    assert wide.dtype == floating
    want = oracle.compact(keep, numbers.tolist(), 0)
    assert wide.tolist() == [[[[float(value)] * 3] * 2 for value in row] for row in want]


def test_ragged_samples_end_in_the_last_slot():
    keep = [[True, False, True, True], [False, False, False, True], [False] * 4]
    origin, hidden = run(keep, [torch.arange(4).expand(3, -1), torch.arange(1.0, 13.0).view(3, 4)])
    assert origin.tolist() == [[0, 2, 3], [PADDING, PADDING, 3], [PADDING] * 3]
    assert hidden.tolist() == [[1, 3, 4], [0, 0, 8], [0, 0, 0]]


def test_garbage_in_dropped_tokens_does_not_reach_padding():
    keep = [[False, True], [True, True]]
    (hidden,) = run(keep, [torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])])
    assert hidden.tolist() == [[0, 1], [2, 3]]


def test_padding_is_clean_when_the_very_first_token_is_nan_and_kept():
    keep = [[True, True], [False, True]]
    (hidden,) = run(keep, [torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])])
    assert hidden[1].tolist() == [0, 3]


def test_kept_values_keep_their_bits():
    values = torch.tensor([[float("inf"), -0.0, 1e-40, -1.5]])
    (moved,) = run([[True] * 4], [values])
    assert torch.equal(moved.view(torch.int32), values.view(torch.int32))


def test_boolean_tensors_without_padding():
    (moved,) = run([[True, False, True]], [torch.tensor([[True, True, False]])])
    assert moved.tolist() == [[True, False]]


def test_everything_kept():
    values = torch.randn(2, 5, 3)
    (moved,) = run([[True] * 5] * 2, [values])
    assert torch.equal(moved, values)


def test_nothing_kept():
    hidden, origin = run([[False] * 3] * 2, [torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)])
    assert hidden.shape == (2, 0, 4)
    assert origin.shape == (2, 0)


def test_no_tokens():
    hidden, origin = run([[], []], [torch.empty(2, 0, 4), torch.empty(2, 0, dtype=torch.int64)])
    assert hidden.shape == (2, 0, 4)
    assert origin.shape == (2, 0)


def test_no_tensors():
    assert run([[True, False]], []) == []


def test_non_contiguous_tensors_are_neither_misread_nor_written():
    base = torch.arange(1.0, 49.0).view(4, 6, 2)
    strided = base.permute(1, 0, 2)[::3]  # [2, 4, 2]
    shared = torch.arange(4).expand(2, -1)
    before = base.clone()
    keep = [[False, True, True, False], [True, False, False, False]]
    moved, origin = run(keep, [strided, shared])
    assert moved.tolist() == [strided[0, 1:3].tolist(), [[0, 0], strided[1, 0].tolist()]]
    assert origin.tolist() == [[1, 2], [PADDING, 0]]
    assert torch.equal(base, before)
    assert shared.tolist() == [[0, 1, 2, 3]] * 2


def test_result_is_no_view_of_the_input():
    values = torch.zeros(1, 3)
    (moved,) = run([[True] * 3], [values])
    moved.add_(1)
    assert values.tolist() == [[0, 0, 0]]


def test_no_host_read():
    """On the meta device there is no value that the host could read."""
    keep = torch.empty(2, 30, dtype=torch.bool, device="meta")
    (moved,) = compact(keep, [7, 5], [torch.empty(2, 30, 4, device="meta")])
    assert moved.shape == (2, 7, 4)


KEEP = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("keep", "counts", "tensors", "named"),
    [
        (KEEP.flatten(), [3, 3], [], "keep"),
        (KEEP[None], [3], [], "keep"),
        (KEEP, [3], [], "count"),
        (KEEP, [3, 3, 3], [], "count"),
        (KEEP, [3, 3], [torch.zeros(2, 4)], "tensor"),
        (KEEP, [3, 3], [torch.zeros(2, 3), torch.zeros(1, 3)], "tensor"),
        (KEEP, [3, 3], [torch.zeros(2)], "tensor"),
    ],
)
def test_wrong_arguments_are_named(keep, counts, tensors, named):
    with pytest.raises(ValueError, match=named):
        compact(keep, counts, tensors)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="impl"):
        compact(KEEP, [3, 3], [], impl="nonsense")


def test_triton_never_becomes_the_reference():
    with pytest.raises(RuntimeError, match="triton"):
        compact(KEEP, [3, 3], [], impl="triton")


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_names_of_the_reference(impl):
    (moved,) = compact(KEEP, [3, 3], [torch.ones(2, 3)], impl=impl)
    assert torch.equal(moved, torch.ones(2, 3))
