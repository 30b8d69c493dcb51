"""Column-sliced text-to-visual attention scores (AdaTP, section 3.1)."""

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve
from adatp_kernels.precision import without_autocast

# Elements of the reference's largest buffer: 8 MiB of fp32. A long prompt takes two rows even if they need more, since
# a product with a single row reads all keys for it. Larger buffers were no faster. The reference never holds L x L or
# heads x rows x L elements.
BUFFER_ELEMENTS = 1 << 21
LEAST_ROWS = 2


def score(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: tuple[int, int],
    *,
    scale: float,
    first_key: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Compute the mean softmax probability that the text rows give to each key of a column range.

    The score of column j in sample b is the mean over all heads h and over the rows t in use of
    `softmax_i(scale * query[b, h, t] . key[b, g(h), i])[j]`, where i runs over the keys that row t may attend to,
    `first_key[b] <= i <= rows[b, t]`. The sum is accumulated in fp32. Its order depends only on the shapes and the
    device.

    Args:
        query: `[B, H, T, D]` post-rotary queries of the text rows; any floating dtype.
        key: `[B, G, L, D]` post-rotary keys of the whole sequence, same dtype; H is a multiple of G (grouped-query
            attention: query head h reads key head `h // (H // G)`).
        rows: `[B, T]` int64, the index of each row in the key axis; this is also its causal bound (inclusive).
            -1 marks a row that is not in use.
        columns: `(start, stop)`, the range of keys to score.
        scale: factor of the logits, usually `D ** -0.5`.
        first_key: `[B]` int64, the first key that is not left padding; None if there is no padding.
        impl: see `adatp_kernels.dispatch`. `"triton"` takes float32, float16 and bfloat16, and D up to 256.

    Returns:
        `[B, stop - start]` float32. All scores of a sample without rows in use are 0. A row that may attend to no key
        adds 0 to each score.

    Raises:
        ValueError: the shapes or dtypes do not fit together, the columns lie outside the keys, or `impl` does not
            support the dtype or D.
    """
    _check(query, key, rows, columns, first_key)
    if resolve(impl, query.device) == "triton":
        from adatp_kernels.score_triton import score_triton

        scores: Tensor = score_triton(query, key, rows, *columns, scale, first_key)
        return scores
    with without_autocast(query.device):
        return score_reference(query, key, rows, columns, scale=scale, first_key=first_key)


def score_reference(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: tuple[int, int],
    *,
    scale: float,
    first_key: Tensor | None = None,
) -> Tensor:
    """Run `score` in PyTorch, a few rows of a sample at a time: the work is O(T L H D), and the memory O(L H)."""
    start, stop = columns
    batch, heads, count, dim = query.shape
    groups, length = key.shape[1], key.shape[2]
    index = torch.arange(length, device=query.device)
    total = torch.zeros(batch, stop - start, dtype=torch.float32, device=query.device)
    keys = key.float().transpose(2, 3)  # [B, G, D, L]
    step = rows_at_once(heads * length)
    for b in range(batch):
        for t in range(0, count, step):
            visible = index <= rows[b, t : t + step, None]  # [t, L]
            if first_key is not None:
                visible = visible & (index >= first_key[b])
            seeing = visible.any(-1)  # [t]
            # heads that share a key head are neighbours in the row axis, so keys need not be repeated
            chunk = (query[b, :, t : t + step].float() * scale).reshape(groups, heads // groups * len(visible), dim)
            logits = (chunk @ keys[b]).view(heads, len(visible), length)
            # the minimum instead of -inf: with -inf, a row that sees no key would give NaN
            logits.masked_fill_(~visible, torch.finfo(torch.float32).min)
            probability = logits.softmax(-1)[..., start:stop]
            total[b] += (seeing.float().expand(heads, 1, -1) @ probability).sum((0, 1))
    in_use = (rows >= 0).sum(1, keepdim=True).clamp(min=1)
    return total / (heads * in_use)


def rows_at_once(elements: int) -> int:
    """Return how many text rows the reference handles at a time, if each has `elements` logits in all heads."""
    return max(LEAST_ROWS, BUFFER_ELEMENTS // max(1, elements))


def _check(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    columns: tuple[int, int],
    first_key: Tensor | None,
) -> None:
    if query.ndim != 4 or key.ndim != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query must be [B, H, T, D] and key [B, G, L, D], got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if key.shape[1] < 1 or query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, got {query.shape[1]} and {key.shape[1]}")
    if query.dtype != key.dtype:
        raise ValueError(f"query and key must have one dtype, got {query.dtype} and {key.dtype}")
    if rows.shape != (query.shape[0], query.shape[2]):
        raise ValueError(f"rows must be [B, T] = {(query.shape[0], query.shape[2])}, got {tuple(rows.shape)}")
    if not 0 <= columns[0] <= columns[1] <= key.shape[2]:
        raise ValueError(f"columns must lie within the {key.shape[2]} keys, got {columns}")
    if first_key is not None and first_key.shape != query.shape[:1]:
        raise ValueError(f"first_key must be [B] = {(query.shape[0],)}, got {tuple(first_key.shape)}")
