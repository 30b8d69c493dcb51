"""The features that a method reads from the vision tower and from the question, for every prompt of a batch."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp.engine.scoring import Scoring
from adatp.engine.tower import saliency_and_keys
from adatp.errors import Unsupported
from adatp.hf.batch import Batch
from adatp.hf.setup import Setup
from adatp.hf.side_stream import SideStream
from adatp.models.family import Family
from adatp.relevance import UNCALIBRATED, NoRelevanceWarning, SecondTower, similarity
from adatp.tensors.transfer import send

Questions = Sequence[str | None] | None  # one per prompt
SEEN = "adatp_frames"  # key of a second tower's frame features among the features of the first


class Features(NamedTuple):
    """Features of one prompt with n frames; a feature that the method does not read is None.

    Attributes:
        frames: `[n, F]` one feature per frame.
        similarity: `[n]` text relevance of every frame (eq. 3); also None if there is no question.
        saliency: `[n, P]` attention that each patch receives; see `adatp.methods.method.Video`.
        keys: `[n, P, d]` keys of that attention.
    """

    frames: Tensor | None = None
    similarity: Tensor | None = None
    saliency: Tensor | None = None
    keys: Tensor | None = None


def questions_of(setup: Setup, batch: Batch, given: str | list[str] | None, *, readable: bool) -> Questions:
    """Find the question of each prompt: the one that the user has given, or else the one in the prompt.

    Args:
        setup: the method on its model.
        batch: the prompts.
        given: a question for all prompts, or one per prompt (not per copy for beams); None to read the prompts.
        readable: whether the ids hold the text of the prompts; they do not if the prompts came as embeddings.

    Returns:
        One question per prompt, None for a prompt without; or None if frames are not compared with questions.

    Raises:
        Unsupported: the number of questions does not fit the number of prompts.
    """
    if not setup.method.wants_question or setup.questions is None:
        return None
    if given is None:
        return [
            setup.family.question(ids, layout, setup.tokenizer) if readable and layout is not None else None
            for ids, layout in zip(batch.ids, batch.layouts, strict=True)
        ]
    each = [given] if isinstance(given, str) else given
    prompts = len(batch.ids)
    copies, rest = divmod(prompts, max(1, len(each)))
    if rest or copies == 0:
        raise Unsupported(f"question holds {len(each)} questions for {prompts} prompts; give one per prompt")
    return [question for question in each for _ in range(copies)]  # the copies of a prompt for beams are side by side


def comparable(setup: Setup, batch: Batch, questions: Questions) -> tuple[Questions, list[str]]:
    """Check which prompts have a question that frames can be compared with.

    Args:
        setup: the method on its model.
        batch: the prompts.
        questions: one question per prompt, None for a prompt without; or None.

    Returns:
        The questions, or None if no frames are compared; and notes for the user.

    Warns:
        NoRelevanceWarning: a prompt with a video has no question.
    """
    if not setup.method.wants_question:
        return None, [UNCALIBRATED] if setup.method.wants_frames and setup.relevance is None else []
    if setup.questions is None or questions is None:
        return None, [
            f"no aligned text encoder: every segment gets the same ratio (no global debiasing), and {UNCALIBRATED}"
        ]
    notes = []
    for b, (question, layout) in enumerate(zip(questions, batch.layouts, strict=True)):
        if layout is not None and not question:
            notes.append(f"sample {b} has no question: each of its segments gets the same ratio; pass question=...")
            warnings.warn(notes[-1], NoRelevanceWarning, stacklevel=2)
    return questions if any(questions) else None, notes


@torch.no_grad()
def see_again(
    family: Family,
    relevance: Any,
    encode: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    encoded: Any,
) -> None:
    """Let a second tower see the frames, and add its features to those of the first; without one, do nothing.

    Args:
        family: the model, as its family.
        relevance: the aligned SigLIP, or None.
        encode: the method `get_video_features`.
        args, kwargs: its arguments.
        encoded: its output.
    """
    if isinstance(relevance, SecondTower) and isinstance(encoded, dict):
        given = inspect.signature(encode).bind_partial(*args, **kwargs).arguments
        encoded[SEEN] = torch.cat([relevance(video) for video in family.pictures(given)])


def read_features(setup: Setup, batch: Batch, encoded: Any, questions: Questions, side: SideStream) -> list[Features]:
    """Compute the features that the method reads, while the decoder's first layers run.

    Args:
        setup: the method on its model.
        batch: the prompts.
        encoded: output of `get_video_features`.
        questions: the questions that `comparable` returned.
        side: the stream that encodes and compares frames.

    Returns:
        The features of each prompt.

    Raises:
        Unsupported: the videos in the prompts do not fit the videos that were encoded.
    """
    frames = _frames(setup, batch, encoded, side)
    text = None
    if questions is not None:
        assert setup.questions is not None
        text = setup.questions.features([question or "" for question in questions])
    saliency, keys = _tower(setup, encoded)
    known = frames if saliency is None else saliency
    if known is None:
        return [Features()] * len(batch.layouts)
    found = []
    with side.queued(*(() if text is None else (text,))):
        for b, (layout, places) in enumerate(zip(batch.layouts, _places(setup, batch, len(known)), strict=True)):
            own = places if isinstance(places, slice) else send(places, known.device)
            features = None if frames is None else frames[own]
            similar = None
            if layout is not None and features is not None and text is not None and questions and questions[b]:
                similar = similarity(features[None], text[b : b + 1].to(features.device))[0]
            parts = (None if part is None else part[own] for part in (saliency, keys))
            found.append(Features(features, similar, *parts))
    return found


def _frames(setup: Setup, batch: Batch, encoded: Any, side: SideStream) -> Tensor | None:
    """Compute `[F, D]`, one feature for every frame of all videos."""
    if not setup.method.wants_frames:
        return None
    if setup.relevance is None:
        with side.queued():  # the prefill holds `encoded` until its end
            return setup.family.frame_features(encoded, batch.sizes)
    if isinstance(setup.relevance, SecondTower):
        if SEEN not in encoded:
            raise Unsupported(
                "the video features come without those of the second SigLIP, which needs the pixels: pass the output "
                "of get_video_features, called while the method is applied"
            )
        seen: Tensor = encoded[SEEN]
        return seen
    states = setup.family.tower_states(encoded)  # [F, patches, D]
    with side.queued(states):
        frames: Tensor = setup.relevance.to(states.device)(states)
        return frames


def _tower(setup: Setup, encoded: Any) -> tuple[Tensor | None, Tensor | None]:
    """Compute the `[F, P]` attention that patches receive in the tower and their `[F, P, d]` keys, pooled in fp32."""
    if not setup.wants_tower:
        return None, None
    family = setup.family
    query, key = family.tower_attention(encoded)
    return saliency_and_keys(query, key, family.pool, Scoring(setup.scoring.impl))  # each rank has the whole tower


def _places(setup: Setup, batch: Batch, encoded: int) -> list[slice | Tensor]:
    """Return the places of each prompt's frames among all that was encoded, `encoded` frames and tiles of images.

    Copies of a prompt (for beams) are side by side. They may share one set of encoded frames.
    """
    prompts = zip(batch.ids, batch.layouts, strict=True)
    wanted = [setup.family.frames_encoded(ids, layout) for ids, layout in prompts]
    told = sum(map(len, wanted))
    copies, rest = divmod(told, encoded)
    if rest or copies == 0:
        frames = int(sum(chosen.sum() for chosen in wanted))
        images = f" and images of {told - frames} tiles" if told > frames else ""
        raise Unsupported(f"the prompts hold videos of {frames} frames{images}, but {encoded} frames were encoded")
    places: list[slice | Tensor] = []
    begin = 0
    for b, chosen in enumerate(wanted):
        stop = begin + len(chosen)
        places.append(slice(begin, stop) if bool(chosen.all()) else begin + chosen.nonzero().flatten())
        begin = stop if b % copies == copies - 1 else begin
    return places
