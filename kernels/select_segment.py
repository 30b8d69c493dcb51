"""A segment in a program's registers: its columns, its keys, their threshold, and the tokens that stay."""

import triton
import triton.language as tl

FIXED: tl.constexpr = tl.constexpr(-1)  # the same values as in `select`
PADDING: tl.constexpr = tl.constexpr(-2)
LAST: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # larger than every column; `^ LAST` reverses their order
NOBODY: tl.constexpr = tl.constexpr(-(2**63))  # the claim of a position without a token


@triton.jit
def stretch_columns(begin, known, start, columns):
    """Where stretches begin among the scored columns; after the last one, where there is no stretch."""
    column = tl.load(begin, mask=known, other=start + columns) - start
    return tl.minimum(tl.maximum(column, 0), columns).to(tl.int32)


@triton.jit
def segment_bounds(begin, segment, own, stretches, start, columns):
    """The columns `[first, stop)` of segment `own`. What lies before the first segment comes with it."""
    if segment is None:
        first = stretch_columns(begin + own, own < stretches, start, columns)
        stop = stretch_columns(begin + own + 1, own + 1 < stretches, start, columns)
    else:
        first, stop = columns, columns
        for r in range(0, stretches, 256):
            stretch = r + tl.arange(0, 256)
            at = stretch_columns(begin + stretch, stretch < stretches, start, columns)
            ids = tl.load(segment + stretch, mask=stretch < stretches, other=0)
            first = tl.minimum(first, tl.min(tl.where(ids >= own, at, columns), 0))
            stop = tl.minimum(stop, tl.min(tl.where(ids > own, at, columns), 0))
    return tl.where(own == 0, 0, first), stop


@triton.jit
def segment_quota(quota, columns):
    """A segment's quota, within what an int32 holds."""
    return tl.minimum(tl.maximum(tl.load(quota), 0), columns).to(tl.int32)


@triton.jit
def ordered(score):
    """fp32 to uint32 in the same order: -0 equals 0, NaN of either sign is 1 and comes lowest; 0 is no score's."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)  # -inf becomes 0x007FFFFF
    return tl.where(score == score, key, 1)


@triton.jit
def prunable_keys(score, position, keep, best, column, stop, positions, DEDUPLICATE: tl.constexpr):
    """Keys of some columns, 0 where nothing is prunable. What is fixed is kept, and positions get their best."""
    slot = tl.load(position + column, mask=column < stop, other=PADDING)
    value = tl.load(score + column, mask=column < stop, other=0.0)
    prunable = (slot >= 0) & (slot < positions)
    key = tl.where(prunable, ordered(value.to(tl.float32)), 0)
    tl.store(keep + column, slot == FIXED, mask=column < stop)
    if DEDUPLICATE:
        for p in range(0, positions, 1024):
            empty = p + tl.arange(0, 1024)
            tl.store(best + empty, tl.full([1024], NOBODY, tl.int64), mask=empty < positions)
        tl.debug_barrier()
        claim = ((key.to(tl.int64) - 2**31) << 32) | (column ^ LAST).to(tl.int64)  # by key, then earlier first
        tl.atomic_max(best + slot, claim, mask=prunable, sem="relaxed", scope="cta")
    return key


@triton.jit
def narrow(low, high, above, wanted, a, b, above_a, above_b):
    """The range of the threshold, and the keys above its end, once a <= b in `[low, high)` have been counted."""
    beyond_a, beyond_b = above_a > wanted, above_b > wanted
    low = tl.where(beyond_b, b + 1, tl.where(beyond_a, a + 1, low))
    high = tl.where(beyond_b, high, tl.where(beyond_a, b, a))
    above = tl.where(beyond_b, above, tl.where(beyond_a, above_b, above_a))
    return tl.where(above == wanted, high, low), high, above  # exactly the quota: no tie is cut


@triton.jit
def threshold_of(key, wanted):
    """The least key that at most `wanted` lie above, 0 where all fit; and how many of its ties fit as well."""
    low, high, above = tl.min(tl.where(key > 0, key, 0xFFFFFFFF), 0), tl.max(key, 0), 0
    if tl.sum((key > 0).to(tl.int32), 0) <= wanted:
        low, high, above = tl.zeros_like(low), tl.zeros_like(high), wanted
    while low < high:
        third = (high - low) // 3
        a, b = low + third, high - 1 - third
        # both counts, of 32,767 at most, in one sum
        count = tl.sum((key > a).to(tl.int32) + ((key > b).to(tl.int32) << 16), 0)
        low, high, above = narrow(low, high, above, wanted, a, b, count & 0xFFFF, count >> 16)
    return high, wanted - above


@triton.jit
def tie_cut(key, column, threshold, fit):
    """The column before which `fit` of the threshold's ties stand: the same search among their columns."""
    cut = 0
    if fit > 0:
        early = tl.where(key == threshold, column ^ LAST, 0).to(tl.uint32)
        latest, _ = threshold_of(early, fit)
        cut = latest.to(tl.int32) ^ LAST
    return cut


@triton.jit
def keep_taken(keep, key, column, mask, threshold, cut):
    """Keep what is taken of some tokens; how many that are."""
    stays = mask & ((key > threshold) | ((key == threshold) & (column < cut)))
    tl.store(keep + column, stays, mask=stays)
    return tl.sum(stays.to(tl.int32), 0)


@triton.jit
def keep_best(keep, claim, first, stop, threshold, cut):
    """Keep what is taken of the tokens in `[first, stop)` that have claimed a position; how many that are."""
    key = ((claim >> 32) + 2**31).to(tl.uint32)  # 0 of nobody's
    column = (claim & LAST).to(tl.int32) ^ LAST
    return keep_taken(keep, key, column, (column >= first) & (column < stop), threshold, cut)


@triton.jit
def settle_whole(
    score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Settle a segment that fits into a block; the tokens that it keeps."""
    column = first + tl.arange(0, BLOCK)
    key = prunable_keys(score, position, keep, best, column, stop, positions, DEDUPLICATE)
    threshold, fit = threshold_of(key, wanted)
    cut = tie_cut(key, column, threshold, fit)
    tl.debug_barrier()  # fixed tokens and positions are written
    count = 0
    if DEDUPLICATE:
        for p in range(0, positions, 256):
            slot = p + tl.arange(0, 256)
            # past the first-level cache, which knows nothing of atomics
            claim = tl.load(best + slot, mask=slot < positions, other=NOBODY, cache_modifier=".cg")
            count += keep_best(keep, claim, first, stop, threshold, cut)
    else:
        count = keep_taken(keep, key, column, column < stop, threshold, cut)
    return count
