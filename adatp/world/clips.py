"""The content of a clip: its scenes, and the things in them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adatp.errors import InputError
from adatp.world.things import (
    COLOURS,
    DIGITS,
    DIRECTIONS,
    NOUNS,
    PLACES,
    SIGN,
    SPLITS,
    TEXTURES,
    Split,
    owner,
)

SIDE = 64  # side of a frame, in pixels
FRAMES = 32  # frames of a clip
SHORT = 3  # largest number of frames of a short scene
_LEFT, _RIGHT, _UP, _DOWN = range(len(DIRECTIONS))


@dataclass(frozen=True)
class Thing:
    """A thing in a scene. Its indices refer to the tuples of `adatp.world.things`.

    Attributes:
        noun, colour, texture: kind of the thing; the texture of a sign is plain.
        digit: digit on a sign, and the number of its scan; None for other things.
        size: side in pixels.
        corner: its corner; the first one, if it moves.
        direction: direction of its movement; None if it stays.
        first, last: it is seen in the frames i of the scene with `first <= i < last`.
        jitter: shift of its centre, in pixels down and right.
    """

    noun: int
    colour: int
    texture: int
    digit: tuple[int, int] | None
    size: int
    corner: int
    direction: int | None
    first: int
    last: int
    jitter: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """A part of a clip between two cuts.

    Attributes:
        place: the background.
        frames: number of frames.
        things: one to four things; two of them are never in the same corner.
        light: gain of each colour channel.
        drift: movement of the camera: pixels of background a frame, down and right.
        seed: seed of the background's details and of the noise.
    """

    place: int
    frames: int
    things: tuple[Thing, ...]
    light: tuple[float, float, float]
    drift: tuple[float, float]
    seed: int

    @property
    def is_short(self) -> bool:
        """Whether the scene has at most `SHORT` frames."""
        return self.frames <= SHORT


@dataclass(frozen=True)
class World:
    """The content of a clip.

    Attributes:
        split: split of the clip.
        scenes: the scenes in order; no place occurs twice.
    """

    split: Split
    scenes: tuple[Scene, ...]

    @cached_property
    def things(self) -> list[tuple[int, Thing]]:
        """All things with the number of their scene."""
        return [(i, thing) for i, scene in enumerate(self.scenes) for thing in scene.things]

    def is_new(self, scene: int, thing: Thing) -> bool:
        """Tell whether the noun, colour and place of the thing occur together in this split only."""
        return owner(thing.noun, thing.colour, self.scenes[scene].place) == self.split


def make_clip(split: Split, number: int, frames: int = FRAMES) -> World:
    """Make the clip with a number.

    Args:
        split: split of the clip. Outside the training split, every scene has a combination of the split's own.
        number: number of the clip; equal numbers give equal clips.
        frames: number of frames. A clip of 32 frames has three to six scenes; in half of the clips one is short.

    Raises:
        InputError: `split` is unknown, or `frames` is below 2.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if frames < 2:
        raise InputError(f"frames must be 2 or more, got {frames}")
    rng = np.random.default_rng([SPLITS.index(split), number, frames])
    lengths = _lengths(rng, frames)
    places = rng.permutation(len(PLACES))[: len(lengths)]
    is_static, is_busy = rng.random() < 0.25, rng.random() < 0.5
    scenes = tuple(
        _scene(rng, split, int(place), length, is_static, is_busy)
        for place, length in zip(places, lengths, strict=True)
    )
    return World(split, scenes)


def _lengths(rng: np.random.Generator, frames: int) -> list[int]:
    """Draw the length of each scene: four frames or more, and perhaps one scene of two or three frames."""
    scenes = int(rng.integers(max(1, frames // 10), min(6, frames // 5 + 1) + 1))
    short = [int(rng.integers(2, SHORT + 1))] if scenes > 2 and rng.random() < 0.5 else []
    scenes, rest = scenes - len(short), frames - sum(short)
    shortest = min(4, rest // scenes)
    cuts = np.sort(rng.integers(0, rest - shortest * scenes + 1, scenes - 1))
    spare = np.diff([0, *cuts, rest - shortest * scenes])
    lengths = [shortest + int(extra) for extra in spare]
    for length in short:
        lengths.insert(int(rng.integers(0, len(lengths) + 1)), length)
    return lengths


def _scene(rng: np.random.Generator, split: Split, place: int, frames: int, is_static: bool, is_busy: bool) -> Scene:
    spots = _spots(rng, int(rng.integers(2, 5)) if is_busy else int(rng.integers(1, 4)), is_static)
    own = int(rng.integers(0, len(spots)))  # the thing with a combination of this split's own
    things = tuple(
        _thing(rng, split, place, frames, spot, must_be_new=split != "train" and i == own)
        for i, spot in enumerate(spots)
    )
    gain = rng.uniform(0.75, 1.15)
    drift = (0.0, 0.0) if is_static else tuple(rng.uniform(-1.5, 1.5, 2).tolist())
    red, green, blue = (gain * rng.uniform(0.93, 1.07, 3)).tolist()
    return Scene(place, frames, things, (red, green, blue), (drift[0], drift[1]), int(rng.integers(0, 2**31)))


def _spots(rng: np.random.Generator, wanted: int, is_static: bool) -> list[tuple[int, int | None]]:
    """Draw a corner and a direction for each thing. A moving thing has a row or a column for itself."""
    spots: list[tuple[int, int | None]] = []
    free = [0, 1, 2, 3]
    if not is_static:
        across = rng.random() < 0.5
        for lane in rng.permutation(2).tolist():
            if len(spots) < wanted and rng.random() < 0.5:
                ends = [2 * lane, 2 * lane + 1] if across else [lane, lane + 2]
                back = int(rng.integers(0, 2))
                spots.append((ends[back], ((_RIGHT, _LEFT) if across else (_DOWN, _UP))[back]))
                free = [corner for corner in free if corner not in ends]
    still = rng.permutation(free).tolist()[: wanted - len(spots)]
    return spots + [(corner, None) for corner in still]


def _thing(
    rng: np.random.Generator,
    split: Split,
    place: int,
    frames: int,
    spot: tuple[int, int | None],
    *,
    must_be_new: bool,
) -> Thing:
    while True:
        # signs come twice as often as others, because their digits take the longest to learn
        noun, colour = min(int(rng.integers(0, len(NOUNS) + 1)), SIGN), int(rng.integers(0, len(COLOURS)))
        if owner(noun, colour, place) in ((split,) if must_be_new else (split, None)):
            break
    corner, direction = spot
    first, last = 0, frames
    if direction is None and frames > SHORT and rng.random() < 0.2:  # it comes late or goes early
        change = int(rng.integers(1, frames // 2 + 1))
        first, last = (change, frames) if rng.random() < 0.5 else (0, frames - change)
    is_sign = noun == SIGN
    return Thing(
        noun=noun,
        colour=colour,
        texture=0 if is_sign else int(rng.integers(0, len(TEXTURES))),
        digit=(int(rng.integers(0, len(DIGITS))), int(rng.integers(0, 2**31))) if is_sign else None,
        size=int(rng.integers(20, 23)) if is_sign else int(rng.integers(17, 23)),
        corner=corner,
        direction=direction,
        first=first,
        last=last,
        jitter=(int(rng.integers(-3, 4)), int(rng.integers(-3, 4))),
    )
