"""The exam: questions about clips whose combinations no training has shown."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adatp.video import Clip
from adatp.world.clips import World, make_clip
from adatp.world.drawing import draw
from adatp.world.files import FPS
from adatp.world.questions import Asked, ask_all, choose, with_options
from adatp.world.things import Split


@dataclass(frozen=True)
class Paper:
    """One clip's questions.

    Attributes:
        number: of the clip.
        world: what happens in it.
        questions: each about what only the clip's split combines; of the training split, about anything.
    """

    number: int
    world: World
    questions: tuple[Asked, ...]

    def clip(self) -> Clip:
        """The frames, as if every one had been sampled from a file."""
        frames = draw(self.world)
        return Clip(frames, np.arange(len(frames)) / FPS, len(frames) / FPS, len(frames), None)


def papers(clips: int, questions: int) -> Iterator[Paper]:
    """The questions of the first held-out clips, always the same; every other one has options.

    Args:
        clips: how many.
        questions: of a clip, at most, kinds about equally often.
    """
    return (paper_of("heldout", number, questions=questions, options=True) for number in range(clips))


def paper_of(split: Split, number: int, *, questions: int, options: bool) -> Paper:
    """The questions of one clip.

    Args:
        split: whose.
        number: of the clip.
        questions: at most.
        options: whether every other one has them.
    """
    world, rng = make_clip(split, number), np.random.default_rng(number)
    found = ask_all(world, rng)
    chosen = choose([asked for asked in found if asked.is_new] if split != "train" else found, questions, rng)
    turn = number % 2  # so that no kind is always open
    return Paper(
        number,
        world,
        tuple(
            with_options(asked, world, rng) if options and i % 2 == turn else asked for i, asked in enumerate(chosen)
        ),
    )
