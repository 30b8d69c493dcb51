"""The compared methods, written out slowly from their papers and their authors' code: the measure they are held to.

Plain Python numbers and lists, one token at a time. Nothing here imports the package. `n` frames of `c` tokens each;
`tokens` is `[n][c][D]`, an index counts all n * c tokens.
"""

import math
from fractions import Fraction


def _cosine(u, v):
    """Zero for a zero vector; exactly 1 for equal ones."""
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    squares = sum(a * a for a in u) * sum(b * b for b in v)
    return dot / math.sqrt(squares) if squares else 0.0


def _best(values, candidates):
    """Of the candidates, the first with the highest value."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if values[candidate] > values[best]:
            best = candidate
    return best


def _take_best(values, number):
    """Indices of the highest values, best first."""
    remaining, taken = list(range(len(values))), []
    while len(taken) < number:
        taken.append(_best(values, remaining))
        remaining.remove(taken[-1])
    return taken


def _nearest_integer(value):
    whole = int(value)
    return whole + 1 if value - whole >= 0.5 else whole


def _mean(vectors):
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def visionzip(tokens, grid, saliency, keys, keep, dominant=(27, 32)):
    """VisionZip.

    Args:
        tokens: with a newline at the end of every row where the grid has newlines.
        grid: with the `rows` and `columns` of a frame's tokens, and whether the last column holds `newlines`.
        saliency: `[n][P]` of the patches, newlines left out.
        keys: `[n][P][d]` likewise.
        keep: share of the patches that is left.
        dominant: the share of those that is dominant, as numerator and denominator.

    Returns:
        Indices and token values, both in the order in which they are left.
    """
    rows, columns = grid.rows, grid.columns
    width = columns - 1 if grid.newlines else columns
    indices, values = [], []
    for frame, frame_tokens in enumerate(tokens):
        patches, newlines = [], []  # places among the frame's tokens
        for place in range(rows * columns):
            (newlines if place % columns == width else patches).append(place)
        left = max(1, _nearest_integer(keep * len(patches)))
        dominant_count = left * dominant[0] // dominant[1]
        chosen = set(_take_best(saliency[frame], dominant_count))
        compressed = [(patches[p], frame_tokens[patches[p]]) for p in range(len(patches)) if p in chosen]

        others = [p for p in range(len(patches)) if p not in chosen]
        contextual = left - dominant_count
        if contextual:
            step = max(1, len(others) // contextual)
            targets = [others[t * step] for t in range(contextual)]
            joined = {target: [] for target in targets}
            for p in others:
                if p not in joined:
                    similar = {target: _cosine(keys[frame][p], keys[frame][target]) for target in targets}
                    joined[_best(similar, targets)].append(frame_tokens[patches[p]])
            for target in targets:
                value = frame_tokens[patches[target]]
                if joined[target]:
                    value = [a + b for a, b in zip(value, _mean(joined[target]), strict=True)]
                compressed.append((patches[target], value))

        for done, (place, value) in enumerate(compressed, 1):
            indices.append(frame * rows * columns + place)
            values.append(value)
            if newlines and (done % width == 0 or done == len(compressed)):
                newline = newlines.pop(0)
                indices.append(frame * rows * columns + newline)
                values.append(frame_tokens[newline])
    return indices, values


def dycoke(tokens, k):
    """DyCoke's temporal token merging: the indices that are left, in the order in which they are left."""
    n, c = len(tokens), len(tokens[0])
    left = [list(range(c)) for _ in range(n)]

    def merge(frame, earlier):
        unlike = [-_cosine(tokens[frame][i], tokens[earlier][i]) for i in range(c)]
        merging_ratio = 1 - k
        left[frame] = _take_best(unlike, int(merging_ratio * c))

    for i in range(0, n - 1, 2):
        merge(i + 1, i)
    for i in range(0, n - 4, 4):
        merge(i + 2, i)
    return [frame * c + i for frame in range(n) for i in left[frame]]


def uniform(total, keep):
    """Evenly spaced indices of `total` tokens."""
    count = max(1, _nearest_integer(keep * total))
    return [math.floor(i * total / count) for i in range(count)]


def pooled_shape(rows, columns, keep):
    """Rows and columns of the grid to which `rows` x `columns` patches are pooled."""
    best = None
    for r in range(1, rows + 1):
        for q in range(1, columns + 1):
            aspect = max(Fraction(r * columns, q * rows), Fraction(q * rows, r * columns))
            if aspect <= 1.5:
                candidate = (abs(r * q - keep * rows * columns), aspect, r * q, r, q)
                best = candidate if best is None else min(best, candidate)
    return best[3:]


def pool(tokens, grid, keep):
    """Average pooling of every frame: indices and token values. Newlines stand as in `visionzip`'s `tokens`."""
    rows, columns = grid.rows, grid.columns
    width = columns - 1 if grid.newlines else columns
    r, q = pooled_shape(rows, width, keep)

    def windows(number, side):
        """The places that each of `number` equal stretches of a side touches."""
        touched = []
        for w in range(number):
            touched.append([j for j in range(side) if j * number < (w + 1) * side and (j + 1) * number > w * side])
        return touched

    indices, values = [], []
    for frame, frame_tokens in enumerate(tokens):
        for down in windows(r, rows):
            middle = down[(len(down) - 1) // 2]
            for across in windows(q, width):
                indices.append(frame * rows * columns + middle * columns + across[(len(across) - 1) // 2])
                values.append(_mean([frame_tokens[i * columns + j] for i in down for j in across]))
            if grid.newlines:
                indices.append(frame * rows * columns + middle * columns + width)
                values.append(frame_tokens[middle * columns + width])
    return indices, values


def fastv(heads, keep):
    """FastV.

    Args:
        heads: `[H][N]` attention of the prompt's last token to the visual tokens in layer K - 1, a row per head.
        keep: share of the visual tokens that enters layer K, 1 - R.

    Returns:
        Indices of those, in the prompt's order.
    """
    return sorted(_take_best(_mean(heads), round(keep * len(heads[0]))))


def pyramiddrop(heads_of, total, keep, stages):
    """PyramidDrop.

    Args:
        heads_of: given a stage, counted from 1, and the visual tokens that are left in front of it, the attention of
            the prompt's last token to those in the stage's first layer, on all that enters it: `[H][len(left)]`.
        total: visual tokens.
        keep: lambda, the share that survives each cut.
        stages: into which the layers are divided; the first sees every token.

    Returns:
        For every stage the indices of the visual tokens in it, in the prompt's order.
    """
    left = list(range(total))
    by_stage = [left]
    for stage in range(1, stages):
        best = _take_best(_mean(heads_of(stage, left)), int(total * keep**stage))
        left = sorted(left[i] for i in best)
        by_stage.append(left)
    return by_stage
