"""What AdaTP computes, written out slowly from the paper and its specification: the measure the package is held to.

Plain Python numbers and lists, one token at a time. Nothing here imports the package.
"""

import itertools
import math
from fractions import Fraction

FIXED = -1
PADDING = -2


def cosine(u, v):
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / (math.sqrt(sum(a * a for a in u)) * math.sqrt(sum(b * b for b in v)))


def segments(frames, tau_s):
    """Section 3.3: frame i + 1 joins the segment of frame i iff their cosine is at least tau_s."""
    ids = [0]
    for previous, current in itertools.pairwise(frames):
        ids.append(ids[-1] if cosine(previous, current) >= tau_s else ids[-1] + 1)
    return ids


def segment_means(values, ids):
    means = []
    for segment in range(max(ids) + 1):
        members = [value for value, own in zip(values, ids, strict=True) if own == segment]
        means.append(math.fsum(members) / len(members))
    return means


def significant(similarities, ids, tau_t):
    """Segments whose mean similarity to the question exceeds tau_t, strictly."""
    return [mean > tau_t for mean in segment_means(similarities, ids)]


def schedule(layers, p, first, last, start_ratio, end_ratio):
    """Section 4.1: the ratio at the input of every layer; 1 before the first cut."""
    ratios = []
    for layer in range(layers):
        if layer < first:
            ratios.append(Fraction(1))
        elif layer <= last:
            gone = (Fraction(start_ratio) - Fraction(end_ratio)) * (layer - first) / (last - first + 1)
            ratios.append(Fraction(p) * (Fraction(start_ratio) - gone))
        else:
            ratios.append(Fraction(p) * Fraction(end_ratio))
    return ratios


def exact_quotas(r, frames, is_significant, c, alpha, gamma):
    """Equations 4 and 5 for one sample, before rounding, as exact fractions of the given binary numbers."""
    r, alpha, gamma = Fraction(r), Fraction(alpha), Fraction(gamma)
    n = sum(frames)
    inside = sum(size for size, chosen in zip(frames, is_significant, strict=True) if chosen)
    outside = n - inside
    quotas = []
    for size, chosen in zip(frames, is_significant, strict=True):
        if inside == 0:
            ratio = r
        else:
            r1 = min(alpha, Fraction(n, inside) * gamma) * r
            ratio = r1 if chosen else (r * n - r1 * inside) / outside
        quotas.append(ratio * size * c)
    return quotas


def largest_remainder(exact):
    """Integers that add up to the sum, rounded half up; remainder ties go to the earlier segment."""
    rounded = [math.floor(quota) for quota in exact]
    missing = math.floor(sum(exact) + Fraction(1, 2)) - sum(rounded)
    for _ in range(missing):
        best = None
        for i, quota in enumerate(exact):
            untouched = rounded[i] == math.floor(quota)
            if untouched and (best is None or quota - math.floor(quota) > exact[best] - math.floor(exact[best])):
                best = i
        rounded[best] += 1
    return rounded


def quotas(r, frames, is_significant, c, alpha, gamma):
    return largest_remainder(exact_quotas(r, frames, is_significant, c, alpha, gamma))


def _better(scores, i, j):
    """Whether token i ranks before token j: higher score, NaN after all else, ties to the earlier."""
    a, b = scores[i], scores[j]
    if math.isnan(a) or math.isnan(b):
        return i < j if math.isnan(a) and math.isnan(b) else math.isnan(b)
    return i < j if a == b else a > b


def top_k(scores, tokens, k):
    """The k best of `tokens`, best first."""
    remaining, taken = list(tokens), []
    while remaining and len(taken) < k:
        best = remaining[0]
        for token in remaining[1:]:
            if _better(scores, token, best):
                best = token
        remaining.remove(best)
        taken.append(best)
    return taken


def algorithm_1(scores, selected, position):
    """The local debiasing module, line by line."""
    in_order = top_k(scores, selected, len(selected))  # sorted by score, descending
    used_positions, kept = [], []
    for token in in_order:
        if position[token] not in used_positions:
            kept.append(token)
            used_positions.append(position[token])
    return kept


def select(scores, segment, position, quota, deduplicate=True):
    """Which tokens of one sample stay, as a list of bools."""
    keep = [own == FIXED for own in segment]
    for s, k in enumerate(quota):
        selected = top_k(scores, [i for i, own in enumerate(segment) if own == s], k)
        for token in algorithm_1(scores, selected, position) if deduplicate else selected:
            keep[token] = True
    return keep


def score(query, key, rows, columns, scale, first_key=0):
    """Column scores of one sample: query [H][T][D], key [G][L][D], rows [T] with -1 for a row not in use."""
    start, stop = columns
    shared = len(query) // len(key)  # query heads that read the same key head
    used = [t for t, row in enumerate(rows) if row >= 0]
    total = [0.0] * (stop - start)
    for h, head in enumerate(query):
        keys = key[h // shared]
        for t in used:
            attended = range(first_key, rows[t] + 1)
            logits = {i: scale * sum(a * b for a, b in zip(head[t], keys[i], strict=True)) for i in attended}
            top = max(logits.values())
            norm = math.fsum(math.exp(logit - top) for logit in logits.values())
            for j in range(start, stop):
                if j in logits:
                    total[j - start] += math.exp(logits[j] - top) / norm
    return [value / (len(query) * len(used)) if used else 0.0 for value in total]


def compact(keep, tokens, fill):
    """Per sample the kept tokens in order, with `fill` on the left up to the longest sample."""
    kept = [
        [token for token, stays in zip(row, mask, strict=True) if stays] for row, mask in zip(tokens, keep, strict=True)
    ]
    width = max(len(row) for row in kept)
    return [[fill] * (width - len(row)) + row for row in kept]
