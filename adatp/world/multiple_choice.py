"""The prompt of a question with options."""

from collections.abc import Sequence
from string import ascii_uppercase

_INSTRUCTION = "Answer with the option's letter from the given choices directly."  # as LMMs-Eval words it


def prompt_of(text: str, options: Sequence[str]) -> str:
    """Return the prompt for a question. If it has options, they follow with letters, and an instruction."""
    if not options:
        return text
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([text, *lines, _INSTRUCTION])
