"""How a question with options is put to a model."""

from collections.abc import Sequence
from string import ascii_uppercase

_INSTRUCTION = "Answer with the option's letter from the given choices directly."  # as LMMs-Eval words it


def prompt_of(text: str, options: Sequence[str]) -> str:
    """A question as a model is asked it, with its options, lettered, where it has any."""
    if not options:
        return text
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([text, *lines, _INSTRUCTION])
