"""`select` in Triton: block and piece sizes, the launches, and the operator `torch.ops.adatp.select`."""

import torch
from torch import Tensor

from adatp_kernels.launch import cdiv, operator
from adatp_kernels.select_kernels import long_segment_kernel, select_kernel

# Block sizes for the tokens of a segment in registers: up to five frames, and up to 32 keys a thread.
SMALL, LARGE = 1024, 8192
# Tokens of a piece of a longer segment: at most `LARGE`, so that at most two long segments meet in one chunk.
CHUNK = 4096
# Tokens in the sample of a long segment.
SAMPLE = 4096
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}


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
    """Run `adatp_kernels.select.select` in Triton; the scores are those of the tokens from `start` on."""
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
