"""The rate of exp2 in fp32 on values in registers, as the kernels compute it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
PROGRAMS = 32  # for each processor, which runs 64 warps at a time


@triton.jit
def exponentials_kernel(out, TURNS: tl.constexpr, BLOCK: tl.constexpr):
    """`TURNS` times x = 2 ** -x for each x of a block, which ends near 0.64 whatever it began with."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (at % 64).to(tl.float32)
    for _ in range(TURNS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def exponentials(device: torch.device, turns: int) -> Tensor:
    """Compute `turns` exponentials for each of `[N]` float32 values; N fills the GPU."""
    programs = PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs * BLOCK, device=device)
    exponentials_kernel[(programs,)](out, TURNS=turns, BLOCK=BLOCK, num_warps=8, enable_fp_fusion=True)
    return out
