"""Questions about a clip, with their answers.

A question names a thing by its noun, its colour or both, and sometimes by the place of its scene ("the red star in the
desert"). A question is asked only if these words fit exactly one thing of the whole clip.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal, get_args

import numpy as np

from adatp.world.clips import Thing, World
from adatp.world.multiple_choice import prompt_of
from adatp.world.things import COLOURS, CORNERS, DIGITS, DIRECTIONS, NOUNS, NUMBERS, PLACES, SIGN, TEXTURES

Kind = Literal["what", "colour", "pattern", "digit", "where", "count", "scene", "order", "motion"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ANSWERS: dict[Kind, tuple[str, ...]] = {
    "what": NOUNS,
    "colour": COLOURS,
    "pattern": TEXTURES,
    "digit": DIGITS,
    "where": CORNERS,
    "count": NUMBERS,
    "scene": PLACES,
    "order": ("before", "after"),
    "motion": DIRECTIONS,
}


@dataclass(frozen=True)
class Asked:
    """A question about a clip.

    Attributes:
        kind: kind of the question.
        text: the question.
        answer: the right answer, in words.
        options: the options in their order; empty for an open question.
        about: references to the things in the question; for a whole scene, a reference that fits any thing there.
        scenes: numbers of the scenes that show the answer.
        is_short: whether one of these scenes is short.
        is_new: whether the question is about a combination that only the clip's split has.
    """

    kind: Kind
    text: str
    answer: str
    options: tuple[str, ...]
    about: tuple["Reference", ...]
    scenes: tuple[int, ...]
    is_short: bool
    is_new: bool

    @property
    def prompt(self) -> str:
        """The text for the model: the question, and the options if it has any."""
        return prompt_of(self.text, self.options)

    @property
    def said(self) -> str:
        """The answer that a model should give: the letter of the right option, or the answer to an open question."""
        return ascii_uppercase[self.options.index(self.answer)] if self.options else self.answer


@dataclass(frozen=True)
class Reference:
    """A reference to one thing of a clip.

    Attributes:
        noun, colour, place: the attributes that the reference names; None for those it leaves out.
    """

    noun: int | None
    colour: int | None
    place: int | None

    def fits(self, thing: Thing, place: int) -> bool:
        """Tell whether the reference fits a thing in a scene with that place."""
        meant = ((self.noun, thing.noun), (self.colour, thing.colour), (self.place, place))
        return all(said is None or said == true for said, true in meant)

    def __str__(self) -> str:
        words = ["the"]
        words += [] if self.colour is None else [COLOURS[self.colour]]
        words += ["thing" if self.noun is None else NOUNS[self.noun]]
        words += [] if self.place is None else [f"in the {PLACES[self.place]}"]
        return " ".join(words)


def ask_all(world: World, rng: np.random.Generator) -> list[Asked]:
    """Return all questions about the clip, once each, as open questions. The words and the order are random."""
    asked = list(_questions(world, rng))
    return [asked[i] for i in rng.permutation(len(asked))]


def ask_orders(world: World, rng: np.random.Generator, wanted: int) -> list[Asked]:
    """Return questions about "before" and "after". Some may occur twice; a clip may allow fewer than `wanted`.

    Every second question compares one thing with the middle of the clip. This is easier than to compare two things.
    """
    pairs = [asked for _ in range(wanted) for asked in _order(world, rng)]
    halves = [asked for _ in range(wanted) for asked in _half(world, rng)]
    return [asked for both in zip(pairs, halves, strict=False) for asked in both][:wanted]


def with_options(asked: Asked, world: World, rng: np.random.Generator) -> Asked:
    """Add options to a question: the answer and three others, or one other for "before" and "after".

    Others that occur in the clip are preferred.
    """
    others = [answer for answer in ANSWERS[asked.kind] if answer != asked.answer]
    seen = _seen(world, asked.kind)
    others = sorted(rng.permutation(others).tolist(), key=lambda answer: answer not in seen)[:3]
    options = rng.permutation([asked.answer, *others]).tolist()
    return Asked(**{**vars(asked), "options": tuple(options)})


def _seen(world: World, kind: Kind) -> set[str]:
    things = [thing for _, thing in world.things]
    return {
        "what": {NOUNS[thing.noun] for thing in things},
        "colour": {COLOURS[thing.colour] for thing in things},
        "pattern": {TEXTURES[thing.texture] for thing in things},
        "digit": {DIGITS[thing.digit[0]] for thing in things if thing.digit},
        "scene": {PLACES[scene.place] for scene in world.scenes},
    }.get(kind, set())


def _questions(world: World, rng: np.random.Generator) -> Iterator[Asked]:
    for number, thing in world.things:
        for kind, begin, answer, says in _of_thing(world, number, thing):
            reference = refer(world, number, thing, rng, says)
            if reference is not None:
                yield _asked(world, kind, f"{begin} {reference}?", answer, [reference], [(number, thing)])
    for number, scene in enumerate(world.scenes):
        text = f"how many things are in the {PLACES[scene.place]}?"
        things = [(number, thing) for thing in scene.things]
        yield _asked(world, "count", text, NUMBERS[len(things) - 1], [Reference(None, None, scene.place)], things)
    yield from _order(world, rng)


def _of_thing(world: World, number: int, thing: Thing) -> Iterator[tuple[Kind, str, str, str]]:
    """Return kind, beginning, answer, and the attributes that the reference may use: n(oun), c(olour), p(lace)."""
    yield "what", "what is", NOUNS[thing.noun], "cp"
    yield "colour", "which colour is", COLOURS[thing.colour], "np"
    yield "scene", "in which scene is", PLACES[world.scenes[number].place], "nc"
    if thing.noun == SIGN:
        assert thing.digit is not None
        yield "digit", "which digit is on", DIGITS[thing.digit[0]], "Ncp"
    else:
        yield "pattern", "which pattern has", TEXTURES[thing.texture], "ncp"
    if thing.direction is None:
        yield "where", "where is", CORNERS[thing.corner], "ncp"
    else:
        yield "motion", "which way moves", DIRECTIONS[thing.direction], "ncp"


def refer(world: World, number: int, thing: Thing, rng: np.random.Generator, says: str) -> Reference | None:
    """Return a random reference that fits this thing and no other thing of the clip.

    Args:
        world: the clip.
        number: number of the thing's scene.
        thing: the thing to refer to.
        rng: random generator for the choice.
        says: attributes that may be used: "n", "c", "p"; "N" for a noun that must be used.

    Returns:
        The reference, or None if none fits this thing alone.
    """
    found = []
    for noun in (True,) if "N" in says else (True, False) if "n" in says else (False,):
        for colour in (True, False) if "c" in says else (False,):
            for place in (True, False) if "p" in says else (False,):
                reference = Reference(
                    thing.noun if noun else None,
                    thing.colour if colour else None,
                    world.scenes[number].place if place else None,
                )
                if noun or colour:
                    found.append(reference)
    found = [
        reference
        for reference in found
        if sum(reference.fits(other, world.scenes[at].place) for at, other in world.things) == 1
    ]
    return found[int(rng.integers(0, len(found)))] if found else None


def _order(world: World, rng: np.random.Generator) -> Iterator[Asked]:
    """Ask whether a thing comes before or after a thing of another scene. Try once for each scene but one."""
    for _ in world.scenes[1:]:
        (i, one), (j, other) = (world.things[int(k)] for k in rng.integers(0, len(world.things), 2))
        if i == j:
            continue
        first, second = (refer(world, at, thing, rng, "nc") for at, thing in ((i, one), (j, other)))
        if first is not None and second is not None:
            text = f"is {first} before or after {second}?"
            answer = "before" if i < j else "after"
            yield _asked(world, "order", text, answer, [first, second], [(i, one), (j, other)])


def _half(world: World, rng: np.random.Generator) -> Iterator[Asked]:
    """Ask whether a thing comes before or after the middle of the clip, if its scene lies within one half."""
    frames = sum(scene.frames for scene in world.scenes)
    number, thing = world.things[int(rng.integers(0, len(world.things)))]
    begin = sum(scene.frames for scene in world.scenes[:number])
    is_before, is_after = 2 * (begin + world.scenes[number].frames) <= frames, 2 * begin >= frames
    reference = refer(world, number, thing, rng, "ncp")
    if reference is not None and (is_before or is_after):
        text = f"is {reference} before or after the middle?"
        yield _asked(world, "order", text, "before" if is_before else "after", [reference], [(number, thing)])


def _asked(
    world: World,
    kind: Kind,
    text: str,
    answer: str,
    about: Sequence[Reference],
    things: Sequence[tuple[int, Thing]],
) -> Asked:
    scenes = tuple(sorted({number for number, _ in things}))
    return Asked(
        kind=kind,
        text=text,
        answer=answer,
        options=(),
        about=tuple(about),
        scenes=scenes,
        is_short=any(world.scenes[number].is_short for number in scenes),
        is_new=any(world.is_new(number, thing) for number, thing in things),
    )


def choose(asked: Sequence[Asked], wanted: int, rng: np.random.Generator) -> list[Asked]:
    """Choose questions such that all kinds occur about equally often.

    Args:
        asked: the questions, in random order.
        wanted: largest number of questions to choose.
        rng: random generator, which breaks ties.
    """
    turn: Counter[Kind] = Counter()
    ranked = []
    for question in asked:
        turn[question.kind] += 1
        ranked.append((turn[question.kind], float(rng.random()), question))
    return [question for _, _, question in sorted(ranked, key=lambda entry: entry[:2])[:wanted]]
