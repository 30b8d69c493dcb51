"""`select` in Triton: one program for each segment of each sample, all in one launch. Nothing is sorted.

1. The quota's threshold by radix: scores become integers in the same order (NaN lowest), and four passes over the
   segment count their bytes, from the highest down. Each pass settles one byte of the best key that no longer fits into
   the quota; what lies above that key is taken, and of its ties the first, in token order.
2. One token per position: every taken token puts (key, earlier first) into its position's slot by an integer maximum,
   which no order of execution changes. Who finds itself there stays. The best of a position is taken if any of them is,
   so the maximum over the taken ones is the maximum over all.

Cost: six passes over the segment's scores and ids, 4 + 8 + 8 bytes a token, from the first-level cache or L2 after the
first pass. A video that is a single segment is one program's work: linear in its tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FIXED: tl.constexpr = tl.constexpr(-1)  # as `select` has it

# Tokens that a program holds at a time, four a thread: a segment of five frames.
BLOCK = 1024
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _ordered(score):
    """fp32 to uint32 in the same order: -0 equals 0, NaN of either sign comes lowest."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(score == score, key, 0)


@triton.jit
def _load(score, segment, token, stop, own, first, last):
    """Keys of a block of tokens, their segments, and which of them are the program's own."""
    ids = tl.load(segment + token, mask=token < stop, other=FIXED)
    mine = (token < stop) & (ids == own)
    # the score's columns start later and end earlier than the tokens
    value = tl.load(score + token - first, mask=mine & (token >= first) & (token < last), other=float("nan"))
    return _ordered(value.to(tl.float32)), ids, mine


@triton.jit(
    do_not_specialize=["length", "first", "last", "positions"], do_not_specialize_on_alignment=["begin", "quota"]
)
def select_kernel(
    score, segment, position, begin, quota, best, keep, length, first, last, positions,
    DEDUPLICATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: segments, B. Each program's tokens are those from where its segment begins to where the next one does."""
    own, segments, sample = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    score += sample * (last - first)
    segment += sample * length
    keep += sample * length
    # tokens before the first segment and after the last one have to be written by somebody
    start = tl.where(own == 0, 0, tl.load(begin + sample * segments + own)).to(tl.int32)
    following = tl.minimum(own + 1, segments - 1)
    stop = tl.where(own == segments - 1, length, tl.load(begin + sample * segments + following)).to(tl.int32)
    if start >= stop:  # most segments of a video with few of them
        return
    wanted = tl.load(quota + sample * segments + own).to(tl.int32)

    threshold = tl.full((), 0, tl.uint32)
    bins = tl.arange(0, 256)
    for byte in tl.static_range(4):
        shift = 24 - 8 * byte
        counts = tl.zeros([256], tl.int32)
        for i in range(start, stop, BLOCK):
            key, _, mine = _load(score, segment, i + tl.arange(0, BLOCK), stop, own, first, last)
            if byte > 0:
                mine = mine & ((key >> (shift + 8)) == (threshold >> (shift + 8)))
            counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=mine)
        above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
        found = (above <= wanted) & (wanted < above + counts)  # nowhere, if all of them fit
        threshold |= (tl.sum(tl.where(found, bins, 0), 0) << shift).to(tl.uint32)
        wanted -= tl.sum(tl.where(found, above, 0), 0)

    if DEDUPLICATE:
        position += sample * length
        best += (sample * segments + own) * positions
        for p in range(0, positions, BLOCK):
            slot = p + tl.arange(0, BLOCK)
            tl.store(best + slot, tl.full([BLOCK], -(2**63), tl.int64), mask=slot < positions)
        tl.debug_barrier()

    ties = 0
    for i in range(start, stop, BLOCK):
        token = i + tl.arange(0, BLOCK)
        key, ids, mine = _load(score, segment, token, stop, own, first, last)
        tie = (mine & (key == threshold)).to(tl.int32)
        rank = ties + tl.cumsum(tie, 0) - tie
        taken = mine & ((key > threshold) | ((tie > 0) & (rank < wanted)))
        ties += tl.sum(tie, 0)
        tl.store(keep + token, taken | (ids == FIXED), mask=token < stop)
        if DEDUPLICATE:
            slot = tl.load(position + token, mask=taken, other=0)
            tl.atomic_max(
                best + slot, _claim(key, token), mask=taken & _valid(slot, positions), sem="relaxed", scope="cta"
            )

    if DEDUPLICATE:
        tl.debug_barrier()
        for i in range(start, stop, BLOCK):
            token = i + tl.arange(0, BLOCK)
            key, _, mine = _load(score, segment, token, stop, own, first, last)
            taken = mine & (tl.load(keep + token, mask=mine, other=0) != 0)
            slot = tl.load(position + token, mask=taken, other=0)
            holder = tl.load(best + slot, mask=taken & _valid(slot, positions), other=0, cache_modifier=".cg")
            tl.store(keep + token, taken & (holder == _claim(key, token)), mask=mine)


@triton.jit
def _claim(key, token):
    """int64 that orders tokens by key, then earlier ones first."""
    return ((key.to(tl.int64) - 2**31) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit
def _valid(slot, positions):
    return (slot >= 0) & (slot < positions)


@torch.library.custom_op("adatp::select", mutates_args=())
def select_triton(
    score: Tensor,
    segment: Tensor,
    position: Tensor,
    quota: Tensor,
    begin: Tensor,
    start: int,
    positions: int,
    deduplicate: bool,
) -> Tensor:
    """`adatp_kernels.select.select`; `score` belongs to the tokens from `start` on."""
    batch, length = segment.shape
    segments = quota.shape[1]
    keep = torch.empty(batch, length, dtype=torch.bool, device=segment.device)
    if keep.numel() == 0:
        return keep
    slots = batch * segments * positions if deduplicate else 0
    best = torch.empty(slots, dtype=torch.int64, device=segment.device)
    with torch.cuda.device_of(segment):  # Triton launches on the current device
        select_kernel[(segments, batch)](
            score.contiguous(), segment.contiguous(), position.contiguous(), begin.contiguous(), quota.contiguous(),
            best, keep.view(torch.uint8), length, start, start + score.shape[1], positions,
            DEDUPLICATE=deduplicate, BLOCK=BLOCK, **LAUNCH,
        )  # fmt: skip
    return keep


@select_triton.register_fake
def _(score, segment, position, quota, begin, start, positions, deduplicate):
    return torch.empty_like(segment, dtype=torch.bool, memory_format=torch.contiguous_format)
