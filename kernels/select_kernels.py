"""`select` in Triton: a program for each segment of each sample, its keys in registers. Nothing is sorted.

1. Scores become integers (keys) in the same order; a token that is not prunable gets 0. The threshold is the smallest
   key such that at most the quota's number of tokens have a larger key. It is searched between the smallest and the
   largest key: each pass counts the tokens above two keys in between, and a third of the range remains. This takes at
   most 21 passes, 7 to 9 for usual scores. Tokens above the threshold are taken, and then the first tokens with a key
   equal to it. The last column of these is found by the same search.
2. One token per position: every token puts (key, earlier first) into the slot of its position by an integer maximum,
   whose result does not depend on the order of execution. The best token of a position stays if it is taken.

A segment of more than `LARGE` tokens is cut into pieces, with a program for each, in two launches. In the first launch,
each piece searches a sample of its segment for two keys around the threshold, as Floyd and Rivest do. The sample is the
same for all pieces. The piece counts its tokens above the two keys, and lists those in between. In the second launch,
each piece adds up the counts of its segment, searches the lists of all its pieces (a twentieth of the keys), and
settles its own tokens. If the sample was misleading, all keys are searched.

Cost: scores and positions are read once, 4 + 8 bytes a token. In a long segment, 4 to 8 bytes of keys are written for
each token. In each pass, every piece reads the lists: a fifth of a byte for each token of the segment.
"""

import triton
import triton.language as tl

from adatp_kernels.launch import Remembered
from adatp_kernels.select_segment import (
    FIXED,
    NOBODY,
    PADDING,
    keep_best,
    keep_taken,
    narrow,
    ordered,
    prunable_keys,
    segment_bounds,
    segment_quota,
    settle_whole,
    stretch_columns,
    threshold_of,
    tie_cut,
)


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
        at = stretch_columns(begin + stretch, stretch < stretches, start, columns)
        ids = stretch
        if segment is not None:
            ids = tl.load(segment + stretch, mask=stretch < stretches, other=0).to(tl.int32)
        own = tl.maximum(own, tl.max(tl.where(at <= column, ids, 0), 0))
    own = tl.minimum(own, segments - 1)
    first, stop = segment_bounds(begin, segment, own, stretches, start, columns)
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
    key = tl.where((slot >= 0) & (slot < positions), ordered(value.to(tl.float32)), 0)
    expected = (wanted.to(tl.int64) * SAMPLE // (stop - first)).to(tl.int32)
    margin: tl.constexpr = SAMPLE // 36  # 3.5 standard deviations of such a count at most, 3 % of the sample
    low, _ = threshold_of(key, expected + margin)
    high, _ = threshold_of(key, tl.maximum(expected - margin, 0))
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
            first, stop = segment_bounds(begin, segment, program, stretches, start, columns)
            wanted = segment_quota(quota + program, columns)
            count = 0
            if first < stop:
                if stop - first <= SMALL:
                    count = settle_whole(
                        score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, SMALL
                    )
                elif stop - first <= LARGE:
                    count = settle_whole(
                        score, position, keep, best, first, stop, wanted, positions, DEDUPLICATE, LARGE
                    )
            tl.store(kept + sample * segments + program, tl.cast(count, tl.int64))
        elif LONG:
            own, first, stop, left, right = _piece(
                begin, segment, program - segments, stretches, segments, start, columns, LARGE, CHUNK
            )
            if left < right:
                wanted = segment_quota(quota + own, columns)
                low, high = _bracket(score, position, first, stop, wanted, positions, SAMPLE)
                column = left + tl.arange(0, CHUNK)
                key = prunable_keys(score, position, keep, best, column, right, positions, DEDUPLICATE)
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
    wanted = segment_quota(quota + sample * segments + own, columns)
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
        low, high, above = narrow(low, high, above, wanted, a, b, beyond + above_a, beyond + above_b)
    fit = tl.where(high > 0, wanted - above, 0)

    cut = 0
    column = left + tl.arange(0, CHUNK)
    if fit > 0:
        upper, lower = _count(searched, notes, first, stop, left // CHUNK, whole, high, high - 1, CHUNK)
        key = tl.load(keys + column, mask=column < right, other=0).to(tl.uint32, bitcast=True)
        cut = tie_cut(key, column, high, fit - (lower - upper))
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
            count += keep_best(keep, claim, left, right, high, cut)
    else:
        key = tl.load(keys + column, mask=column < right, other=0).to(tl.uint32, bitcast=True)
        count = keep_taken(keep, key, column, column < right, high, cut)
    tl.atomic_add(kept + sample * segments + own, tl.cast(count, tl.int64), sem="relaxed")
