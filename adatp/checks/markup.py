"""Refusal of texts that would change the structure of a prompt."""

from typing import Any

from adatp.checks.values import shown
from adatp.errors import InputError


def refuse_markup(name: str, value: str, processor: Any) -> None:
    """Refuse a text for a prompt if it holds a special token, such as `<video>` or `<|im_end|>`.

    A tokenizer finds special tokens wherever they are written. In a question, `<video>` would stand for a second video,
    and `<|im_end|>` would end the user's turn. There is no way to write them as plain text.

    Args:
        name: what the text is, for the message: "--question".
        value: the text.
        processor: the processor of the model that the prompt is for.

    Raises:
        InputError: the text holds a special token.
    """
    tokenizer = processor.tokenizer
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {*tokenizer.all_special_tokens, processor.image_token, processor.video_token}
    found = sorted(token for token in special if token and token in value)
    if found:
        raise InputError(
            f"{name} must be plain text, without the special tokens of the model's prompts; got {shown(value)}, which "
            f"holds {', '.join(found)}"
        )
