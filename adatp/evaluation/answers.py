"""Answers of a model: reading them, judging them, and the confidence interval of their accuracy."""

import math
from typing import Any

from torch import Tensor

from adatp.errors import InputError

Z = 1.959963984540054  # of a 95 % interval


def letter_tokens(tokenizer: Any, letters: str) -> dict[str, list[int]]:
    """Return the tokens with which an answer can begin with each letter.

    These are the first token of "A", and the token of " A" if that is a single one. If the tokenizer splits " A" into a
    space and a letter, only the first way is left.

    Raises:
        InputError: two letters begin with the same token, so the next token cannot tell them apart.
    """
    found = {}
    for letter in letters:
        bare, spaced = (tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}"))
        found[letter] = list(dict.fromkeys([bare[0], *(spaced if len(spaced) == 1 else [])]))
    tokens = [token for own in found.values() for token in own]
    if len(set(tokens)) < len(tokens):
        raise InputError(f"the letters {letters} must begin with different tokens, but two begin with the same one")
    return found


def chosen_letter(logits: Tensor, tokens: dict[str, list[int]]) -> str:
    """Return the letter with the highest next-token logit; the first one, if several are equal.

    Args:
        logits: `[V]`.
        tokens: tokens of each letter, as `letter_tokens` returns them.
    """
    return max(tokens, key=lambda letter: float(logits[tokens[letter]].max()))


def answer_length(tokenizer: Any, right: str) -> int:
    """Return the largest number of tokens that an answer may have.

    It is larger than that of the right answer, so that an answer that goes on after it counts as wrong.
    """
    return 2 * len(tokenizer.encode(right, add_special_tokens=False)) + 8


def is_exact(answer: str, right: str) -> bool:
    """Tell whether two texts are equal; case, spaces and a full stop at the end do not count."""
    return _plain(answer) == _plain(right)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def wilson(right: int, total: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share. It stays in [0, 1] and suits small numbers of answers too."""
    share, weight = right / total, Z * Z / total
    middle = share + weight / 2
    half = Z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    low, high = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    return (0.0 if right == 0 else low, 1.0 if right == total else high)  # without the noise of rounding
