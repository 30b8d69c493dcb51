"""`select` in Triton: a program for each segment of each sample, its keys in registers. Nothing is sorted.

1. Scores become integers in the same order, 0 for what is not prunable. The quota's threshold is the least key that no
   more than the quota's tokens lie above. It is searched for between the least and the greatest key: two keys in
   between are counted at a time, and the range falls to a third; 21 passes at most, 7 to 9 as scores are. What lies
   above the threshold is taken, and of its ties the first, whose last column is found by the same search.
2. One token per position: every token puts (key, earlier first) into its position's slot by an integer maximum, which
   no order of execution changes. Where a position's best is taken, it stays; what is not the best would not stay.

A segment of more than `LARGE` tokens is cut into pieces, one a program, in two launches. In the first each piece
searches a sample of its segment, the same for all pieces, for two keys that the threshold lies between, as Floyd and
Rivest do; counts its tokens above them; and lists those in between. In the second each piece adds up its segment's
counts, searches the lists of all its pieces, which hold a twentieth of the keys, and settles its own tokens. Where the
sample was wrong, all keys are searched.

Cost: scores and positions are read once, 4 + 8 bytes a token. In a long segment 4 to 8 bytes of keys are written, and
every piece reads the lists, a fifth of a byte a token of the segment, in each of its passes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.launch import Remembered, cdiv, operator

FIXED: tl.constexpr = tl.constexpr(-1)  # as `select` has it
PADDING: tl.constexpr = tl.constexpr(-2)
LAST: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # beyond every column, whose order `^ LAST` turns round
NOBODY: tl.constexpr = tl.constexpr(-(2**63))  # claims a position that no token has

# Tokens of a segment that a program holds in registers: five frames or less, and up to 32 keys a thread.
SMALL, LARGE = 1024, 8192
# Tokens of a piece of a longer segment: no more than `LARGE`, lest three long segments meet in one stretch of them.
CHUNK = 4096
# Tokens that are drawn from a long segment.
SAMPLE = 4096
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _columns(begin, known, start, columns):
    """Where stretches begin among the scored columns; after the last one, where there is no stretch."""
    column = tl.load(begin, mask=known, other=start + columns) - start
    return tl.minimum(tl.maximum(column, 0), columns).to(tl.int32)


@triton.jit
def _bounds(begin, segment, own, stretches, start, columns):
    """The columns `[first, stop)` of segment `own`. What lies before the first segment comes with it."""
    if segment is None:
        first = _columns(begin + own, own < stretches, start, columns)
        stop = _columns(begin + own + 1, own + 1 < stretches, start, columns)
    else:
        first, stop = columns, columns
        for r in range(0, stretches, 256):
            stretch = r + tl.arange(0, 256)
            at = _columns(begin + stretch, stretch < stretches, start, columns)
            ids = tl.load(segment + stretch, mask=stretch < stretches, other=0)
            first = tl.minimum(first, tl.min(tl.where(ids >= own, at, columns), 0))
            stop = tl.minimum(stop, tl.min(tl.where(ids > own, at, columns), 0))
    return tl.where(own == 0, 0, first), stop


@triton.jit
def _wanted(quota, columns):
    """A segment's quota, within what an int32 holds."""
    return tl.minimum(tl.maximum(tl.load(quota), 0), columns).to(tl.int32)


@triton.jit
def _ordered(score):
    """fp32 to uint32 in the same order: -0 equals 0, NaN of either sign is 1 and comes lowest; 0 is no score's."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)  # -inf becomes 0x007FFFFF
    return tl.where(score == score, key, 1)


@triton.jit
def _keys(score, position, keep, best, column, stop, positions, DEDUPLICATE: tl.constexpr):
    """Keys of some columns, 0 where nothing is prunable. What is fixed is kept, and positions get their best."""
    slot = tl.load(position + column, mask=column < stop, other=PADDING)
    value = tl.load(score + column, mask=column < stop, other=0.0)
    prunable = (slot >= 0) & (slot < positions)
    key = tl.where(prunable, _ordered(value.to(tl.float32)), 0)
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
        # both counts, of 32,767 at most, in one sum
        count = tl.sum((key > a).to(tl.int32) + ((key > b).to(tl.int32) << 16), 0)
        low, high, above = _narrow(low, high, above, wanted, a, b, count & 0xFFFF, count >> 16)
    return high, wanted - above


@triton.jit
def _cut(key, column, threshold, fit):
    """The column before which `fit` of the threshold's ties stand: the same search among their columns."""
    cut = 0
    if fit > 0:
        early = tl.where(key == threshold, column ^ LAST, 0).to(tl.uint32)
        latest, _ = _threshold(early, fit)
        cut = latest.to(tl.int32) ^ LAST
    return cut


@triton.jit
def _stay(keep, key, column, mask, threshold, cut):
    """Keep what is taken of some tokens; how many that are."""
    stays = mask & ((key > threshold) | ((key == threshold) & (column < cut)))
    tl.store(keep + column, stays, mask=stays)
    return tl.sum(stays.to(tl.int32), 0)


@triton.jit
def _best_stay(keep, claim, first, stop, threshold, cut):
    """Keep what is taken of the tokens in `[first, stop)` that have claimed a position; how many that are."""
    key = ((claim >> 32) + 2**31).to(tl.uint32)  # 0 of nobody's
    column = (claim & LAST).to(tl.int32) ^ LAST
    return _stay(keep, key, column, (column >= first) & (column < stop), threshold, cut)


@triton.jit
def _whole(
    score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Settle a segment that fits into a block; the tokens that it keeps."""
    column = first + tl.arange(0, BLOCK)
    key = _keys(score, position, keep, best, column, stop, positions, DEDUPLICATE)
    threshold, fit = _threshold(key, wanted)
    cut = _cut(key, column, threshold, fit)
    tl.debug_barrier()  # fixed tokens and positions are written
    count = 0
    if DEDUPLICATE:
        for p in range(0, positions, 256):
            slot = p + tl.arange(0, 256)
            # past the first-level cache, which knows nothing of atomics
            claim = tl.load(best + slot, mask=slot < positions, other=NOBODY, cache_modifier=".cg")
            count += _best_stay(keep, claim, first, stop, threshold, cut)
    else:
        count = _stay(keep, key, column, column < stop, threshold, cut)
    return count


@triton.jit
def _piece(begin, segment, piece, stretches, segments, start, columns, LARGE: tl.constexpr, CHUNK: tl.constexpr):
    """A piece's segment, its columns, and the piece's own; none if that segment is settled as a whole.

    A chunk of columns has two pieces, as two long segments may meet in it: the segment's of its first column, and that
    of its last one.
    """
    left = piece // 2 * CHUNK
    right = tl.minimum(left + CHUNK, columns)
    column = tl.where(piece % 2 == 0, left, right - 1)
    own = 0
    for r in range(0, stretches, 256):
        stretch = r + tl.arange(0, 256)
        at = _columns(begin + stretch, stretch < stretches, start, columns)
        ids = stretch
        if segment is not None:
            ids = tl.load(segment + stretch, mask=stretch < stretches, other=0).to(tl.int32)
        own = tl.maximum(own, tl.max(tl.where(at <= column, ids, 0), 0))
    own = tl.minimum(own, segments - 1)
    first, stop = _bounds(begin, segment, own, stretches, start, columns)
    right = tl.minimum(right, stop)
    if (stop - first <= LARGE) | ((piece % 2 == 1) & (first <= left)):
        right = left
    return own, first, stop, tl.maximum(left, first), right


@triton.jit
def _bracket(score, position, first, stop, wanted, positions, SAMPLE: tl.constexpr):
    """Keys that a long segment's threshold lies between, `low < threshold <= high`, unless its sample is off."""
    place = tl.arange(0, SAMPLE).to(tl.uint32) * 2654435769  # multiples of the golden ratio: even, and no period
    column = first + tl.umulhi(place, (stop - first).to(tl.uint32)).to(tl.int32)
    slot = tl.load(position + column)
    value = tl.load(score + column)
    key = tl.where((slot >= 0) & (slot < positions), _ordered(value.to(tl.float32)), 0)
    expected = (wanted.to(tl.int64) * SAMPLE // (stop - first)).to(tl.int32)
    margin: tl.constexpr = SAMPLE // 36  # 3.5 standard deviations of such a count at most, 3 % of the sample
    low, _ = _threshold(key, expected + margin)
    high, _ = _threshold(key, tl.maximum(expected - margin, 0))
    high = tl.where(expected < margin, 0xFFFFFFFF, high)
    return tl.where(low > 0, low - 1, low), high


@Remembered
@triton.jit(
    do_not_specialize=["length", "start", "columns", "positions", "stretches", "segments", "pieces"],
    do_not_specialize_on_alignment=["begin", "segment", "quota"],
)
def select_kernel(
    score, position, begin, segment, quota, keep, kept, best, keys, notes,
    length, start, columns, positions, stretches, segments, pieces,
    DEDUPLICATE: tl.constexpr, LONG: tl.constexpr, SMALL: tl.constexpr, LARGE: tl.constexpr, CHUNK: tl.constexpr,
    SAMPLE: tl.constexpr,
):  # fmt: skip
    """Grid: segments, pieces, and blocks of `SMALL` tokens without a score; B.

    Of every piece of a long segment, `keys` `[2, B, C]` holds its tokens' keys, and those in the bracket, from the
    piece's first column on; and `notes` `[B, pieces, 4]` how many are above the bracket, how many in it, and its ends.
    """
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position += sample * length
    keep += sample * length
    if program >= segments + pieces:
        token = (program - segments - pieces) * SMALL + tl.arange(0, SMALL)
        token += tl.where(token >= start, columns, 0)
        slot = tl.load(position + token, mask=token < length, other=PADDING)
        tl.store(keep + token, slot == FIXED, mask=token < length)
    else:
        score += sample * columns
        position += start
        keep += start
        begin += sample * stretches
        quota += sample * segments
        if segment is not None:
            segment += sample * stretches
        best += (sample * (segments + pieces) + program) * positions
        if program < segments:
            first, stop = _bounds(begin, segment, program, stretches, start, columns)
            wanted = _wanted(quota + program, columns)
            count = 0
            if first < stop:
                if stop - first <= SMALL:
                    count = _whole(score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, SMALL)
                elif stop - first <= LARGE:
                    count = _whole(score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, LARGE)
            tl.store(kept + sample * segments + program, tl.cast(count, tl.int64))
        elif LONG:
            own, first, stop, left, right = _piece(
                begin, segment, program - segments, stretches, segments, start, columns, LARGE, CHUNK
            )
            if left < right:
                wanted = _wanted(quota + own, columns)
                low, high = _bracket(score, position, first, stop, wanted, positions, SAMPLE)
                column = left + tl.arange(0, CHUNK)
                key = _keys(score, position, keep, best, column, right, positions, DEDUPLICATE)
                keys += sample * columns
                tl.store(keys + column, key, mask=column < right)
                inside = ((key > low) & (key <= high)).to(tl.int32)
                rank = tl.cumsum(inside, 0) - inside
                bracketed = keys + tl.num_programs(1).to(tl.int64) * columns
                tl.store(bracketed + left + rank, key, mask=inside > 0)
                notes += (sample * pieces + program - segments) * 4
                tl.store(notes, tl.sum((key > high).to(tl.int32), 0))
                tl.store(notes + 1, tl.sum(inside, 0))
                tl.store(notes + 2, low.to(tl.int32, bitcast=True))
                tl.store(notes + 3, high.to(tl.int32, bitcast=True))


@triton.jit
def _count(keys, notes, first, stop, end, whole, a, b, CHUNK: tl.constexpr):
    """Keys above `a` and above `b` in the lists of a long segment's pieces, up to chunk `end`.

    `whole`: not the keys in the bracket, but all.
    """
    above_a, above_b = tl.zeros([16, 256], tl.int32), tl.zeros([16, 256], tl.int32)
    for c in range(first // CHUNK, end, 16):
        chunk = c + tl.arange(0, 16)
        left = tl.maximum(chunk * CHUNK, first)
        size = tl.where(chunk < end, tl.minimum((chunk + 1) * CHUNK, stop) - left, 0)
        if not whole:
            piece = 2 * chunk + (chunk * CHUNK < first)
            size = tl.load(notes + piece.to(tl.int64) * 4 + 1, mask=chunk < end, other=0)
        for i in range(0, tl.max(size, 0), 256):
            at = i + tl.arange(0, 256)
            key = tl.load(keys + left[:, None] + at[None, :], mask=at[None, :] < size[:, None], other=0)
            key = key.to(tl.uint32, bitcast=True)
            above_a += (key > a).to(tl.int32)
            above_b += (key > b).to(tl.int32)
    return tl.sum(above_a), tl.sum(above_b)


@Remembered
@triton.jit(
    do_not_specialize=["length", "start", "columns", "positions", "stretches", "segments"],
    do_not_specialize_on_alignment=["begin", "segment", "quota"],
)
def long_segment_kernel(
    begin, segment, quota, keep, kept, best, keys, notes,
    length, start, columns, positions, stretches, segments,
    DEDUPLICATE: tl.constexpr, LARGE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Settle the pieces of long segments, by what `select_kernel` has left. Grid: pieces, B."""
    piece, pieces, sample = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    begin += sample * stretches
    if segment is not None:
        segment += sample * stretches
    own, first, stop, left, right = _piece(begin, segment, piece, stretches, segments, start, columns, LARGE, CHUNK)
    if left >= right:
        return
    keep += sample * length + start
    keys += sample * columns
    notes += sample * pieces * 4
    wanted = _wanted(quota + sample * segments + own, columns)
    chunks = tl.cdiv(stop, CHUNK)

    above, inside = 0, 0
    for c in range(first // CHUNK, chunks, 256):
        chunk = c + tl.arange(0, 256)
        at = notes + (2 * chunk + (chunk * CHUNK < first)).to(tl.int64) * 4
        above += tl.sum(tl.load(at, mask=chunk < chunks, other=0), 0)
        inside += tl.sum(tl.load(at + 1, mask=chunk < chunks, other=0), 0)
    low = tl.load(notes + piece * 4 + 2).to(tl.uint32, bitcast=True)
    high = tl.load(notes + piece * 4 + 3).to(tl.uint32, bitcast=True)
    whole = (above > wanted) | ((above + inside < wanted) & (low > 0))
    searched = keys
    if whole:
        low, high, above = tl.zeros_like(low), tl.full((), 0xFFFFFFFF, tl.uint32), 0
    else:
        searched += tl.num_programs(1).to(tl.int64) * columns

    beyond = above  # keys above the list's greatest
    while low < high:
        third = (high - low) // 3
        a, b = low + third, high - 1 - third
        above_a, above_b = _count(searched, notes, first, stop, chunks, whole, a, b, CHUNK)
        low, high, above = _narrow(low, high, above, wanted, a, b, beyond + above_a, beyond + above_b)
    fit = tl.where(high > 0, wanted - above, 0)

    cut = 0
    column = left + tl.arange(0, CHUNK)
    if fit > 0:
        upper, lower = _count(searched, notes, first, stop, left // CHUNK, whole, high, high - 1, CHUNK)
        key = tl.load(keys + column, mask=column < right, other=0).to(tl.uint32, bitcast=True)
        cut = _cut(key, column, high, fit - (lower - upper))
    count = 0
    if DEDUPLICATE:
        best += (sample * (segments + pieces) + segments) * positions
        for p in range(0, positions, 256):
            slot = p + tl.arange(0, 256)
            claim = tl.full([256], NOBODY, tl.int64)
            for c in range(first // CHUNK, chunks, 32):
                chunk = c + tl.arange(0, 32)
                of = best + (2 * chunk + (chunk * CHUNK < first)).to(tl.int64) * positions
                known = (chunk < chunks)[:, None] & (slot < positions)[None, :]
                claims = tl.load(of[:, None] + slot[None, :], mask=known, other=NOBODY)
                claim = tl.maximum(claim, tl.max(claims, 0))
            count += _best_stay(keep, claim, left, right, high, cut)
    else:
        key = tl.load(keys + column, mask=column < right, other=0).to(tl.uint32, bitcast=True)
        count = _stay(keep, key, column, column < right, high, cut)
    tl.atomic_add(kept + sample * segments + own, tl.cast(count, tl.int64), sem="relaxed")


@operator("adatp::select")
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
    long = columns > LARGE
    pieces = 2 * cdiv(columns, CHUNK) if long else 0
    device = position.device
    keep = torch.empty(batch, length, dtype=torch.bool, device=device)
    kept = torch.empty(batch, segments, dtype=torch.int64, device=device)
    slots = batch * (segments + pieces) * positions if deduplicate else 0
    best = torch.empty(slots, dtype=torch.int64, device=device)
    keys = torch.empty(2, batch, columns, dtype=torch.int32, device=device) if long else None
    notes = torch.empty(batch, pieces, 4, dtype=torch.int32, device=device) if long else None
    begin, quota, mask = begin.contiguous(), quota.contiguous(), keep.view(torch.uint8)
    segment = None if segment is None else segment.contiguous()
    with torch.cuda.device_of(position):  # Triton launches on the current device
        select_kernel[(segments + pieces + cdiv(length - columns, SMALL), batch)](
            score.contiguous(), position.contiguous(), begin, segment, quota, mask, kept, best, keys, notes,
            length, start, columns, positions, stretches, segments, pieces,
            DEDUPLICATE=deduplicate, LONG=long, SMALL=SMALL, LARGE=LARGE, CHUNK=CHUNK, SAMPLE=SAMPLE, **LAUNCH,
        )  # fmt: skip
        if long:
            long_segment_kernel[(pieces, batch)](
                begin, segment, quota, mask, kept, best, keys, notes,
                length, start, columns, positions, stretches, segments,
                DEDUPLICATE=deduplicate, LARGE=LARGE, CHUNK=CHUNK, **LAUNCH,
            )  # fmt: skip
    return keep, kept


@select_triton.register_fake
def _(score, position, begin, quota, segment, start, positions, deduplicate):
    keep = torch.empty_like(position, dtype=torch.bool, memory_format=torch.contiguous_format)
    return keep, torch.empty_like(quota, memory_format=torch.contiguous_format)
