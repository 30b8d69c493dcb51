"""The things in the world, and the combinations that each split has."""

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
    """Return the only split that has this noun in this colour at this place, or None if all splits may have it.

    There are 512 combinations; the held-out and the validation split own 64 each. Any two of the three attributes occur
    together in all splits. So only the combination of all three is new, and no two attributes rule out a third.
    """
    turn = (noun + colour + place) % 8
    return {0: "heldout", 1: "validation"}.get(turn)  # type: ignore[return-value]
