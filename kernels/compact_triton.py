"""`compact` in Triton: one launch moves every tensor.

A program handles a block of tokens of one sample. It counts the kept tokens before its block (one byte each, from L2),
so no prefix sum has to run before. The slot of a kept token is this count, plus its rank within the block, plus the
sample's left padding. Then the program copies the rows of all tensors, bit by bit. The padding slots are filled by the
programs whose token blocks have the same indices.

Cost: every kept row is read and written once. For each block of tokens, L / 2 bytes of mask are read (L if samples are
padded).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from adatp_kernels.launch import Remembered, cdiv, next_power_of_2, operator
from adatp_kernels.select import PADDING

# Elements that a program moves at a time (16 KiB of bf16): 512 of each row for 16 tokens, fewer for more tokens.
TILE = 8192
# Bytes of the mask that a program counts at a time.
COUNT_BLOCK = 2048
# Largest number of programs for a sample. For longer masks each program takes more tokens, since each counts the mask.
MAX_PROGRAMS = 1024
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def token_block(length: int) -> int:
    """Return the tokens of a program: 16 keep all processors busy; long sequences take 64 or 256."""
    return 16 if length <= 16 * MAX_PROGRAMS else 64 if length <= 64 * MAX_PROGRAMS else 256


@triton.jit
def _move(
    source, target, sample, token, slot, kept, length, width, padding,
    SIZE: tl.constexpr, SHARED: tl.constexpr, FILL: tl.constexpr, PADDED: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """The kept rows `[BLOCK, SIZE]` of one tensor to their slots, and `FILL` to the slots of padding."""
    if not SHARED:
        source += sample * length * SIZE
    target += sample * width * SIZE
    for start in range(0, SIZE, ROW):
        column = (start + tl.arange(0, ROW))[None, :]
        inside = column < SIZE
        rows = tl.load(source + token.to(tl.int64)[:, None] * SIZE + column, mask=kept[:, None] & inside)
        tl.store(target + slot.to(tl.int64)[:, None] * SIZE + column, rows, mask=kept[:, None] & inside)
        if PADDED:
            empty = (token < padding)[:, None] & inside
            value = tl.full(rows.shape, FILL, rows.dtype)
            tl.store(target + token.to(tl.int64)[:, None] * SIZE + column, value, mask=empty)


@Remembered
@triton.jit(do_not_specialize=["length", "width"])
def compact_kernel(
    keep, sources, targets, length, width,
    SIZES: tl.constexpr, SHARED: tl.constexpr, FILLS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of tokens, B. `sources` and `targets` are tuples of tensors `[B or 1, L or W, SIZES[i]]`."""
    first = tl.program_id(0) * BLOCK
    sample = tl.program_id(1).to(tl.int64)
    keep += sample * length
    earlier, later = tl.zeros([COUNT], tl.int32), tl.zeros([COUNT], tl.int32)
    for i in range(0, length if PADDED else first, COUNT):
        at = i + tl.arange(0, COUNT)
        earlier += tl.load(keep + at, mask=at < first, other=0).to(tl.int32)
        if PADDED:
            later += tl.load(keep + at, mask=(at >= first) & (at < length), other=0).to(tl.int32)
    before = tl.sum(earlier, 0)
    padding = 0
    if PADDED:
        padding = width - before - tl.sum(later, 0)

    token = first + tl.arange(0, BLOCK)
    kept = tl.load(keep + token, mask=token < length, other=0).to(tl.int32)
    slot = padding + before + tl.cumsum(kept, 0) - kept
    moved = (kept != 0) & (slot >= 0) & (slot < width)  # counts that are wrong must not write elsewhere
    for i in tl.static_range(len(SIZES)):
        _move(
            sources[i], targets[i], sample, token, slot, moved, length, width, padding,
            SIZES[i], SHARED[i], FILLS[i], PADDED, ROWS[i],
        )  # fmt: skip


@operator("adatp::compact")
def compact_triton(keep: Tensor, counts: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Run `adatp_kernels.compact.compact` in Triton."""
    batch, length = keep.shape
    width, block = max(counts), token_block(length)
    results, moved = [], []
    for tensor in tensors:
        result = tensor.new_empty(batch, width, *tensor.shape[2:])
        results.append(result)
        if result.numel():
            same = batch > 1 and tensor.stride(0) == 0  # all samples share one memory, as after `expand`
            source = (tensor[:1] if same else tensor).contiguous()
            fill = 0 if tensor.is_floating_point() else PADDING
            size = tensor.shape[2:].numel()
            moved.append((source, result, size, same, fill, min(TILE // block, next_power_of_2(size))))
    if not moved:
        return results
    sources, targets, sizes, shared, filled, rows = zip(*moved, strict=True)
    with torch.cuda.device_of(keep):  # Triton launches on the current device
        compact_kernel[(cdiv(length, block), batch)](
            keep.contiguous().view(torch.uint8), sources, targets, length, width,
            SIZES=sizes, SHARED=shared, FILLS=filled, ROWS=rows, PADDED=min(counts) < width,
            BLOCK=block, COUNT=COUNT_BLOCK, **LAUNCH,
        )  # fmt: skip
    return results


@compact_triton.register_fake
def _(keep, counts, tensors):
    return [t.new_empty(keep.shape[0], max(counts), *t.shape[2:]) for t in tensors]
