"""What there is in the world, and which combinations of it each split knows."""

from typing import Literal, get_args

Split = Literal["train", "validation", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

NOUNS = ("circle", "triangle", "star", "cross", "ring", "heart", "diamond", "sign")  # a sign shows a digit
COLOURS = ("red", "yellow", "green", "blue", "purple", "pink", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
PLACES = ("snow", "forest", "desert", "sea", "night", "street", "meadow", "cave")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
DIRECTIONS = ("left", "right", "up", "down")
NUMBERS = ("one", "two", "three", "four")
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

SIGN = NOUNS.index("sign")


def owner(noun: int, colour: int, place: int) -> Split | None:
    """The split that alone has this noun in this colour at this place; None for what all splits may have.

    Of the 512 combinations held-out and validation own 64 each. Every two of the three occur together in all splits, so
    what is new is the combination: no two of them tell that the third is ruled out.
    """
    turn = (noun + colour + place) % 8
    return {0: "heldout", 1: "validation"}.get(turn)  # type: ignore[return-value]
