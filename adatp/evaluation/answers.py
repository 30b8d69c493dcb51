"""What a model answers, whether that is right, and how sure a share of right answers is."""

import math
from typing import Any

from torch import Tensor

from adatp.errors import InputError

Z = 1.959963984540054  # of a 95 % interval


def letter_tokens(tokenizer: Any, letters: str) -> dict[str, list[int]]:
    """The tokens that begin an answer with a letter: the first of "A", and the one of " A" where that is a single one.

    A tokenizer that makes " A" a space and a letter has no other way to begin with it.

    Raises:
        InputError: two letters begin with one token, so the next token cannot tell them apart.
    """
    found = {}
    for letter in letters:
        bare, spaced = (tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}"))
        found[letter] = list(dict.fromkeys([bare[0], *(spaced if len(spaced) == 1 else [])]))
    tokens = [token for own in found.values() for token in own]
    if len(set(tokens)) < len(tokens):
        raise InputError(f"the tokenizer begins two of the letters {letters} with one token, so none can be chosen")
    return found


def chosen_letter(logits: Tensor, tokens: dict[str, list[int]]) -> str:
    """The letter with the highest next-token logit, the first of equals.

    Args:
        logits: `[V]`.
        tokens: as `letter_tokens` finds them.
    """
    return max(tokens, key=lambda letter: float(logits[tokens[letter]].max()))


def answer_length(tokenizer: Any, right: str) -> int:
    """Tokens to let a model answer in: a few more than the right answer has, since one that goes on is another."""
    return 2 * len(tokenizer.encode(right, add_special_tokens=False)) + 8


def is_exact(answer: str, right: str) -> bool:
    """Whether two texts are the same but for case, spaces and a full stop at the end."""
    return _plain(answer) == _plain(right)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson's: it stays in [0, 1] and says something of few answers too."""
    share, weight = right / total, Z * Z / total
    middle = share + weight / 2
    half = Z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    low, high = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    return (0.0 if right == 0 else low, 1.0 if right == total else high)  # without the noise of rounding
