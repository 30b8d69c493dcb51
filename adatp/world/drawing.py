"""Painting of the frames of a clip."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from adatp.world.clips import SIDE, Scene, Thing, World
from adatp.world.things import COLOURS, DIRECTIONS, NOUNS, PLACES, SPLITS, TEXTURES, Split

Floats = NDArray[np.floating]

_RGB = {
    "red": (220, 30, 30), "yellow": (245, 220, 40), "green": (40, 170, 60), "blue": (40, 80, 230),
    "purple": (130, 40, 180), "pink": (255, 140, 190), "white": (245, 245, 245), "black": (25, 25, 25),
}  # fmt: skip
_PALETTE = np.array([_RGB[colour] for colour in COLOURS], np.float32)
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
_HALF = SIDE // 2  # corners are half a frame apart
_OUTLINE = 0.8  # size of a thing within its outline, over its whole size


def draw(world: World) -> NDArray[np.uint8]:
    """Draw the frames of a clip, `[n, 64, 64, 3]` uint8."""
    return np.concatenate([draw_scene(scene, world.split) for scene in world.scenes])


def draw_scene(scene: Scene, split: Split, only: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Draw the frames of one scene, `[n, 64, 64, 3]` uint8.

    Args:
        scene: the scene.
        split: split whose scans of digits the signs show.
        only: the frames to draw; None for all.
    """
    wanted = range(scene.frames) if only is None else only
    rng = np.random.default_rng(scene.seed)
    background = _BACKGROUNDS[PLACES[scene.place]](rng)
    sprites = [(thing, *_sprite(thing, split)) for thing in scene.things]
    frames = np.empty((len(wanted), SIDE, SIDE, 3), np.float32)
    for i, frame in zip(wanted, frames, strict=True):
        down, right = (round(i * step) for step in scene.drift)
        frame[:] = np.roll(background, (-down, -right), axis=(0, 1))
        for thing, paint, cover in sprites:
            if thing.first <= i < thing.last:
                _put(frame, paint, cover, centre(thing, i, scene.frames))
    frames *= np.asarray(scene.light, np.float32)
    frames += 4 * rng.standard_normal(frames.shape, np.float32)
    painted: NDArray[np.uint8] = frames.round().clip(0, 255).astype(np.uint8)
    return painted


def centre(thing: Thing, frame: int, frames: int) -> tuple[int, int]:
    """Return the centre of a thing in a frame of a scene with `frames` frames, in pixels down and right."""
    row, column = divmod(thing.corner, 2)
    y, x = (_HALF // 2 + _HALF * side + off for side, off in zip((row, column), thing.jitter, strict=True))
    if thing.direction is not None:
        down, right = _STEPS[DIRECTIONS[thing.direction]]
        way = round(_HALF * frame / max(1, frames - 1))
        y, x = y + down * way, x + right * way
    return y, x


def _put(frame: Floats, paint: Floats, cover: Floats, at: tuple[int, int]) -> None:
    size = len(paint)
    top, left = (min(max(0, place - size // 2), SIDE - size) for place in at)
    under = frame[top : top + size, left : left + size]
    under += cover * (paint - under)


def _sprite(thing: Thing, split: Split) -> tuple[Floats, Floats]:
    """Return the colours of a thing, `[s, s, 3]`, and its opacity, `[s, s, 1]`."""
    colour = _PALETTE[thing.colour]
    is_bright = colour.mean() > 125
    second = colour * 0.35 if is_bright else colour * 0.35 + 160
    if thing.digit is None:
        mixed = _texture(TEXTURES[thing.texture], thing.size)
    else:
        mixed = _digit(split, *thing.digit, thing.size)
    outer = _mask(NOUNS[thing.noun], thing.size, 1.0)
    inner = _mask(NOUNS[thing.noun], thing.size, _OUTLINE)
    outline = np.full(3, 225 if COLOURS[thing.colour] == "black" else 15, np.float32)
    paint = colour + mixed[..., None] * (second - colour)
    return outline + inner[..., None] * (paint - outline), outer[..., None]


@lru_cache(maxsize=256)
def _mask(noun: str, size: int, scale: float) -> Floats:
    """Return the share of each pixel that a shape covers, `[size, size]`."""
    fine = 4
    line = (np.arange(size * fine, dtype=np.float32) + 0.5) / (size * fine) * 2 - 1
    x, y = np.meshgrid(line, line)
    if noun in ("ring", "cross"):  # the outline makes their limbs thinner, not the whole shape smaller
        inside = _thin(noun, x, y, 0.0 if scale == 1.0 else 0.11)
    else:
        inside = _SHAPES[noun](x / scale, y / scale)
    covered: Floats = inside.reshape(size, fine, size, fine).mean((1, 3), dtype=np.float32)
    return covered


def _thin(noun: str, x: Floats, y: Floats, off: float) -> NDArray[np.bool_]:
    if noun == "ring":
        r = np.hypot(x, y)
        return (r < 0.97 - off) & (r > 0.42 + off)
    limb, reach = 0.36 - off, 0.97 - off
    return (np.maximum(abs(x), abs(y)) < reach) & (np.minimum(abs(x), abs(y)) < limb)


def _star(x: Floats, y: Floats) -> NDArray[np.bool_]:
    angle, r = np.arctan2(x, -y), np.hypot(x, y)
    turn = abs((angle / (2 * np.pi) * 5) % 1 * 2 - 1)  # 1 at a point of the star, 0 between two
    return r < 0.4 + 0.6 * turn**1.6


def _heart(x: Floats, y: Floats) -> NDArray[np.bool_]:
    x, y = 1.2 * x, -1.25 * y + 0.15
    return (x**2 + y**2 - 0.85) ** 3 < 1.3 * x**2 * y**3


_SHAPES: dict[str, Callable[[Floats, Floats], NDArray[np.bool_]]] = {
    "circle": lambda x, y: np.hypot(x, y) < 0.97,
    "triangle": lambda x, y: (y < 0.9) & (abs(x) < (y + 0.95) / 1.9),
    "star": _star,
    "heart": _heart,
    "diamond": lambda x, y: abs(x) / 0.8 + abs(y) < 1,
    "sign": lambda x, y: np.maximum(abs(x), abs(y)) < 1,
}


@lru_cache(maxsize=64)
def _texture(name: str, size: int) -> Floats:
    """Return the share of the second colour in each pixel, `[size, size]`."""
    y, x = np.mgrid[:size, :size]
    if name == "striped":
        on = (y // 3) % 2 == 1
    elif name == "checked":
        on = ((y // 4) + (x // 4)) % 2 == 1
    elif name == "dotted":
        on = np.hypot((y + 1) % 6 - 2.5, (x + 1) % 6 - 2.5) < 1.7
    else:
        on = np.zeros((size, size))
    ink: Floats = on.astype(np.float32)
    return ink


@cache
def _scans() -> list[Floats]:
    """Load scikit-learn's handwritten digits in [0, 1], by digit, `[s, 8, 8]` each."""
    from sklearn.datasets import load_digits  # imported here, because only drawing needs it

    data = load_digits()
    return [(data.images[data.target == digit] / 16).astype(np.float32) for digit in range(10)]


def _digit(split: Split, digit: int, scan: int, size: int) -> Floats:
    """Return a scan as the ink of a sign, `[size, size]`. Each split has its own scans."""
    own = _scans()[digit][SPLITS.index(split) :: len(SPLITS)]
    ink = np.zeros((size, size), np.float32)
    edge = (size - 16) // 2
    ink[edge : edge + 16, edge : edge + 16] = own[scan % len(own)].repeat(2, 0).repeat(2, 1)
    return ink


def _tone(red: float, green: float, blue: float) -> Floats:
    picture: Floats = np.full((SIDE, SIDE, 3), (red, green, blue), np.float32)
    return picture


def _speckle(rng: np.random.Generator, share: float) -> NDArray[np.bool_]:
    return rng.random((SIDE, SIDE)) < share


def _wave(rng: np.random.Generator, down: int, right: int) -> Floats:
    """Return a wave in [-1, 1] with `down` and `right` periods, which continues across the edges."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    turn: NDArray[np.float64] = 2 * np.pi * (down * y + right * x + rng.random())
    wave: Floats = np.sin(turn).astype(np.float32)[..., None]
    return wave


def _snow(rng: np.random.Generator) -> Floats:
    ground = _tone(205, 218, 235)
    ground[_speckle(rng, 0.1)] = (252, 252, 255)
    return ground


def _forest(rng: np.random.Generator) -> Floats:
    trees = _tone(45, 85, 45)
    trees += 25 * np.sign(_wave(rng, 0, 6))
    return trees


def _desert(rng: np.random.Generator) -> Floats:
    return _tone(215, 180, 120) + 18 * _wave(rng, 3, 2)


def _sea(rng: np.random.Generator) -> Floats:
    return _tone(60, 130, 175) + 22 * _wave(rng, 6, 0)


def _night(rng: np.random.Generator) -> Floats:
    sky = _tone(18, 20, 55)
    sky[_speckle(rng, 0.02)] = (235, 235, 200)
    return sky


def _street(rng: np.random.Generator) -> Floats:
    y, x = np.mgrid[:SIDE, :SIDE] + rng.integers(0, 8, 2)[:, None, None]
    wall = _tone(150, 85, 70)
    wall[(y % 8 == 0) | ((x + 8 * (y // 8 % 2)) % 16 == 0)] = (190, 180, 170)
    return wall


def _meadow(rng: np.random.Generator) -> Floats:
    grass = _tone(125, 190, 85)
    grass[_speckle(rng, 0.06)] = (240, 240, 130)
    grass[_speckle(rng, 0.06)] = (85, 150, 60)
    return grass


def _cave(rng: np.random.Generator) -> Floats:
    return _tone(95, 92, 90) + 20 * _wave(rng, 2, 3) * _wave(rng, 3, -1)


_BACKGROUNDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "snow": _snow,
    "forest": _forest,
    "desert": _desert,
    "sea": _sea,
    "night": _night,
    "street": _street,
    "meadow": _meadow,
    "cave": _cave,
}
