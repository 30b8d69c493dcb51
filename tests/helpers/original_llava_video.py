"""How the authors of LLaVA-Video lay out a video, element by element in float64.

After `get_2dPool` and `add_token_per_grid` of LLaVA-NeXT's `llava/model/llava_arch.py`, with the settings of the
published models: stride 2, newlines in a "grid", no faster frames.
"""

import math

import numpy as np


def average(frame: np.ndarray) -> np.ndarray:
    """`[side, side, D]` to the means of its 2 x 2 blocks; what is left over at the end of an odd side is not used."""
    half = len(frame) // 2
    pooled = np.zeros((half, half, frame.shape[2]))
    for row in range(half):
        for column in range(half):
            for i in range(2):
                for j in range(2):
                    pooled[row, column] += frame[2 * row + i, 2 * column + j] / 4
    return pooled


def bilinear(frame: np.ndarray) -> np.ndarray:
    """`[side, side, D]` sampled at the centres of half as many pixels, rounded up, without antialiasing."""
    side = len(frame)
    half = math.ceil(side / 2)

    def neighbours(index: int) -> list[tuple[int, float]]:
        centre = max((index + 0.5) * side / half - 0.5, 0.0)
        low = int(centre)
        return [(low, 1 - (centre - low)), (min(low + 1, side - 1), centre - low)]

    pooled = np.zeros((half, half, frame.shape[2]))
    for row in range(half):
        for column in range(half):
            for i, of_row in neighbours(row):
                for j, of_column in neighbours(column):
                    pooled[row, column] += of_row * of_column * frame[i, j]
    return pooled


def video_tokens(features: np.ndarray, newline: np.ndarray, mode: str) -> np.ndarray:
    """Projected features `[n, patches, D]` of a video's frames and a newline `[D]` to the decoder's tokens `[T, D]`."""
    pool = {"average": average, "bilinear": bilinear}[mode]
    side = math.isqrt(features.shape[1])
    tokens = []
    for frame in features.astype(np.float64):
        for row in pool(frame.reshape(side, side, -1)):
            tokens.extend(row)
            tokens.append(newline)
    return np.stack(tokens)
