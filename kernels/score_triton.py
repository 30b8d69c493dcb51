"""`score` in Triton: block sizes, the two launches, and the operator `torch.ops.adatp.score`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from adatp_kernels.launch import INTERPRETED, cdiv, next_power_of_2, operator, processors
from adatp_kernels.score_kernels import column_kernel, normaliser_kernel

MAX_DIM = 256
LOG2E = math.log2(math.e)

# With fewer keys, a split costs more to join than its parallelism saves.
MIN_KEYS_PER_SPLIT = 256
# Number of (max, sum) pairs of a tile of rows that one program joins at once.
JOINED = 4096
# Warps that a processor runs in parallel: while some wait for a product, others compute exponentials.
WARPS_PER_PROCESSOR = 16
LAUNCH = {"num_stages": 2, "enable_fp_fusion": True}
# Registers of a thread, such that all these warps fit on an NVIDIA multiprocessor. ROCm's compiler has no such option.
REGISTERS = 128


class Tile(NamedTuple):
    """Block sizes of a launch: `m` rows x `n` keys x `d` of the head dimension, and the number of warps."""

    m: int
    n: int
    d: int
    warps: int = 8

    def blocks(self) -> dict[str, int]:
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_D": self.d, "num_warps": self.warps}


def tiles(rows: int, dim: int, element_size: int) -> tuple[Tile, Tile]:
    """Return the block sizes of the normaliser and of the columns, for `rows` rows of a key head.

    In half precision, a warp of the normaliser takes 16 rows, so no row is spread over several warps. 8 warps take 128
    rows, and keys are read from L2 once for all of them. Two stages of keys and the queries fit into the 99 KiB of
    sm_86 and sm_89. Head dimensions above 128 get smaller tiles, which fit into registers. A few rows, such as FastV's
    single one, take the smallest height of a tensor core. There are only three heights, so prompts of other lengths
    compile nothing new. In fp32, tensor cores would round to tf32, so plain multiply-adds run in small tiles.
    """
    d = max(16, next_power_of_2(dim))
    if element_size == 4:
        tile = Tile(16, 32 if d <= 128 else 16, d)
        return tile, tile
    if d > 128:
        tile = Tile(16 if rows <= 16 else 32, 32, d)
        return tile, tile
    if rows <= 16:
        return Tile(16, 128, d), Tile(16, 128, d)
    return Tile(64, 64, d, 4) if rows <= 64 else Tile(128, 64, d), Tile(64, 128, d)


def key_splits(row_tiles: int, length: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """Return (splits, keys of each): as many splits as run in parallel and can be joined at once."""
    splits = min(_places(tile, device) // row_tiles, JOINED // tile.m, cdiv(length, MIN_KEYS_PER_SPLIT))
    keys = cdiv(cdiv(length, max(1, splits)), tile.n) * tile.n
    return cdiv(length, keys), keys


def row_parts(column_tiles: int, row_tiles: int, tile: Tile, device: torch.device) -> tuple[int, int]:
    """Return (parts, tiles of rows of each): as many parts as run in parallel, for this number of blocks of columns."""
    each = cdiv(row_tiles, max(1, _places(tile, device) // column_tiles))
    return cdiv(row_tiles, each), each


def _places(tile: Tile, device: torch.device) -> int:
    """Return the number of programs that the device runs in parallel."""
    return processors(device) * WARPS_PER_PROCESSOR // tile.warps


@operator("adatp::score")
def score_triton(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    start: int,
    stop: int,
    scale: float,
    first_key: Tensor | None,
) -> Tensor:
    """Run `adatp_kernels.score.score` in Triton; the columns are `[start, stop)`."""
    batch, heads, count, dim = query.shape
    groups, length = key.shape[1], key.shape[2]
    columns = stop - start
    _refuse(query)
    if batch * count * columns == 0:
        return query.new_zeros(batch, columns, dtype=torch.float32)
    if INTERPRETED and query.dtype == torch.bfloat16:  # the interpreter's product of bf16 is wrong
        query, key = query.float(), key.float()
    query, key = _unit_stride(query), _unit_stride(key)
    rows = rows.contiguous()
    repeats = heads // groups
    first, second = tiles(repeats * count, dim, query.element_size())
    row_tiles = cdiv(repeats * count, first.m)
    all_tiles = batch * groups * row_tiles
    splits, split_keys = key_splits(all_tiles, length, first, query.device)
    blocks, block_tiles = batch * cdiv(columns, second.n), cdiv(repeats * count, second.m)
    parts, tiles_each = row_parts(blocks, groups * block_tiles, second, query.device)

    def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    queries = buffer(all_tiles, first.m, first.d, dtype=query.dtype)
    bounds = buffer(all_tiles, first.m, dtype=torch.int32)
    lse2 = buffer(all_tiles, first.m)
    pairs = buffer(all_tiles, splits, 2, first.m)
    part = buffer(batch, parts, columns)
    out = buffer(batch, columns)
    # counters of both kernels, new for each call, so that streams and replayed graphs do not share them
    arrivals = torch.zeros(all_tiles + blocks, dtype=torch.int32, device=query.device)
    padding = rows if first_key is None else first_key.contiguous()
    query_strides, key_strides = query.stride()[:3], key.stride()[:2]
    # positive, so that the largest product has the largest logit; if the factor is negative, the queries are negated
    factor = max(abs(scale), torch.finfo(torch.float32).tiny) * LOG2E
    options = {
        "GROUPS": groups,
        "REPEATS": repeats,
        "DIM": dim,
        "STRIDE": key.stride(2),
        # Triton itself only checks strides for multiples of 16, and a stride of 72 is none
        "ALIGNED": all(stride % 8 == 0 for stride in (*query_strides, *key.stride()[:3])),
        "PADDED": first_key is not None,
        "PRECISION": "ieee",  # matters for fp32 only: no tf32
        **LAUNCH,
    }
    if torch.version.hip is None:
        options["maxnreg"] = REGISTERS

    with torch.cuda.device_of(query):  # Triton launches on the current device
        normaliser_kernel[(all_tiles, splits)](
            query, key, rows, padding, queries, bounds, lse2, pairs, arrivals, *query_strides, *key_strides,
            count, length, row_tiles, splits, split_keys, factor,
            NEGATED=scale < 0, SPLITS=JOINED // first.m, **first.blocks(), **options,
        )  # fmt: skip
        column_kernel[(blocks, parts)](
            queries, bounds, lse2, key, rows, padding, part, out, arrivals[all_tiles:], *key_strides,
            count, start, columns, block_tiles, row_tiles * first.m, tiles_each, factor,
            **second.blocks(), **options,
        )  # fmt: skip
    return out


@score_triton.register_fake
def _(query, key, rows, start, stop, scale, first_key):
    _refuse(query)
    return query.new_empty(query.shape[0], stop - start, dtype=torch.float32)


@register_flop_formula(torch.ops.adatp.score)
def _flops(query, key, rows, start, stop, scale, first_key, *_, out_shape=None, **__):
    """Count FLOPs as PyTorch does, two for a multiply-add: for all keys, and for the columns again."""
    batch, heads, count, dim = query
    return 2 * batch * heads * count * dim * (stop - start + key[2])


def _refuse(query: Tensor) -> None:
    """Raise a ValueError for inputs that the reference supports and the kernels do not."""
    if query.shape[3] > MAX_DIM:
        raise ValueError(
            f"impl='triton' takes head dimensions up to {MAX_DIM}, got {query.shape[3]}; use impl='reference'"
        )
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"impl='triton' takes float32, float16 or bfloat16, got {query.dtype}; use impl='reference'")


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
