"""`select` in Triton: a program for each segment of each sample, its keys in registers. Nothing is sorted.

1. Scores become integers in the same order, 0 for what is not prunable. The quota's threshold is the least key that no
   more than the quota's tokens lie above. It is searched for between the least and the greatest key: two keys in
   between are counted at a time, and the range falls to a third. What lies above the threshold is taken, and of its
   ties the first, in token order.
2. One token per position: every token puts (key, earlier first) into its position's slot by an integer maximum, which
   no order of execution changes. The best of a position is taken if any of them is; who finds itself there stays.

A segment of more than `LARGE` tokens is cut into pieces, one a program, in two launches. In the first each piece
searches a sample of its segment, the same for all pieces, for two keys that the threshold lies between, as Floyd and
Rivest do; counts its tokens above them; and lists those in between. In the second each piece adds up its segment's
counts, searches the lists, which hold a tenth of the keys, and settles its own tokens. Where the sample was wrong, all
keys are searched.

Cost: scores and positions are read once, 4 + 8 bytes a token, 12 bytes more in a long segment; each piece of which
reads the lists of all others about ten times from L2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FIXED: tl.constexpr = tl.constexpr(-1)  # as `select` has it
PADDING: tl.constexpr = tl.constexpr(-2)

# Tokens of a segment that a program holds in registers: five frames or less, and up to 32 keys a thread.
SMALL, LARGE = 1024, 8192
# Tokens of a piece of a longer segment: no more than `LARGE`, lest three long segments meet in one stretch of them.
CHUNK = 4096
# Tokens that are drawn from a long segment.
SAMPLE = 2048
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _bounds(begin, segment, own, stretches, start, columns):
    """The columns `[first, stop)` of segment `own`. What lies before the first segment comes with it."""
    end = tl.cast(start + columns, tl.int64)
    if segment is None:
        first = tl.load(begin + own)
        stop = tl.load(begin + own + 1, mask=own + 1 < stretches, other=end)
    else:
        first, stop = end, end
        for r in range(0, stretches, 1024):
            stretch = r + tl.arange(0, 1024)
            at = tl.load(begin + stretch, mask=stretch < stretches, other=end)
            ids = tl.load(segment + stretch, mask=stretch < stretches, other=0)
            first = tl.minimum(first, tl.min(tl.where(ids >= own, at, end), 0))
            stop = tl.minimum(stop, tl.min(tl.where(ids > own, at, end), 0))
    first = tl.where(own == 0, 0, tl.minimum(tl.maximum(first - start, 0), columns))
    stop = tl.minimum(tl.maximum(stop - start, 0), columns)
    return first.to(tl.int32), stop.to(tl.int32)


@triton.jit
def _wanted(quota, columns):
    """A segment's quota, within what an int32 holds."""
    return tl.minimum(tl.maximum(tl.load(quota), 0), columns).to(tl.int32)


@triton.jit
def _load(score, position, column, inside, positions):
    """Keys of some columns as uint32, 0 where nothing is prunable; and their positions, or `FIXED`, or `PADDING`."""
    slot = tl.load(position + column, mask=inside, other=PADDING)
    score = tl.load(score + column, mask=inside, other=0.0).to(tl.float32)
    slot = tl.where((slot < FIXED) | (slot >= positions), PADDING, slot).to(tl.int32)
    score = tl.where(score == 0.0, 0.0, score)  # -0 equals 0
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(score == score, key, 1)  # NaN of either sign: below -inf, which is 0x007FFFFF
    return tl.where(slot >= 0, key, 0), slot


@triton.jit
def _narrow(low, high, above, wanted, a, b, above_a, above_b):
    """The range of the threshold, and the keys above its end, once a <= b in `[low, high)` have been counted."""
    beyond_a, beyond_b = above_a > wanted, above_b > wanted
    low = tl.where(beyond_b, b + 1, tl.where(beyond_a, a + 1, low))
    high = tl.where(beyond_b, high, tl.where(beyond_a, b, a))
    above = tl.where(beyond_b, above, tl.where(beyond_a, above_b, above_a))
    return tl.where(above == wanted, high, low), high, above  # exactly the quota: no tie is cut


@triton.jit
def _threshold(key, wanted):
    """The least key that at most `wanted` lie above, 0 where all fit; and how many of its ties fit as well."""
    low, high, above = tl.min(tl.where(key > 0, key, 0xFFFFFFFF), 0), tl.max(key, 0), 0
    if tl.sum((key > 0).to(tl.int32), 0) <= wanted:
        low, high, above = tl.zeros_like(low), tl.zeros_like(high), wanted
    while low < high:
        third = (high - low) // 3
        a, b = low + third, high - 1 - third
        # both counts, of 65,535 at most, in one sum
        count = tl.sum((key > a).to(tl.int32) + ((key > b).to(tl.int32) << 16), 0)
        low, high, above = _narrow(low, high, above, wanted, a, b, count & 0xFFFF, count >> 16)
    return high, wanted - above


@triton.jit
def _empty(best, positions):
    """A program's slots of positions, before anything is in them."""
    for p in range(0, positions, 1024):
        slot = p + tl.arange(0, 1024)
        tl.store(best + slot, tl.full([1024], -(2**63), tl.int64), mask=slot < positions)


@triton.jit
def _claim(key, column):
    """int64 that orders tokens by key, then earlier ones first."""
    return ((key.to(tl.int64) - 2**31) << 32) | (0x7FFFFFFF - column).to(tl.int64)


@triton.jit
def _enter(best, key, slot, column):
    """The best token of each position, into slots that are empty."""
    tl.debug_barrier()
    tl.atomic_max(best + slot, _claim(key, column), mask=key > 0, sem="relaxed", scope="cta")


@triton.jit
def _settle(keep, best, key, slot, column, inside, threshold, fit, DEDUPLICATE: tl.constexpr):
    """Write what stays of some tokens, `fit` ties among them; how many that are."""
    taken = key > threshold
    if fit > 0:
        tie = (key == threshold).to(tl.int32)
        taken = taken | ((tie > 0) & (tl.cumsum(tie, 0) <= fit))
    if DEDUPLICATE:
        tl.debug_barrier()
        # past the first-level cache, which knows nothing of atomics
        holder = tl.load(best + slot, mask=taken, other=0, cache_modifier=".cg")
        taken = taken & (holder == _claim(key, column))
    tl.store(keep + column, taken | (slot == FIXED), mask=inside)
    return tl.sum(taken.to(tl.int32), 0)


@triton.jit
def _whole(score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE: tl.constexpr, BLOCK: tl.constexpr):
    """Settle a segment that fits into a block; the tokens that it keeps."""
    column = first + tl.arange(0, BLOCK)
    key, slot = _load(score, position, column, column < stop, positions)
    if DEDUPLICATE:
        _enter(best, key, slot, column)
    threshold, fit = _threshold(key, wanted)
    return _settle(keep, best, key, slot, column, column < stop, threshold, fit, DEDUPLICATE)


@triton.jit(
    do_not_specialize=["length", "start", "columns", "positions", "stretches", "segments"],
    do_not_specialize_on_alignment=["begin", "segment", "quota"],
)
def select_kernel(
    score, position, begin, segment, quota, keep, kept, best,
    length, start, columns, positions, stretches, segments,
    DEDUPLICATE: tl.constexpr, SMALL: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Grid: segments and blocks of `SMALL` tokens without a score, B."""
    own, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position += sample * length
    keep += sample * length
    if own >= segments:
        token = (own - segments) * SMALL + tl.arange(0, SMALL)
        token += tl.where(token >= start, columns, 0)
        slot = tl.load(position + token, mask=token < length, other=PADDING)
        tl.store(keep + token, slot == FIXED, mask=token < length)
    else:
        begin += sample * stretches
        if segment is not None:
            segment += sample * stretches
        first, stop = _bounds(begin, segment, own, stretches, start, columns)
        wanted = _wanted(quota + sample * segments + own, columns)
        score += sample * columns
        position += start
        keep += start
        best += (sample * segments + own) * positions
        count = 0
        if first < stop:
            if DEDUPLICATE:
                _empty(best, positions)
            if stop - first <= SMALL:
                count = _whole(score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, SMALL)
            elif stop - first <= LARGE:
                count = _whole(score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, LARGE)
        tl.store(kept + sample * segments + own, count.to(tl.int64))


@torch.library.custom_op("adatp::select", mutates_args=())
def select_triton(
    score: Tensor,
    position: Tensor,
    begin: Tensor,
    quota: Tensor,
    segment: Tensor | None,
    start: int,
    positions: int,
    deduplicate: bool,
) -> tuple[Tensor, Tensor]:
    """`adatp_kernels.select.select`; `score` belongs to the tokens from `start` on."""
    batch, length = position.shape
    segments, stretches, columns = quota.shape[1], begin.shape[1], score.shape[1]
    device = position.device
    keep = torch.empty(batch, length, dtype=torch.bool, device=device)
    kept = torch.empty(batch, segments, dtype=torch.int64, device=device)
    best = torch.empty(batch * segments * positions if deduplicate else 0, dtype=torch.int64, device=device)
    with torch.cuda.device_of(position):  # Triton launches on the current device
        select_kernel[(segments + triton.cdiv(length - columns, SMALL), batch)](
            score.contiguous(), position.contiguous(), begin.contiguous(),
            None if segment is None else segment.contiguous(), quota.contiguous(),
            keep.view(torch.uint8), kept, best,
            length, start, columns, positions, stretches, segments,
            DEDUPLICATE=deduplicate, SMALL=SMALL, LARGE=LARGE, **LAUNCH,
        )  # fmt: skip
    return keep, kept


@select_triton.register_fake
def _(score, position, begin, quota, segment, start, positions, deduplicate):
    keep = torch.empty_like(position, dtype=torch.bool, memory_format=torch.contiguous_format)
    return keep, torch.empty_like(quota, memory_format=torch.contiguous_format)
