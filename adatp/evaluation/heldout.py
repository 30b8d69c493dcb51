"""Questions about held-out clips. Their combinations of things do not occur in the training clips."""

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
    """The questions of one clip, like an exam paper.

    Attributes:
        number: number of the clip.
        world: content of the clip.
        questions: each is about a combination that only the clip's split has; in the training split, about anything.
    """

    number: int
    world: World
    questions: tuple[Asked, ...]

    def clip(self) -> Clip:
        """Return the frames, as if every one had been sampled from a file."""
        frames = draw(self.world)
        return Clip(frames, np.arange(len(frames)) / FPS, len(frames) / FPS, len(frames), None)


def papers(clips: int, questions: int) -> Iterator[Paper]:
    """Return the questions of the first held-out clips. They are always the same; every second one has options.

    Args:
        clips: number of clips.
        questions: largest number of questions about each clip; all kinds occur about equally often.
    """
    return (paper_of("heldout", number, questions=questions, options=True) for number in range(clips))


def paper_of(split: Split, number: int, *, questions: int, options: bool) -> Paper:
    """Return the questions of one clip.

    Args:
        split: split of the clip.
        number: number of the clip.
        questions: largest number of questions.
        options: whether every second question has options.
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
