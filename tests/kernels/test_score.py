from itertools import product
from unittest import mock

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operators import cases
from outputs import Outputs

import adatp_kernels.score as score_module
import adatp_kernels.score_triton as triton_module
from adatp_kernels.score import score, score_reference

pytestmark = pytest.mark.interpreter

NAN, INF = float("nan"), float("inf")


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def measured(query, key, rows, columns, scale, first_key=None):
    """The oracle on tensors, in fp64: `[B, stop - start]`."""
    first = [0] * len(rows) if first_key is None else first_key.tolist()
    samples = zip(query.double().tolist(), key.double().tolist(), rows.tolist(), first, strict=True)
    result = [oracle.score(q, k, r, columns, scale, f) for q, k, r, f in samples]
    return torch.tensor(result, dtype=torch.float64).view(len(rows), columns[1] - columns[0])


def exact(query, key, rows, columns, scale, first_key=None):
    """The same with matrices, for sizes that are too large for plain numbers."""
    query, key = query.double(), key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    index = torch.arange(key.shape[2])
    visible = index <= rows[..., None]
    if first_key is not None:
        visible = visible & (index >= first_key[:, None, None])
    logits = (query.nan_to_num() @ key.nan_to_num().transpose(2, 3) * scale).masked_fill(~visible[:, None], -INF)
    probability = logits.softmax(-1).nan_to_num().sum((1, 2))[:, columns[0] : columns[1]]
    return probability / (query.shape[1] * (rows >= 0).sum(1, keepdim=True).clamp(min=1))


def make(batch=1, heads=2, groups=1, count=3, length=17, dim=4, *, seed=0, spread=2.0, dtype=torch.float32):
    """Random queries and keys; the rows are the last ones of the sequence, as a prompt's text is."""
    generator = torch.Generator().manual_seed(seed)
    query = (torch.randn(batch, heads, count, dim, generator=generator) * spread).to(dtype)
    key = torch.randn(batch, groups, length, dim, generator=generator).to(dtype)
    rows = torch.arange(length - count, length).clamp(min=0).expand(batch, -1)
    return query, key, rows


def assert_close(got, want, tolerance=2e-6):
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-9)


@st.composite
def problems(draw):
    batch, groups, shared = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 7]))
    count, length, dim = draw(st.integers(0, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    start = draw(st.integers(0, length))
    stop = draw(st.integers(start, length))
    query, key, _ = make(batch, groups * shared, groups, count, length, dim, seed=draw(st.integers(0, 99)))
    first = draw(st.lists(st.integers(0, length - 1), min_size=batch, max_size=batch))
    rows = [[draw(st.one_of(st.just(-1), st.integers(f, length - 1))) for _ in range(count)] for f in first]
    rows = torch.tensor(rows, dtype=torch.int64).view(batch, count)
    return query, key, rows, (start, stop), dim**-0.5, torch.tensor(first)


@cases(200, 40)
@given(problems())
def test_same_scores_as_a_full_softmax(operators, problem):
    query, key, rows, columns, scale, first_key = problem
    got = operators.score(query, key, rows, columns, scale=scale, first_key=first_key)
    want = measured(*problem)
    assert_close(got, want)
    torch.testing.assert_close(exact(*problem), want)


@cases(100, 15)
@given(problems())
def test_keys_that_no_row_attends_to_score_zero_and_may_hold_garbage(operators, problem):
    query, key, rows, columns, scale, first_key = problem
    clean = operators.score(query, key, rows, columns, scale=scale, first_key=first_key)
    query, key = query.clone(), key.clone()
    index = torch.arange(key.shape[2])
    last = rows.amax(1) if rows.shape[1] else torch.full((len(rows),), -1)
    unseen = (index < first_key[:, None]) | (index > last[:, None])
    key.masked_fill_(unseen[:, None, :, None], NAN)
    query.masked_fill_((rows < 0)[:, None, :, None], NAN)
    dirty = operators.score(query, key, rows, columns, scale=scale, first_key=first_key)
    assert torch.equal(dirty, clean)
    assert (dirty[unseen[:, columns[0] : columns[1]]] == 0).all()


@cases(100, 15)
@given(problems())
def test_over_all_keys_the_scores_of_a_sample_add_up_to_one(operators, problem):
    query, key, rows, _, scale, first_key = problem
    total = operators.score(query, key, rows, (0, key.shape[2]), scale=scale, first_key=first_key).sum(1)
    torch.testing.assert_close(total, (rows >= 0).any(1).float())


@pytest.mark.parametrize("count", [1, 3, 63, 111])
@pytest.mark.parametrize("length", [1, 17, 403])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_odd_sizes(operators, count, length, dtype):
    query, key, rows = make(heads=2, groups=1, count=count, length=length, dim=8, dtype=dtype)
    rows = torch.arange(length - count, length).clamp(min=-1)[None]
    columns = (length // 5, length - length // 7)
    assert_close(operators.score(query, key, rows, columns, scale=0.7), exact(query, key, rows, columns, 0.7), 4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_long_prompt(operators, dtype):
    query, key, rows = make(heads=2, groups=1, count=3, length=6402, dim=8, dtype=dtype)
    want = exact(query, key, rows, (14, 6286), 0.35)
    assert_close(operators.score(query, key, rows, (14, 6286), scale=0.35), want, 4e-6)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 32, 64, 72, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dimensions(operators, dim, dtype):
    query, key, rows = make(batch=2, heads=4, groups=2, count=9, length=70, dim=dim, dtype=dtype)
    got = operators.score(query, key, rows, (3, 66), scale=dim**-0.5)
    assert_close(got, exact(query, key, rows, (3, 66), dim**-0.5), 4e-6)


@pytest.mark.parametrize("columns", [(0, 0), (70, 70), (0, 1), (69, 70), (0, 70), (31, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_columns_anywhere(operators, columns, dtype):
    query, key, rows = make(batch=2, heads=2, groups=1, count=4, length=70, dim=8, dtype=dtype)
    assert_close(operators.score(query, key, rows, columns, scale=0.4), exact(query, key, rows, columns, 0.4), 4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_anywhere_in_any_order(operators, dtype):
    """Causal bounds that differ within a tile of rows, some not in use, in samples of different padding."""
    generator = torch.Generator().manual_seed(8)
    query, key, _ = make(batch=3, heads=6, groups=3, count=20, length=150, dim=8, dtype=dtype)
    rows = torch.randint(0, 150, (3, 20), generator=generator)
    rows[0, ::3], rows[1, 1:] = -1, -1
    query.masked_fill_((rows < 0)[:, None, :, None], NAN)
    first_key = torch.tensor([0, 37, 140])  # most rows of the last sample see nothing
    got = operators.score(query, key, rows, (30, 149), scale=0.4, first_key=first_key)
    assert_close(got, exact(query, key, rows, (30, 149), 0.4, first_key), 4e-6)


def test_a_row_that_sees_no_key_gives_none_a_score_but_counts(operators):
    query, key, _ = make(count=3, length=9, dim=4)
    rows, first_key = torch.tensor([[2, 6, 0]]), torch.tensor([4])
    got = operators.score(query, key, rows, (0, 9), scale=0.5, first_key=first_key)
    assert_close(got, exact(query, key, rows, (0, 9), 0.5, first_key))
    torch.testing.assert_close(got.sum(), torch.tensor(1 / 3))


@pytest.mark.parametrize("bound", [0, 9, 10, 40, 41, 42, 62, 63, 64, 126, 127, 128, 136, 137, 138, 265, 266])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_among_the_columns(operators, bound, dtype):
    """Its bound is at, before and after the ends of blocks of keys and of columns; all other rows see more."""
    query, key, rows = make(heads=4, groups=2, count=20, length=300, dim=8, dtype=dtype)
    rows = rows.clone()
    rows[0, 7] = bound
    rows[0, 8] = -1
    key[:, :, 290:] *= 5  # where most of what other rows give goes
    got = operators.score(query, key, rows, (10, 266), scale=0.3)
    assert_close(got, exact(query, key, rows, (10, 266), 0.3), 4e-6)


@pytest.mark.parametrize("scale", [-0.6, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_factor_that_turns_the_order_of_logits_around(operators, scale, dtype):
    query, key, rows = make(batch=2, heads=4, groups=2, count=7, length=150, dim=8, dtype=dtype)
    rows = torch.cat([rows[:1] - 60, rows[1:]])
    assert_close(
        operators.score(query, key, rows, (3, 140), scale=scale), exact(query, key, rows, (3, 140), scale), 4e-6
    )


def splitting(processors):
    """As on a device of so many processors, where no split has too few keys."""
    return mock.patch.multiple(triton_module, processors=lambda _: processors, MIN_KEYS_PER_SPLIT=1)


@pytest.mark.parametrize("processors", [1, 3, 8, 200])
@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 23), (torch.float16, 90)])
def test_any_split_of_keys_and_rows(operators, processors, dtype, count):
    """On one sample and on two; 3 key heads and 3 tiles of rows are no multiples of the parts."""
    for batch, length in ((1, 290 if dtype == torch.float16 else 97), (2, 40)):
        query, key, _ = make(batch, heads=6, groups=3, count=count, length=length, dim=8, dtype=dtype)
        rows = torch.arange(count).mul(7).remainder(length).expand(batch, -1).contiguous()  # most end in an early split
        rows[:, 5] = -1
        first_key = torch.tensor([33, 0])[:batch]
        problem = query, key, rows, (3, length - 5), 0.5, first_key
        want = exact(*problem)
        options = {"scale": 0.5, "first_key": first_key}
        with splitting(processors):
            got = operators.score(*problem[:4], **options)
            assert processors != 8 or torch.equal(operators.score(*problem[:4], **options), got)
        assert_close(got, want, 4e-6)


def test_how_work_is_split():
    device = torch.device("cuda")
    for processors in (1, 3, 8, 200):
        with mock.patch.object(triton_module, "processors", return_value=processors):
            for rows, element_size in product((1, 64, 448), (2, 4)):
                tile, block = triton_module.tiles(rows, 64, element_size)
                for length in (1, 255, 256, 257, 6402, 300_000):
                    splits, keys = triton_module.key_splits(2, length, tile, device)
                    assert 1 <= splits <= triton_module.JOINED // tile.m
                    assert keys % tile.n == 0
                    assert (splits - 1) * keys < length <= splits * keys
                    assert splits * 2 <= max(2, processors * 16 // tile.warps)
                for blocks, row_tiles in product((1, 7, 49, 10_000), (1, 7, 28)):
                    parts, each = triton_module.row_parts(blocks, row_tiles, block, device)
                    assert (parts - 1) * each < row_tiles <= parts * each
                    assert parts * blocks <= max(blocks, processors * 16 // block.warps)


def test_any_number_of_samples_and_heads_is_a_grid(monkeypatch):
    """A grid's second and third numbers end at 65,535, and a vision tower scores every frame as a sample."""
    grids = []

    class Launched:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(triton_module, "normaliser_kernel", Launched())
    monkeypatch.setattr(triton_module, "column_kernel", Launched())
    batch, groups = 40_000, 2
    query, rows = torch.zeros(1, groups, 1, 1).expand(batch, -1, -1, -1), torch.zeros(batch, 1, dtype=torch.int64)
    triton_module.score_triton(query, query, rows, 0, 1, 1.0, None)
    assert grids == [(batch * groups, 1), (batch, 1)]


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (14, 2), (7, 1)])
def test_query_heads_read_their_own_key_head(operators, heads, groups):
    query, key, rows = make(batch=2, heads=heads, groups=groups, count=5, length=23)
    assert_close(operators.score(query, key, rows, (2, 19), scale=0.5), measured(query, key, rows, (2, 19), 0.5))


def test_a_row_attends_to_itself_and_to_nothing_after_it(operators):
    key = torch.zeros(1, 1, 4, 2)
    got = operators.score(torch.ones(1, 1, 1, 2), key, torch.tensor([[1]]), (0, 4), scale=1.0)
    assert got.tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_left_padding_ends_at_the_first_key(operators):
    key = torch.zeros(1, 1, 4, 2)
    got = operators.score(
        torch.ones(1, 1, 1, 2), key, torch.tensor([[2]]), (0, 4), scale=1.0, first_key=torch.tensor([1])
    )
    assert got.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_mean_over_rows_and_heads_each_normalised_on_its_own(operators):
    # rows 0 and 3 over equal keys: probabilities 1 and 1/4
    got = operators.score(torch.ones(1, 2, 2, 1), torch.zeros(1, 1, 4, 1), torch.tensor([[0, 3]]), (0, 4), scale=1.0)
    assert got.tolist() == [[0.625, 0.125, 0.125, 0.125]]


def test_rows_not_in_use_do_not_count_in_the_mean(operators):
    query, key, rows = make(count=3, length=9)
    padded = torch.cat([rows[:, :1], torch.full((1, 2), -1), rows[:, 1:]], 1)
    wide = torch.cat([query[:, :, :1], torch.full((1, 2, 2, 4), NAN), query[:, :, 1:]], 2)
    torch.testing.assert_close(
        operators.score(wide, key, padded, (0, 9), scale=0.5),
        operators.score(query, key, rows, (0, 9), scale=0.5),
        rtol=2e-6,
        atol=1e-9,
    )


def test_a_sample_without_rows_scores_zero_beside_one_with_rows(operators):
    query, key, rows = make(batch=2)
    rows = torch.stack([torch.full((3,), -1), rows[1]])
    query[0], key[0] = NAN, NAN
    got = operators.score(query, key, rows, (1, 12), scale=0.5)
    assert got[0].tolist() == [0.0] * 11
    assert_close(got, measured(query, key, rows, (1, 12), 0.5))


def test_no_row_at_all(operators):
    query, key, rows = make(count=0)
    assert operators.score(query, key, rows, (0, 17), scale=1.0).tolist() == [[0.0] * 17]


def test_no_key_at_all(operators):
    query, key, _ = make(length=0)
    rows = torch.full((1, 3), -1)
    assert operators.score(query, key, rows, (0, 0), scale=1.0).shape == (1, 0)


@pytest.mark.parametrize("at", [0, 5, 17])
def test_no_column(operators, at):
    query, key, rows = make()
    assert operators.score(query, key, rows, (at, at), scale=1.0).shape == (1, 0)


def test_a_column_slice_is_a_slice_of_all_columns(operators):
    query, key, rows = make(count=6, length=31)
    part, whole = (operators.score(query, key, rows, columns, scale=0.5) for columns in ((4, 20), (0, 31)))
    torch.testing.assert_close(part, whole[:, 4:20], rtol=1e-6, atol=1e-9)


def test_left_padding_changes_no_score(operators):
    """A sample scores alike alone and in a batch where it is padded with garbage."""
    query, key, rows = make(batch=3, heads=4, groups=2, count=3, length=20, seed=5)
    first_key = torch.tensor([0, 7, 13])
    for b, first in enumerate(first_key.tolist()):
        key[b, :, :first] = NAN
    got = operators.score(query, key, rows, (0, 20), scale=0.5, first_key=first_key)
    for b, first in enumerate(first_key.tolist()):
        own = slice(b, b + 1)
        alone = operators.score(query[own], key[own, :, first:], rows[own] - first, (0, 20 - first), scale=0.5)
        torch.testing.assert_close(got[own, first:], alone, rtol=1e-6, atol=1e-9)
        assert (got[b, :first] == 0).all()


def test_no_first_key_is_first_key_zero(operators):
    query, key, rows = make(batch=2)
    zero = torch.zeros(2, dtype=torch.int64)
    none, zero = (operators.score(query, key, rows, (0, 17), scale=0.5, first_key=first) for first in (None, zero))
    torch.testing.assert_close(none, zero, rtol=1e-6, atol=1e-9)


def test_large_logits_do_not_overflow(operators):
    query, key, rows = make(count=4, length=30, spread=500.0)
    assert_close(operators.score(query, key, rows, (0, 30), scale=1.0), measured(query, key, rows, (0, 30), 1.0), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_beyond_its_range(operators, dtype):
    query = torch.tensor([[[[300.0], [300.0]]]], dtype=dtype)
    key = torch.tensor([[[[300.0], [301.0], [300.0]]]], dtype=dtype)  # products of 90000, above fp16's 65504
    rows = torch.tensor([[1, 2]])
    assert_close(operators.score(query, key, rows, (0, 3), scale=0.01), measured(query, key, rows, (0, 3), 0.01), 1e-4)


def eager(query, key, rows, columns, scale):
    """The model's own eager attention in the inputs' precision, softmax in fp32, sliced and averaged."""
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, 1)
    hidden = torch.arange(key.shape[2]) > rows[:, None, :, None]
    logits = (query @ key.transpose(2, 3) * scale).masked_fill(hidden, torch.finfo(query.dtype).min)
    probability = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    return probability[..., columns[0] : columns[1]].mean((1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [17, 403])
def test_no_less_accurate_than_eager_attention(operators, dtype, length):
    columns, scale = (3, length - 5), 16**-0.5
    problem = make(heads=4, groups=2, count=7, length=length, dim=16, dtype=dtype)
    want = measured(*problem, columns, scale)
    error = (operators.score(*problem, columns, scale=scale).double() - want).abs().max()
    rounding = torch.finfo(torch.float32).eps * want.max()
    assert error <= (eager(*problem, columns, scale).double() - want).abs().max() + rounding


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulated_in_fp32_whatever_the_inputs(operators, dtype):
    problem = make(heads=4, groups=2, count=5, length=41, dim=8, dtype=dtype)
    assert_close(operators.score(*problem, (3, 36), scale=0.35), measured(*problem, (3, 36), 0.35))


def test_non_contiguous_inputs(operators):
    query, key, rows = make(batch=2, heads=4, groups=2, count=5, length=23, dim=6)
    want = operators.score(query, key, rows.contiguous(), (1, 20), scale=0.4)
    # [B, T, H, D] and [B, L, G, D] in memory, as projections leave them, and keys cut out of a longer cache
    strided_query = query.transpose(1, 2).contiguous().transpose(1, 2)
    cache = torch.full((2, 2, 50, 12), NAN)
    cache[:, :, 5:28, ::2] = key
    strided_rows = torch.stack([rows, rows], -1)[..., 0]
    got = operators.score(strided_query, cache[:, :, 5:28, ::2], strided_rows, (1, 20), scale=0.4)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_of_every_kind(operators, dtype):
    """Queries as a projection leaves them, keys shared by all samples, in a longer cache, or as projected."""
    query, key, rows = make(batch=2, heads=4, groups=2, count=20, length=70, dim=16, dtype=dtype)
    want = exact(query, key[:1].expand(2, -1, -1, -1), rows, (2, 66), 0.3)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    cache = torch.full((1, 2, 99, 16), NAN, dtype=dtype)
    cache[:, :, 4:74] = key[:1]
    shared = cache[:, :, 4:74].expand(2, -1, -1, -1)
    assert_close(operators.score(query, shared, rows, (2, 66), scale=0.3), want, 4e-6)
    apart = torch.full((2, 70, 3, 16), NAN, dtype=dtype)  # [B, L, G, D], beside the values
    apart[:, :, :2] = key[:1].transpose(1, 2)
    assert_close(operators.score(query, apart.transpose(1, 2)[:, :2], rows, (2, 66), scale=0.3), want, 4e-6)


def test_same_bits_twice(operators):
    query, key, rows = make(batch=2, heads=14, groups=2, count=5, length=103, dim=8)
    first, second = (operators.score(query, key, rows, (3, 95), scale=0.35) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("elements", [1, 200, 2 * 4 * 40, 2 * 4 * 40 * 3, 2 * 4 * 40 * 7])
def test_the_chunk_size_of_the_rows_changes_nothing(monkeypatch, elements):
    query, key, rows = make(batch=2, heads=4, groups=2, count=7, length=40, dim=6, seed=3)
    rows = rows.clone()
    rows[0, 2:5], rows[1, 6] = -1, -1
    first_key = torch.tensor([0, 11])
    whole = score_reference(query, key, rows, (5, 33), scale=0.4, first_key=first_key)
    monkeypatch.setattr(score_module, "BUFFER_ELEMENTS", elements)
    chunked = score_reference(query, key, rows, (5, 33), scale=0.4, first_key=first_key)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-7)
    assert_close(chunked, measured(query, key, rows, (5, 33), 0.4, first_key))


def test_largest_sees_a_buffer():
    with Outputs() as seen:
        torch.zeros(30, 1) @ torch.zeros(1, 40)
    assert max(seen.all) == 1200


@pytest.mark.parametrize("rows_at_once", [2, 3])
def test_neither_the_attention_map_nor_all_rows_of_all_heads_exist(monkeypatch, rows_at_once):
    heads, groups, count, length, dim = 4, 2, 8, 64, 2
    monkeypatch.setattr(score_module, "BUFFER_ELEMENTS", rows_at_once * heads * length)
    query, key, rows = make(1, heads, groups, count, length, dim)
    with Outputs() as seen:
        score_reference(query, key, rows, (5, 50), scale=0.7)
    assert max(seen.all) < min(length * length, heads * count * length)
    assert max(seen.all) <= max(rows_at_once * heads * length, groups * length * dim, count * heads * dim)


@pytest.mark.parametrize(
    ("heads", "groups", "dim", "length", "count"), [(14, 2, 64, 6273 + 113, 100), (28, 4, 128, 6273 + 130, 120)]
)
def test_buffers_at_real_sizes(heads, groups, dim, length, count):
    """On the meta device, where there is also no value that the host could read."""
    query = torch.empty(1, heads, count, dim, device="meta")
    key = torch.empty(1, groups, length, dim, device="meta")
    rows = torch.empty(1, count, dtype=torch.int64, device="meta")
    first_key = torch.empty(1, dtype=torch.int64, device="meta")
    with Outputs() as seen:
        result = score_reference(query, key, rows, (14, 14 + 6272), scale=dim**-0.5, first_key=first_key)
    assert result.shape == (1, 6272)
    assert max(seen.all) <= max(score_module.BUFFER_ELEMENTS, key.numel())
    assert max(seen.all) < min(length * length, heads * count * length)


GOOD = {
    "query": torch.zeros(2, 4, 3, 8),
    "key": torch.zeros(2, 2, 10, 8),
    "rows": torch.full((2, 3), 9),
    "columns": (1, 7),
    "scale": 1.0,
}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"query": torch.zeros(4, 3, 8)}, "query"),
        ({"query": torch.zeros(1, 4, 3, 8)}, "query"),
        ({"query": torch.zeros(2, 4, 3, 7)}, "query"),
        ({"query": torch.zeros(2, 5, 3, 8)}, "query"),
        ({"query": torch.zeros(2, 1, 3, 8)}, "query"),
        ({"key": torch.zeros(2, 10, 8)}, "key"),
        ({"key": torch.zeros(2, 3, 10, 8)}, "key"),
        ({"key": torch.zeros(2, 0, 10, 8)}, "key"),
        ({"rows": torch.full((2, 4), 9)}, "rows"),
        ({"rows": torch.full((1, 3), 9)}, "rows"),
        ({"rows": torch.full((3,), 9)}, "rows"),
        ({"columns": (-1, 5)}, "columns"),
        ({"columns": (5, 4)}, "columns"),
        ({"columns": (0, 11)}, "columns"),
        ({"columns": (11, 11)}, "columns"),
        ({"first_key": torch.tensor([0])}, "first_key"),
        ({"first_key": torch.zeros(2, 1, dtype=torch.int64)}, "first_key"),
        ({"query": torch.zeros(2, 4, 3, 8).half()}, "query"),
        ({"key": torch.zeros(2, 2, 10, 8).bfloat16()}, "key"),
    ],
)
def test_wrong_arguments_are_named(operators, wrong, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        operators.score(**{**GOOD, **wrong})


@pytest.mark.parametrize("impl", ["nonsense", "Reference"])
def test_unknown_implementation(impl):
    with pytest.raises(ValueError, match="impl"):
        score(**GOOD, impl=impl)


@pytest.mark.parametrize("change", ["double", "wide"])
def test_what_the_kernels_do_not_take_is_said_before_anything_runs(change):
    query, key, rows = make(dim=257 if change == "wide" else 4)
    if change == "double":
        query, key = query.double(), key.double()
    with pytest.raises(ValueError, match=rf"'triton' takes.*{'257' if change == 'wide' else 'float64'}.*'reference'"):
        score(query.to("meta"), key.to("meta"), rows.to("meta"), (0, 9), scale=1.0, impl="triton")
    assert_close(score(query, key, rows, (0, 9), scale=0.1, impl="reference"), exact(query, key, rows, (0, 9), 0.1))


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_names_of_the_reference(impl):
    query, key, rows = make()
    assert torch.equal(
        score(query, key, rows, (0, 9), scale=1.0, impl=impl), score(query, key, rows, (0, 9), scale=1.0)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_changes_nothing(operators, dtype):
    query, key = make(1, 4, 2, 6, 200, 32, spread=3.0, dtype=dtype)[:2]
    rows = torch.arange(194, 200)[None]
    expected = operators.score(query, key, rows, (5, 190), scale=0.18)
    with torch.autocast(operators.device.type, torch.bfloat16):
        assert torch.equal(operators.score(query, key, rows, (5, 190), scale=0.18), expected)


def test_every_sample_s_first_key_is_its_own_whatever_the_stride(operators):
    query, key, rows = make(batch=3, length=20)
    first_key = torch.tensor([[0, 19], [7, 19], [13, 19]])[:, 0]
    got = operators.score(query, key, rows, (0, 20), scale=0.5, first_key=first_key)
    assert_close(got, exact(query, key, rows, (0, 20), 0.5, first_key), 4e-6)
