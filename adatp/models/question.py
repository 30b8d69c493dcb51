"""Reads the question about a video from the ids of a prompt."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from adatp.layout import PromptLayout


def read_question(
    input_ids: Tensor,
    layout: PromptLayout,
    tokenizer: Any,
    invisible: Collection[int],
    clean: Callable[[str], str],
) -> str:
    """Read the last user turn that is not empty, from the turn with the video on.

    If all are empty, the question is the text before the video.

    Args:
        input_ids: `[L]` int64 on the host, a prompt without padding.
        layout: its layout.
        tokenizer: decodes the ids; special tokens end a piece of text.
        invisible: ids that belong to videos and images: they are no text, and they end none.
        clean: returns the question without any other text that a prompt has in its place.

    Returns:
        The question; empty if there is none.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}

    def pieces(ids: Tensor) -> list[str]:
        """Decode the text between special tokens."""
        split: list[list[int]] = [[]]
        for token in ids.tolist():
            if token in invisible:
                continue
            if token in special:
                split.append([])
            else:
                split[-1].append(token)
        return [str(tokenizer.decode(piece)) for piece in split]

    asked, *later = pieces(input_ids[layout.end :])
    turns = [asked, *(piece.removeprefix("user") for piece in later if piece.startswith("user"))]
    before = pieces(input_ids[: layout.begins[0]])[-1].removeprefix("user")
    return next(filter(None, map(clean, [*reversed(turns), before])), "")
