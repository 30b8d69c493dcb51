import math
from contextlib import nullcontext
from unittest import mock

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operators import cases

import adatp_kernels.compact_triton as triton_module
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import interpreted
from adatp_kernels.select import PADDING

pytestmark = pytest.mark.interpreter

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INTEGERS = [torch.int64, torch.int32, torch.int16]


@st.composite
def masks(draw, shortest=0, longest=40):
    batch, length = draw(st.integers(1, 3)), draw(st.integers(shortest, longest))
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    return draw(st.lists(row, min_size=batch, max_size=batch))


def run(operators, keep, tensors):
    mask = torch.tensor(keep, dtype=torch.bool).view(len(keep), len(keep[0]))
    return operators.compact(mask, [sum(row) for row in keep], tensors)


def assert_moved(operators, keep, tensors):
    """Bits of all tensors against indexing, sample by sample."""
    counts = keep.sum(1).tolist()
    results = operators.compact(keep, counts, tensors)
    assert len(results) == len(tensors)
    for tensor, result in zip(tensors, results, strict=True):
        fill = 0 if tensor.is_floating_point() else PADDING
        want = torch.full((len(counts), max(counts), *tensor.shape[2:]), fill, dtype=tensor.dtype)
        for b, count in enumerate(counts):
            want[b, max(counts) - count :] = tensor[b, keep[b]]
        assert result.dtype == tensor.dtype
        assert result.shape == want.shape
        assert result.is_contiguous()
        assert torch.equal(result.flatten().view(torch.uint8), want.flatten().view(torch.uint8))


def small_blocks():
    """Tiles of 16 x 4, so that every loop of the kernel goes round; a GPU has a least size."""
    return mock.patch.multiple(triton_module, TILE=64, COUNT_BLOCK=8) if interpreted() else nullcontext()


@cases(200, 80)
@given(masks(), st.sampled_from(FLOATS), st.sampled_from(INTEGERS), st.booleans())
def test_survivors_in_order_behind_left_padding(operators, keep, floating, integer, small):
    shape = (len(keep), len(keep[0]))
    numbers = torch.arange(1, 1 + shape[0] * shape[1]).view(shape)  # 1 .. 120, exact in every dtype
    tensors = [numbers.to(integer), numbers[..., None, None].expand(*shape, 2, 3).to(floating)]
    with small_blocks() if small else nullcontext():
        plain, wide = run(operators, keep, tensors)
    assert plain.dtype == integer
    assert plain.tolist() == oracle.compact(keep, numbers.tolist(), PADDING)
    assert wide.dtype == floating
    want = oracle.compact(keep, numbers.tolist(), 0)
    assert wide.tolist() == [[[[float(value)] * 3] * 2 for value in row] for row in want]


@cases(150, 25)
@given(masks(1, 70), st.integers(0, 2**32), st.sampled_from(FLOATS + INTEGERS))
def test_every_bit_of_every_row_arrives(operators, keep, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor(keep)
    tensors = [
        torch.randint(-128, 128, (*mask.shape, width * dtype.itemsize), dtype=torch.int8, generator=generator)
        .view(dtype)
        .view(*mask.shape, *shape)
        for width, shape in [(1, ()), (7, (7,)), (12, (3, 4))]
    ]
    with small_blocks():
        assert_moved(operators, mask, tensors)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.int8])
@pytest.mark.parametrize("width", [3, 896])
def test_dtypes_and_widths(operators, dtype, width):
    generator = torch.Generator().manual_seed(width)
    keep = torch.rand(3, 37, generator=generator) < torch.tensor([[0.1], [0.5], [0.9]])
    values = torch.randint(-100, 100, (3, 37, width), generator=generator)
    assert_moved(operators, keep, [values.to(dtype), values[..., 0].to(dtype)])


@pytest.mark.parametrize("width", [1, 2, 5, 64, 511, 512, 513, 1536, 3584])
def test_rows_of_any_size_go_over_beside_each_other(operators, width):
    generator = torch.Generator().manual_seed(width)
    keep = torch.rand(2, 20, generator=generator) < torch.tensor([[0.3], [0.8]])
    hidden = torch.randn(2, 20, width, generator=generator)
    rotary = torch.randn(1, 20, 64, generator=generator).expand(2, -1, -1)
    origin = torch.arange(20).expand(2, -1)
    assert_moved(operators, keep, [hidden.bfloat16(), rotary, origin, hidden.half()])


@pytest.mark.parametrize("length", [15, 16, 17, 33, 4096, 4097, 4500])
@pytest.mark.parametrize("share", [0.03, 0.6])
def test_lengths_around_the_kernel_s_blocks(operators, length, share):
    generator = torch.Generator().manual_seed(length)
    keep = torch.rand(2, length, generator=generator) < torch.tensor([[share], [share / 2]])
    tensors = [torch.randn(2, length, 2, generator=generator), torch.arange(2 * length).view(2, length)]
    with mock.patch.object(triton_module, "token_block", return_value=16 if length < 4000 else 256):
        assert_moved(operators, keep, tensors)


@pytest.mark.parametrize("length", [16 << 10, (16 << 10) + 1, (64 << 10) + 1])
def test_programs_of_a_long_sample_take_more_tokens_each(length):
    block = triton_module.token_block(length)
    assert block == 16 * 4 ** [16 << 10, (16 << 10) + 1, (64 << 10) + 1].index(length)
    assert math.ceil(length / block) <= triton_module.MAX_PROGRAMS


def test_the_longest_sample_is_not_the_first(operators):
    keep = torch.zeros(3, 50, dtype=torch.bool)
    keep[0, 49], keep[1, 1::2], keep[2, :3] = True, True, True
    assert_moved(operators, keep, [torch.randn(3, 50, 5), torch.arange(150).view(3, 50)])


def test_padding_that_is_longer_than_a_block_of_tokens(operators):
    keep = torch.ones(2, 60, dtype=torch.bool)
    keep[1, :-1] = False
    assert_moved(operators, keep, [torch.randn(2, 60, 3), torch.arange(120).view(2, 60)])


def test_ragged_samples_end_in_the_last_slot(operators):
    keep = [[True, False, True, True], [False, False, False, True], [False] * 4]
    origin, hidden = run(operators, keep, [torch.arange(4).expand(3, -1), torch.arange(1.0, 13.0).view(3, 4)])
    assert origin.tolist() == [[0, 2, 3], [PADDING, PADDING, 3], [PADDING] * 3]
    assert hidden.tolist() == [[1, 3, 4], [0, 0, 8], [0, 0, 0]]


def test_garbage_in_dropped_tokens_does_not_reach_padding(operators):
    keep = [[False, True], [True, True]]
    (hidden,) = run(operators, keep, [torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])])
    assert hidden.tolist() == [[0, 1], [2, 3]]


def test_padding_is_clean_when_the_very_first_token_is_nan_and_kept(operators):
    keep = [[True, True], [False, True]]
    (hidden,) = run(operators, keep, [torch.tensor([[float("nan"), 1.0], [2.0, 3.0]])])
    assert hidden[1].tolist() == [0, 3]


def test_kept_values_keep_their_bits(operators):
    values = torch.tensor([[float("inf"), -0.0, 1e-40, -1.5, 0.0]])
    values.view(torch.int32)[0, 4] = -3  # a NaN with a payload
    (moved,) = run(operators, [[True] * 5], [values])
    assert torch.equal(moved.view(torch.int32), values.view(torch.int32))


def test_boolean_tensors_without_padding(operators):
    (moved,) = run(operators, [[True, False, True]], [torch.tensor([[True, True, False]])])
    assert moved.dtype == torch.bool
    assert moved.tolist() == [[True, False]]


def test_everything_kept(operators):
    values = torch.randn(2, 5, 3)
    (moved,) = run(operators, [[True] * 5] * 2, [values])
    assert torch.equal(moved, values)


def test_nothing_kept(operators):
    hidden, origin = run(operators, [[False] * 3] * 2, [torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)])
    assert hidden.shape == (2, 0, 4)
    assert origin.shape == (2, 0)


def test_no_tokens(operators):
    hidden, origin = run(operators, [[], []], [torch.empty(2, 0, 4), torch.empty(2, 0, dtype=torch.int64)])
    assert hidden.shape == (2, 0, 4)
    assert origin.shape == (2, 0)


def test_no_tensors(operators):
    assert run(operators, [[True, False]], []) == []


def test_rows_without_elements_beside_others(operators):
    empty, plain = run(operators, [[True, False, True]], [torch.empty(1, 3, 0), torch.arange(3)[None]])
    assert empty.shape == (1, 2, 0)
    assert plain.tolist() == [[0, 2]]


def test_non_contiguous_tensors_are_not_misread(operators):
    base = torch.arange(1.0, 49.0).view(4, 6, 2)
    strided = base.permute(1, 0, 2)[::3]  # [2, 4, 2]
    shared = torch.arange(4).expand(2, -1)
    keep = [[False, True, True, False], [True, False, False, False]]
    moved, origin = run(operators, keep, [strided, shared])
    assert moved.tolist() == [strided[0, 1:3].tolist(), [[0, 0], strided[1, 0].tolist()]]
    assert origin.tolist() == [[1, 2], [PADDING, 0]]


def test_non_contiguous_mask(operators):
    keep = torch.tensor([[True, False], [False, True], [True, True]]).T
    assert not keep.is_contiguous()
    assert_moved(operators, keep, [torch.arange(6).view(2, 3)])
    assert_moved(operators, torch.tensor([[True, False, True]]).expand(2, -1), [torch.arange(6).view(2, 3)])


def test_tables_shared_by_all_samples_and_strided_within(operators):
    keep = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.4
    table = torch.randn(40, 2, 8).transpose(0, 1)[0]  # rows of 16 apart
    assert_moved(operators, keep, [table.expand(3, -1, -1), torch.arange(80)[::2].expand(3, -1), torch.randn(3, 40)])


def test_one_sample_whose_batch_stride_is_zero(operators):
    assert_moved(operators, torch.tensor([[True, False, True]]), [torch.arange(3).expand(1, -1)])


def test_result_is_no_view_of_the_input(operators):
    values = torch.zeros(1, 3)
    (moved,) = run(operators, [[True] * 3], [values])
    moved.add_(1)
    assert values.tolist() == [[0, 0, 0]]


def test_same_result_twice(operators):
    keep = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    values = torch.randn(2, 100, 5)
    first, second = (operators.compact(keep, keep.sum(1).tolist(), [values])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_no_host_read(operators):
    """On the meta device there is no value that the host could read."""
    keep = torch.empty(2, 30, dtype=torch.bool, device="meta")
    (moved,) = compact(keep, [7, 5], [torch.empty(2, 30, 4, device="meta")], impl=operators.impl)
    assert moved.shape == (2, 7, 4)


@pytest.mark.parametrize("counts", [[1, 1], [0, 3], [3, 0], [2, 9], [9, 9], [30, 90], [40, 40]])
def test_wrong_counts_write_nowhere_else(kernels, monkeypatch, counts):
    """The results lie between guards."""
    plain, memories = torch.Tensor.new_empty, []

    def guarded(self, *shape, **options):
        if options:  # the interpreter's own
            return plain(self, *shape, **options)
        size, room = math.prod(shape), 4096
        memory = plain(self, size + 2 * room).fill_(77)
        memories.append((memory[:room], memory[room + size :]))
        return memory[room : room + size].view(shape)

    keep = torch.rand(2, 40, generator=torch.Generator().manual_seed(2)) < 0.5
    tensors = kernels.move([torch.randn(2, 40, 3), torch.arange(80).view(2, 40)])
    keep = kernels.move(keep)
    monkeypatch.setattr(torch.Tensor, "new_empty", guarded)
    results = compact(keep, counts, tensors, impl="triton")
    monkeypatch.undo()
    assert [len(memories), *(r.shape[1] for r in results)] == [2, max(counts), max(counts)]
    for before, after in memories:
        assert (before == 77).all()
        assert (after == 77).all()


KEEP = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("keep", "counts", "tensors", "named"),
    [
        (KEEP.flatten(), [3, 3], [], "keep"),
        (KEEP[None], [3], [], "keep"),
        (KEEP[:0], [], [], "keep"),
        (KEEP, [3], [], "count"),
        (KEEP, [3, 3, 3], [], "count"),
        (KEEP, [3, 3], [torch.zeros(2, 4)], "tensor"),
        (KEEP, [3, 3], [torch.zeros(2, 3), torch.zeros(1, 3)], "tensor"),
        (KEEP, [3, 3], [torch.zeros(2)], "tensor"),
    ],
)
def test_wrong_arguments_are_named(operators, keep, counts, tensors, named):
    with pytest.raises(ValueError, match=named):
        operators.compact(keep, counts, tensors)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="impl"):
        compact(KEEP, [3, 3], [], impl="nonsense")


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_names_of_the_reference(impl):
    (moved,) = compact(KEEP, [3, 3], [torch.ones(2, 3)], impl=impl)
    assert torch.equal(moved, torch.ones(2, 3))
