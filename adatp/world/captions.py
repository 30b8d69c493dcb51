"""Captions that are true of some frames and not of others. They serve to align a text tower with a vision tower."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adatp.world.clips import SIDE, Scene, Thing, World
from adatp.world.drawing import centre
from adatp.world.questions import ask_all, with_options
from adatp.world.things import COLOURS, CORNERS, DIGITS, NOUNS, PLACES, TEXTURES

Ints = NDArray[np.int64]
ANY = -1
ABSENT = -2  # value of an attribute that a thing does not have
SIZES = tuple(map(len, (NOUNS, COLOURS, TEXTURES, DIGITS, CORNERS, PLACES)))  # number of values of each attribute


@dataclass(frozen=True)
class Caption:
    """A text, and the attributes that a thing must have for the text to be true.

    Attributes:
        text: the text.
        says: noun, colour, texture, digit, corner and place, each an index or `ANY`.
    """

    text: str
    says: tuple[int, int, int, int, int, int]


def vocabulary() -> list[Caption]:
    """Return a caption for each value of each attribute: nouns, colours, textures, digits, corners, places."""
    return [_caption(tuple(i if k == own else ANY for k in range(6))) for own, n in enumerate(SIZES) for i in range(n)]


def describe(world: World, rng: np.random.Generator) -> Caption:
    """Return a caption that is true of the clip: a thing with two or three attributes, or a question about one."""
    if rng.random() < 0.3:
        return _question(world, rng)
    number, thing = world.things[int(rng.integers(0, len(world.things)))]
    attributes = _attributes(world.scenes[number], thing)
    known = [k for k, value in enumerate(attributes) if value >= 0]
    said = rng.permutation(known)[: int(rng.integers(2, 4))]
    return _caption(tuple(value if k in said else ANY for k, value in enumerate(attributes)))


def seen(scene: Scene, frame: int) -> Ints:
    """Return the attributes of the things in a frame, `[5, 6]` int64 in the order of `Caption.says`.

    The last row is the background, which has only a place.
    """
    found = np.full((5, 6), ABSENT)
    for row, thing in _shown(scene, frame):
        found[row] = _attributes(scene, thing)
    found[-1, 5] = scene.place
    return found


def covered(scene: Scene, frame: int, patch: int) -> NDArray[np.bool_]:
    """Find the patches that show each row of `seen`: the middle of the patch lies in the thing's box.

    Args:
        scene: scene of the frame.
        frame: number of the frame within the scene.
        patch: side of a patch, in pixels.

    Returns:
        `[5, P]` bool. All patches show the background.
    """
    middle = np.arange(SIDE // patch) * patch + (patch - 1) / 2
    found = np.zeros((5, len(middle), len(middle)), bool)
    for row, thing in _shown(scene, frame):
        near = [abs(middle - place) <= thing.size / 2 for place in centre(thing, frame, scene.frames)]
        found[row] = near[0][:, None] & near[1]
    found[-1] = True
    return found.reshape(5, -1)


def fits(says: Ints, rows: Ints) -> NDArray[np.bool_]:
    """Find which texts are true of which things.

    Args:
        says: `[T, 6]`, `Caption.says` of each caption.
        rows: `[F, 5, 6]`, the rows of each frame, as `seen` returns them.

    Returns:
        `[F, 5, T]` bool: whether the thing or the background has all attributes in the text.
    """
    true: NDArray[np.bool_] = ((says == ANY) | (says == rows[:, :, None])).all(-1)
    return true


def _shown(scene: Scene, frame: int) -> list[tuple[int, Thing]]:
    return [(i, thing) for i, thing in enumerate(scene.things) if thing.first <= frame < thing.last]


def _attributes(scene: Scene, thing: Thing) -> tuple[int, int, int, int, int, int]:
    digit = thing.digit[0] if thing.digit else ABSENT
    texture = ABSENT if thing.digit else thing.texture
    corner = thing.corner if thing.direction is None else ABSENT  # a moving thing is in no corner
    return thing.noun, thing.colour, texture, digit, corner, scene.place


def _caption(says: tuple[int, ...]) -> Caption:
    noun, colour, texture, digit, corner, place = says
    words = ["a"]
    words += [] if texture == ANY else [TEXTURES[texture]]
    words += [] if colour == ANY else [COLOURS[colour]]
    words += ["thing" if noun == ANY else NOUNS[noun]]
    words += [] if digit == ANY else [f"with digit {DIGITS[digit]}"]
    words += [] if corner == ANY else [f"at the {CORNERS[corner]}"]
    words += [] if place == ANY else [f"in the {PLACES[place]}"]
    return Caption(" ".join(words), (noun, colour, texture, digit, corner, place))


def _question(world: World, rng: np.random.Generator) -> Caption:
    """Return a question as a caption, which is true of the frames that show its subject."""
    asked = ask_all(world, rng)[0]
    if rng.random() < 0.25:
        asked = with_options(asked, world, rng)
    about = asked.about[int(rng.integers(0, len(asked.about)))]  # one of two things, because no frame may show both
    noun, colour, place = (ANY if value is None else value for value in (about.noun, about.colour, about.place))
    return Caption(asked.prompt, (noun, colour, ANY, ANY, ANY, place))
