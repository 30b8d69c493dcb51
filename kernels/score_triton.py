"""`score` in Triton: two passes over the keys, and no attention matrix.

    score[j] = 1 / (H R) * sum over heads h and rows t of  exp2(s[h, t, j] - max[h, t]) / sum[h, t]

with s = scale * log2(e) * query . key, and R the rows in use. A column's sum runs over heads and rows, a row's
normaliser over all keys; nothing can be divided before every key has been seen, so the keys are gone over twice.

1. `normaliser_kernel` is attention without values. The query heads that share a key head lie side by side as rows: keys
   are read once for all of them, and even one text row makes a matrix product. Text rows alone are too few to fill a
   GPU, so the keys are split over programs, and each split leaves its own (max, sum) of every row.
2. `column_kernel` holds a block of keys and goes over the rows, joins their splits, and adds up. Where there are fewer
   blocks than processors the rows are split as well: each part is written down, and the program that comes last adds up
   all parts, always in the same order. Which one that is changes no bit of the result; no float is added atomically.

Cost: 2 H T D (L + C) multiply-adds on tensor cores, H T (L + C) exponentials, and G D (L + C) elements of keys read for
every H/G T / 64 tiles of rows, from L2 after the first. Buffers: 2 H T splits + C parts floats.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from adatp_kernels.device import processors
from adatp_kernels.dispatch import interpreted

MAX_DIM = 256
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)

# A split of fewer keys than this costs more to join than it gains in parallelism.
MIN_KEYS_PER_SPLIT = 256
# (max, sum) pairs that the second pass joins for each tile of rows: a small part of the tile's products.
JOINED = 512
# Programs for each processor: the second hides the latency of the first.
PROGRAMS_PER_PROCESSOR = 2
# Eight warps hold the tiles without spilling, and Hopper's two groups of four share the keys.
LAUNCH = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}


class Tiles(NamedTuple):
    """Block sizes of a launch: `m` rows x `n` keys x `d` of the head dimension."""

    m: int
    n: int
    d: int


def tiles(rows: int, dim: int, element_size: int) -> Tiles:
    """Block sizes for `rows` rows of a key head.

    In half precision 128 keys, 32 KiB of them at most, so that two stages and a tile of queries fit into the 99 KiB of
    sm_86 and sm_89; and 64 rows, the height of Hopper's matrix instructions. Heads above 128 get smaller tiles, which
    fit into registers. Few rows, as FastV's single one, take the smallest height that a tensor core knows; there are
    just these two heights, so that prompts of other lengths compile nothing new. In fp32 the tensor cores would round
    to tf32: plain multiply-adds, in small tiles.
    """
    d = max(16, triton.next_power_of_2(dim))
    if element_size == 4:
        return Tiles(16, 32, d)
    large = d > 128
    return Tiles(16 if rows <= 16 else 32 if large else 64, 32 if large else 128, d)


def key_splits(row_tiles: int, length: int, tile: Tiles, device: torch.device) -> tuple[int, int]:
    """(splits, keys of each): as many as give every processor its programs, and no more than can be joined cheaply."""
    wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors(device), max(1, row_tiles))
    splits = min(wanted, JOINED // tile.m, triton.cdiv(length, MIN_KEYS_PER_SPLIT))
    keys = triton.cdiv(triton.cdiv(length, max(1, splits)), tile.n) * tile.n
    return triton.cdiv(length, keys), keys


def row_parts(column_tiles: int, groups: int, row_tiles: int, device: torch.device) -> tuple[int, int]:
    """(parts of the key heads, parts of each one's tiles of rows), for `column_tiles` blocks of keys."""
    wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors(device), max(1, column_tiles))
    of_groups = min(groups, wanted)
    return of_groups, min(row_tiles, triton.cdiv(wanted, of_groups))


@triton.jit
def _query_tile(
    query, sample, group, row, rows, count, stride_b, stride_h, stride_t,
    REPEATS: tl.constexpr, DIM: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`[BLOCK_M, BLOCK_D]`: row r of a key head is text row r % T of its query head r // T."""
    head = group * REPEATS + row // count
    offset = sample * stride_b + head.to(tl.int64) * stride_h + (row % count).to(tl.int64) * stride_t
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)
    d = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (d < DIM)[None, :]
    return tl.load(query + offset[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def _key_tile(
    key, sample, group, column, stop, stride_b, stride_g, stride_l,
    DIM: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`[BLOCK_N, BLOCK_D]`."""
    offset = sample * stride_b + tl.cast(group, tl.int64) * stride_g + column.to(tl.int64) * stride_l
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)
    d = tl.arange(0, BLOCK_D)
    mask = (column < stop)[:, None] & (d < DIM)[None, :]
    return tl.load(key + offset[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit(
    do_not_specialize=["count", "length", "split_keys", "counters"],
    do_not_specialize_on_alignment=["row_index", "first_key"],
)
def normaliser_kernel(
    query, key, row_index, first_key, row_max, row_sum, counter,
    query_b, query_h, query_t, key_b, key_g, key_l,
    count, length, split_keys, counters, scale,
    GROUPS: tl.constexpr, REPEATS: tl.constexpr, DIM: tl.constexpr, ALIGNED: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(max, sum) of every row's exponentials over one split of the keys. Grid: tiles of rows, splits, B * G."""
    tile, split = tl.program_id(0), tl.program_id(1)
    sample, group = (tl.program_id(2) // GROUPS).to(tl.int64), tl.program_id(2) % GROUPS
    rows = REPEATS * count
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    bound = tl.load(row_index + sample * count + row % count, mask=row < rows, other=-1).to(tl.int32)

    start = split * split_keys
    stop = tl.minimum(tl.minimum(start + split_keys, length), tl.max(bound, 0) + 1)
    if PADDED:
        start = tl.maximum(start, tl.load(first_key + sample).to(tl.int32))
    q = _query_tile(query, sample, group, row, rows, count, query_b, query_h, query_t, REPEATS, DIM, ALIGNED, BLOCK_D)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for n in range(start, stop, BLOCK_N):
        column = n + tl.arange(0, BLOCK_N)
        k = _key_tile(key, sample, group, column, stop, key_b, key_g, key_l, DIM, ALIGNED, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
        visible = (column[None, :] <= bound[:, None]) & (column < stop)[None, :]
        s = tl.where(visible, s, float("-inf"))
        new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen no key yet
        total = total * tl.exp2(m - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
        m = new

    out = ((sample * tl.num_programs(1) + split) * GROUPS + group) * rows + row  # [B, splits, H, T]
    tl.store(row_max + out, m, mask=row < rows)
    tl.store(row_sum + out, total, mask=row < rows)
    # the next kernel counts on zeros, and a launch to write them would cost more than they do
    if (tile == 0) & (split == 0) & (tl.program_id(2) == 0):
        for i in range(0, counters, BLOCK_N):
            at = i + tl.arange(0, BLOCK_N)
            tl.store(counter + at, tl.zeros([BLOCK_N], tl.int32), mask=at < counters)


@triton.jit(
    do_not_specialize=["count", "first_column", "columns", "splits", "row_tiles", "group_parts", "tile_parts"],
    do_not_specialize_on_alignment=["row_index", "first_key", "row_max", "row_sum"],
)
def column_kernel(
    query, key, row_index, first_key, row_max, row_sum, counter, part, out,
    query_b, query_h, query_t, key_b, key_g, key_l,
    count, first_column, columns, splits, row_tiles, group_parts, tile_parts, scale,
    GROUPS: tl.constexpr, REPEATS: tl.constexpr, DIM: tl.constexpr, ALIGNED: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    LSE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Mean over heads and rows of a block of columns. Grid: blocks of columns, parts, B.

    With `LSE`, `row_max` is the natural log-sum-exp of every row, and nothing is left to join.
    """
    block, own, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = REPEATS * count
    parts = group_parts * tile_parts
    within = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    column = first_column + within
    stop = first_column + columns
    first = 0
    if PADDED:
        first = tl.load(first_key + sample).to(tl.int32)

    groups_each, tiles_each = tl.cdiv(GROUPS, group_parts), tl.cdiv(row_tiles, tile_parts)
    first_group, first_tile = (own // tile_parts) * groups_each, (own % tile_parts) * tiles_each
    total = tl.zeros([BLOCK_N], tl.float32)
    for group in range(first_group, tl.minimum(first_group + groups_each, GROUPS)):
        k = _key_tile(key, sample, group, column, stop, key_b, key_g, key_l, DIM, ALIGNED, BLOCK_D)
        for tile in range(first_tile, tl.minimum(first_tile + tiles_each, row_tiles)):
            row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
            bound = tl.load(row_index + sample * count + row % count, mask=row < rows, other=-1).to(tl.int32)
            q = _query_tile(
                query, sample, group, row, rows, count, query_b, query_h, query_t, REPEATS, DIM, ALIGNED, BLOCK_D
            )
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale  # [BLOCK_N, BLOCK_M]
            if LSE:
                at = (sample * GROUPS + group) * rows + row
                m = tl.load(row_max + at, mask=row < rows, other=0.0) * LOG2E
                weight = tl.where(row < rows, 1.0, 0.0)
            else:
                split = tl.arange(0, SPLITS)[:, None]
                at = ((sample * splits + split) * GROUPS + group) * rows + row[None, :]  # [SPLITS, BLOCK_M]
                known = (split < splits) & (row < rows)[None, :]
                maxima = tl.load(row_max + at, mask=known, other=float("-inf"))
                sums = tl.load(row_sum + at, mask=known, other=0.0)
                m = tl.max(maxima, 0)
                m = tl.where(m == float("-inf"), 0.0, m)  # a row that sees no key
                normaliser = tl.sum(sums * tl.exp2(maxima - m[None, :]), 0)
                weight = 1.0 / tl.where(normaliser == 0.0, 1.0, normaliser)
            visible = (column[:, None] <= bound[None, :]) & (column >= first)[:, None]
            p = tl.where(visible, tl.exp2(s - m[None, :]) * weight[None, :], 0.0)
            total += tl.sum(p, 1)

    in_use = 0
    for t in range(0, count, BLOCK_M):
        at = t + tl.arange(0, BLOCK_M)
        in_use += tl.sum((tl.load(row_index + sample * count + at, mask=at < count, other=-1) >= 0).to(tl.int32))
    mean = 1.0 / (GROUPS * REPEATS * tl.maximum(in_use, 1))

    inside = within < columns
    at_out = out + sample * columns + within
    if parts == 1:
        tl.store(at_out, total * mean, mask=inside)
    else:
        at_part = part + sample * parts * columns + within
        tl.store(at_part + own.to(tl.int64) * columns, total, mask=inside)
        tl.debug_barrier()  # all threads have written before one of them counts
        arrived = tl.atomic_add(counter + sample * tl.num_programs(0) + block, 1, sem="acq_rel")
        if arrived == parts - 1:
            total = tl.zeros([BLOCK_N], tl.float32)
            for i in range(parts):
                # past the first-level cache, which knows nothing of what other processors have written
                total += tl.load(at_part + tl.cast(i, tl.int64) * columns, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(at_out, total * mean, mask=inside)


@torch.library.custom_op("adatp::score", mutates_args=())
def score_triton(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    start: int,
    stop: int,
    scale: float,
    first_key: Tensor | None,
    lse: Tensor | None,
) -> Tensor:
    """`adatp_kernels.score.score`; columns are `[start, stop)`."""
    batch, heads, count, dim = query.shape
    groups, length = key.shape[1], key.shape[2]
    columns = stop - start
    _refuse(query)
    if batch * count * columns == 0:
        return query.new_zeros(batch, columns, dtype=torch.float32)
    if interpreted() and query.dtype == torch.bfloat16:  # the interpreter multiplies bf16 wrongly
        query, key = query.float(), key.float()
    query, key = _unit_stride(query), _unit_stride(key)
    rows = rows.contiguous()
    repeats = heads // groups
    tile = tiles(repeats * count, dim, query.element_size())
    row_tiles, column_tiles = triton.cdiv(repeats * count, tile.m), triton.cdiv(columns, tile.n)
    group_parts, tile_parts = row_parts(column_tiles * batch, groups, row_tiles, query.device)
    parts = group_parts * tile_parts

    def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    counter = buffer(batch * column_tiles, dtype=torch.int32)
    out = buffer(batch, columns)
    tensors = (query, key, rows, rows if first_key is None else first_key.contiguous())
    strides = (*query.stride()[:3], *key.stride()[:3])
    options = {
        "GROUPS": groups,
        "REPEATS": repeats,
        "DIM": dim,
        # what Triton knows of strides by itself is whether they are multiples of 16, and 72 is not
        "ALIGNED": all(stride % 8 == 0 for stride in strides),
        "PADDED": first_key is not None,
        "PRECISION": "ieee",  # where there is a choice, which is in fp32
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_D": tile.d,
        **LAUNCH,
    }
    with torch.cuda.device_of(query):  # Triton launches on the current device
        if lse is None:
            splits, split_keys = key_splits(row_tiles * groups * batch, length, tile, query.device)
            row_max, row_sum = buffer(2, batch, splits, heads, count)
            normaliser_kernel[(row_tiles, splits, batch * groups)](
                *tensors, row_max, row_sum, counter, *strides,
                count, length, split_keys, counter.numel(), scale * LOG2E.value, **options,
            )  # fmt: skip
        else:
            splits, row_max, row_sum = 1, lse.contiguous(), lse
            counter.zero_()
        column_kernel[(column_tiles, parts, batch)](
            *tensors, row_max, row_sum, counter, buffer(batch, parts, columns), out, *strides,
            count, start, columns, splits, row_tiles, group_parts, tile_parts, scale * LOG2E.value,
            LSE=lse is not None, SPLITS=JOINED // tile.m, **options,
        )  # fmt: skip
    return out


@score_triton.register_fake
def _(query, key, rows, start, stop, scale, first_key, lse):
    _refuse(query)
    return query.new_empty(query.shape[0], stop - start, dtype=torch.float32)


@register_flop_formula(torch.ops.adatp.score)
def _flops(query, key, rows, start, stop, scale, first_key, lse, *_, out_shape=None, **__):
    """As PyTorch counts, two a multiply-add: the columns, and all keys where the normaliser has to be found."""
    batch, heads, count, dim = query
    return 2 * batch * heads * count * dim * (stop - start + (key[2] if lse is None else 0))


def _refuse(query: Tensor) -> None:
    """What the reference takes and the kernels do not."""
    if query.shape[3] > MAX_DIM:
        raise ValueError(
            f"impl='triton' takes head dimensions up to {MAX_DIM}, got {query.shape[3]}; use impl='reference'"
        )
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"impl='triton' takes float32, float16 or bfloat16, got {query.dtype}; use impl='reference'")


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
