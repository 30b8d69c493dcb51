"""`score` in Triton: two passes over the keys, and no attention matrix.

    score[j] = 1 / (H R) * sum over heads h and rows t of  exp2(s[h, t, j] - lse2[h, t])

with s = scale * log2(e) * query . key. R is the number of rows in use. lse2 is the base-2 logarithm of the sum of
exp2(s[h, t, i]) over the keys i that row t may attend to. A column's sum runs over heads and rows, and lse2 runs over
all keys. lse2 is known only after all keys were read, so the kernels read the keys twice.

1. `normaliser_kernel` is attention without values. The query heads that share a key head are neighbouring rows. So keys
   are read once for all of them, and even one text row makes a matrix product. The text rows are too few to fill a GPU,
   so the keys are split over programs, and each split writes its own (max, sum) of every row. The last program of a
   tile of rows joins all splits and writes lse2. lse2 is infinite for rows that are not in use or see no key: they add
   exp2(-inf) = 0 to every column. The queries are written too, in the order of the rows and with zeros for rows that
   are not in use, so that the second pass reads whole tiles.
2. `column_kernel` holds a block of keys, loops over the rows, and adds up. If there are fewer blocks than processors,
   the rows are split too: each part is written, and the last program adds up all parts.

The result does not depend on which program is last, because it joins all parts in a fixed order, and no float is added
atomically. Most keys are seen by all rows. Whole blocks of such keys take a loop without a visibility test.

Cost: 2 H T D (L + C) multiply-adds on tensor cores, and H T (L + C) exponentials. A multiprocessor of Hopper computes
16 exponentials a clock: with D = 128 they take as long as the products, with D = 64 twice as long. From L2, the kernels
read G D L elements of keys for each tile of a key head's rows, and H T D elements of queries for each block of columns.
Buffers, with H T rounded up to tiles: H T D elements of queries, and H T (2 splits + 2) + C parts words of 4 bytes.
"""

import triton
import triton.language as tl

from adatp_kernels.launch import Remembered


@triton.jit
def _tile(
    pointer, valid,
    MASKED: tl.constexpr, STRIDE: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`[BLOCK, BLOCK_D]`: rows of `DIM` elements, `STRIDE` apart; 0 past `DIM`, and if `MASKED` where not valid."""
    d = tl.arange(0, BLOCK_D)
    at = pointer + (tl.arange(0, BLOCK)[:, None] * STRIDE + d[None, :])
    if MASKED:
        return tl.load(at, mask=valid[:, None] & (d < DIM)[None, :], other=0.0)
    if DIM == BLOCK_D:
        return tl.load(at)
    return tl.load(at, mask=(d < DIM)[None, :], other=0.0)


@triton.jit
def _take_in(
    m, total, q, key, bound, begin, end, scale,
    MASKED: tl.constexpr, STRIDE: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(max, sum) of every row with the keys `[begin, end)` taken in, which all rows see unless `MASKED`; to base 2."""
    n = tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        k = _tile(key + tl.cast(first, tl.int64) * STRIDE, first + n < end, MASKED, STRIDE, DIM, BLOCK_N, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            s = tl.where(first + n[None, :] <= bound[:, None], s, float("-inf"))
        # scaled before it is kept: a multiply-add of the kept one would not be 0 where the maximum stays the same
        new = tl.maximum(m, tl.max(s, 1) * scale)
        shift = new
        if MASKED:
            shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen no key yet
        total = total * tl.exp2(m - shift) + tl.sum(tl.exp2(s * scale - shift[:, None]), 1)
        m = new
    return m, total


@triton.jit
def _log_sum_exp(m, total, in_use):
    """Of (max, sum) pairs, to base 2; infinite for rows that are not in use or have seen no key."""
    seen = in_use & (total != 0.0)
    return tl.where(seen, m + tl.log2(tl.where(seen, total, 1.0)), float("inf"))


@Remembered
@triton.jit(
    do_not_specialize=["count", "length", "row_tiles", "splits", "split_keys"],
    do_not_specialize_on_alignment=["row_index", "first_key"],
)
def normaliser_kernel(
    query, key, row_index, first_key, queries, bounds, lse2, pairs, arrivals,
    query_b, query_h, query_t, key_b, key_g,
    count, length, row_tiles, splits, split_keys, scale,
    GROUPS: tl.constexpr, REPEATS: tl.constexpr, DIM: tl.constexpr, STRIDE: tl.constexpr, ALIGNED: tl.constexpr,
    PADDED: tl.constexpr, NEGATED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of every row over the keys that it sees; queries in order. Grid: B G tiles of rows, splits."""
    tile, split = tl.program_id(0), tl.program_id(1)
    sample = (tile // (GROUPS * row_tiles)).to(tl.int64)
    group = (tile // row_tiles % GROUPS).to(tl.int64)
    within = tl.arange(0, BLOCK_M)
    # row r of a key head is text row r % T of its query head r // T
    row = tile % row_tiles * BLOCK_M + within
    text, head = row % count, group * REPEATS + row // count
    bound = tl.load(row_index + sample * count + text, mask=row < REPEATS * count, other=-1).to(tl.int32)
    in_use = bound >= 0
    offset = sample * query_b + head * query_h + text.to(tl.int64) * query_t
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)
    d = tl.arange(0, BLOCK_D)[None, :]
    q = tl.load(query + offset[:, None] + d, mask=in_use[:, None] & (d < DIM), other=0.0)  # [BLOCK_M, BLOCK_D]
    if NEGATED:
        q = -q
    at_row = tile.to(tl.int64) * BLOCK_M + within
    if split == 0:
        tl.store(queries + at_row[:, None] * BLOCK_D + d, q)
        tl.store(bounds + at_row, bound)

    start = split * split_keys
    last = tl.minimum(start + split_keys, length) - 1
    if PADDED:
        start = tl.maximum(start, tl.load(first_key + sample).to(tl.int32))
    bound = tl.minimum(bound, last)
    stop = tl.max(bound, 0) + 1
    seen_by_all = tl.minimum(tl.min(tl.where(in_use, bound, last), 0) + 1, stop)
    whole = start + tl.maximum(seen_by_all - start, 0) // BLOCK_N * BLOCK_N
    at = sample * key_b + group * key_g
    if ALIGNED:
        at = tl.multiple_of(at, 8)
    key += at
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    m, total = _take_in(m, total, q, key, bound, start, whole, scale, False, STRIDE, DIM, PRECISION, BLOCK_N, BLOCK_D)
    m, total = _take_in(m, total, q, key, bound, whole, stop, scale, True, STRIDE, DIM, PRECISION, BLOCK_N, BLOCK_D)

    if splits == 1:
        tl.store(lse2 + at_row, _log_sum_exp(m, total, in_use))
    else:
        at_pairs = pairs + tile.to(tl.int64) * splits * (2 * BLOCK_M) + within
        at_own = at_pairs + split * (2 * BLOCK_M)
        tl.store(at_own, m)
        tl.store(at_own + BLOCK_M, total)
        tl.debug_barrier()  # all threads have written before one of them counts
        arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
        if arrived == splits - 1:
            i = tl.arange(0, SPLITS)[:, None]
            at_all = at_pairs[None, :] + i * (2 * BLOCK_M)  # [SPLITS, BLOCK_M]
            # past the first-level cache, which knows nothing of what other processors have written
            maxima = tl.load(at_all, mask=i < splits, other=float("-inf"), cache_modifier=".cg")
            sums = tl.load(at_all + BLOCK_M, mask=i < splits, other=0.0, cache_modifier=".cg")
            m = tl.max(maxima, 0)
            shift = tl.where(m == float("-inf"), 0.0, m)
            total = tl.sum(sums * tl.exp2(maxima - shift[None, :]), 0)
            tl.store(lse2 + at_row, _log_sum_exp(m, total, in_use))


@triton.jit
def _add_rows(
    total, k, column, queries, bounds, lse2, begin, end, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`total` and what the tiles of rows `[begin, end)` give to each column, all of which they see unless `MASKED`."""
    m = tl.arange(0, BLOCK_M)
    for tile in range(begin, end):
        at = tl.cast(tile, tl.int64) * BLOCK_M
        q = _tile(queries + at * BLOCK_D, None, False, BLOCK_D, BLOCK_D, BLOCK_M, BLOCK_D)
        shift = tl.load(lse2 + at + m)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        p = tl.exp2(s * scale - shift[None, :])
        if MASKED:
            p = tl.where(column[:, None] <= tl.load(bounds + at + m)[None, :], p, 0.0)
        total += tl.sum(p, 1)
    return total


@Remembered
@triton.jit(
    do_not_specialize=["count", "first_column", "columns", "row_tiles", "head_rows", "tiles_each"],
    do_not_specialize_on_alignment=["row_index", "first_key", "arrivals"],
)
def column_kernel(
    queries, bounds, lse2, key, row_index, first_key, part, out, arrivals,
    key_b, key_g,
    count, first_column, columns, row_tiles, head_rows, tiles_each, scale,
    GROUPS: tl.constexpr, REPEATS: tl.constexpr, DIM: tl.constexpr, STRIDE: tl.constexpr, ALIGNED: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean over heads and rows of a block of columns. Grid: B blocks of columns, parts of the tiles of rows.

    A key head has `head_rows` rows in memory, of which `row_tiles` tiles hold all that are in use.
    """
    own, parts = tl.program_id(1), tl.num_programs(1)
    blocks = tl.cdiv(columns, BLOCK_N)
    block, sample = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    within = block * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    column = first_column + within
    inside = within < columns

    used = tl.zeros([BLOCK_N], tl.int32)
    lowest = tl.full([BLOCK_N], 0x7FFFFFFF, tl.int32)
    for t in range(0, count, BLOCK_N):
        at = t + tl.arange(0, BLOCK_N)
        bound = tl.load(row_index + sample * count + at, mask=at < count, other=-1).to(tl.int32)
        used += (bound >= 0).to(tl.int32)
        lowest = tl.where(bound >= 0, tl.minimum(lowest, bound), lowest)
    in_use = tl.sum(used, 0)
    last_column = first_column + tl.minimum((block + 1) * BLOCK_N, columns) - 1
    seen_by_all = (in_use > 0) & (last_column <= tl.min(lowest, 0))

    total = tl.zeros([BLOCK_N], tl.float32)
    first = own * tiles_each
    last = tl.minimum(first + tiles_each, GROUPS * row_tiles)
    for group in range(first // row_tiles, tl.cdiv(last, row_tiles)):
        at = sample * key_b + tl.cast(group, tl.int64) * key_g
        if ALIGNED:
            at = tl.multiple_of(at, 8)
        at += tl.cast(first_column + block * BLOCK_N, tl.int64) * STRIDE
        k = _tile(key + at, inside, True, STRIDE, DIM, BLOCK_N, BLOCK_D)
        at = tl.multiple_of((sample * GROUPS + group) * head_rows, BLOCK_M)
        rows = queries + at * BLOCK_D, bounds + at, lse2 + at
        begin = tl.maximum(first - group * row_tiles, 0)
        end = tl.minimum(last - group * row_tiles, row_tiles)
        if seen_by_all:
            total = _add_rows(total, k, column, *rows, begin, end, scale, False, PRECISION, BLOCK_M, BLOCK_D)
        else:
            total = _add_rows(total, k, column, *rows, begin, end, scale, True, PRECISION, BLOCK_M, BLOCK_D)
    if PADDED:
        total = tl.where(column >= tl.load(first_key + sample), total, 0.0)

    mean = 1.0 / (GROUPS * REPEATS * tl.maximum(in_use, 1))
    at_out = out + sample * columns + within
    if parts == 1:
        tl.store(at_out, total * mean, mask=inside)
    else:
        at_part = part + sample * parts * columns + within
        tl.store(at_part + own.to(tl.int64) * columns, total, mask=inside)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + tl.program_id(0), 1, sem="acq_rel")
        if arrived == parts - 1:
            total = tl.zeros([BLOCK_N], tl.float32)
            for i in range(parts):
                total += tl.load(at_part + tl.cast(i, tl.int64) * columns, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(at_out, total * mean, mask=inside)
