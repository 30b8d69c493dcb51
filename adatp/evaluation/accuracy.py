"""Methods on the held-out questions: which each answers rightly, and what it costs."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp.evaluation.answers import answer_length, is_exact
from adatp.evaluation.bias import per_frame, per_position, share_in_last, top_tokens
from adatp.evaluation.heldout import Paper, papers
from adatp.evaluation.machine import cores
from adatp.evaluation.measure import EncodedClip, answer, with_relevance
from adatp.evaluation.session import Loaded
from adatp.hf.attention_map import visual_attention
from adatp.methods import METHODS, AdaTP, Method
from adatp.models import family_of
from adatp.world.questions import Asked
from adatp_kernels.dispatch import Impl

SETTINGS = (2.0, 1.5, 1.0)  # of AdaTP's p: the three budgets
PEERS = tuple(name for name in METHODS if name not in ("adatp", "none"))


@dataclass(frozen=True)
class Trial:
    """A method to try on every question.

    Attributes:
        method: with its settings.
        like: another trial's method, whose cost it is turned to on each question; None for its own settings.
    """

    method: Method
    like: Method | None = None


class Outcome(NamedTuple):
    """A trial on one question.

    Attributes:
        answer: what the model says; where there are options, the one of them that it says first.
        right: whether it is the right one.
        flops: of the prefill's linear layers, over the unpruned one's.
        kept: visual tokens at the last layer's input.
    """

    answer: str
    right: bool
    flops: float
    kept: int


class Judged(NamedTuple):
    """A question that was asked.

    Attributes:
        clip: its number.
        asked: the question.
        plain: what the unpruned model makes of it.
        outcomes: of each trial; the reason, in words, where a method cannot cost what it should.
    """

    clip: int
    asked: Asked
    plain: Outcome
    outcomes: dict[Trial, Outcome | str]


class Looked(NamedTuple):
    """Where the text of one question looks in the unpruned model, each layer's attention to the video as a share of it.

    Attributes:
        per_frame: `[N, n]`, over the mean frame's.
        per_position: `[N, rows, columns]`, over the mean position's.
        first, last: `[N]` share of the top 10 % of tokens that is in the first and in the last four frames.
    """

    per_frame: Tensor
    per_position: Tensor
    first: Tensor
    last: Tensor


class Examined(NamedTuple):
    """A clip's results."""

    judged: list[Judged]
    looked: Looked


def trials() -> list[Trial]:
    """AdaTP at three settings, and every other method at the same cost."""
    own = [AdaTP(p=p) for p in SETTINGS]
    return [Trial(method) for method in own] + [Trial(METHODS[name](), like) for like in own for name in PEERS]


def examine(
    load: Callable[[], Loaded],
    tried: Sequence[Trial],
    *,
    clips: int,
    questions: int,
    workers: int,
    impl: Impl,
    tell: Callable[[str], None],
) -> Iterator[Examined]:
    """Ask every question with every trial, clip by clip.

    All are asked in the same words. Where there are options, the model may say nothing else (constrained decoding): no
    letters are asked for, which the built-in model does not know.

    Args:
        load: gives the model; where there are several workers, it can be pickled.
        tried: in an order in which none comes before the one that it is like.
        clips: of the held-out split.
        questions: of a clip.
        workers: processes, each on one thread; 1 for none but this one, on the threads it has.
        impl: implementation of the three operations.
        tell: called with how far it is.
    """
    all_of = papers(clips, questions)
    if workers == 1:
        loaded = with_relevance(load())
        for i, paper in enumerate(all_of, 1):
            tell(f"clip {i} of {clips}")
            yield _examine(loaded, paper, tried, impl)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (load, tuple(tried), impl)) as pool:
        for i, examined in enumerate(pool.map(_work, all_of), 1):
            tell(f"clip {i} of {clips}")
            yield examined


def workers_for(device: str) -> int:
    """A process a core where the model runs on them: it is small, and one thread is enough for its tensors."""
    return cores() if device == "cpu" else 1


_worker: dict[str, Any] = {}


def _begin(load: Callable[[], Loaded], tried: Sequence[Trial], impl: Impl) -> None:
    torch.set_num_threads(1)
    _worker.update(loaded=with_relevance(load()), tried=tried, impl=impl)


def _work(paper: Paper) -> Examined:
    return _examine(_worker["loaded"], paper, _worker["tried"], _worker["impl"])


def _examine(loaded: Loaded, paper: Paper, tried: Sequence[Trial], impl: Impl) -> Examined:
    encoded = EncodedClip(loaded, paper.clip())
    judged: list[Judged] = []
    for asked in paper.questions:
        inputs = encoded.inputs(asked.text)
        if not judged:
            looked = _look(loaded, inputs)
        plain = _ask(loaded, inputs, asked, None, None, impl)
        outcomes: dict[Trial, Outcome | str] = {}
        costs: dict[Method, float] = {}
        for trial in tried:
            flops = None if trial.like is None else costs[trial.like]
            try:
                outcome = _ask(loaded, inputs, asked, trial.method, flops, impl)
            except ValueError as error:
                if flops is None:  # only a cost may be out of reach
                    raise
                outcomes[trial] = str(error)
                continue
            outcomes[trial] = outcome
            if trial.like is None:
                costs[trial.method] = outcome.flops
        judged.append(Judged(paper.number, asked, plain, outcomes))
    return Examined(judged, looked)


def _ask(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    asked: Asked,
    method: Method | None,
    flops: float | None,
    impl: Impl,
) -> Outcome:
    length = answer_length(loaded.processor.tokenizer, asked.answer)
    said, report = answer(loaded, inputs, method, flops=flops, tokens=length, choices=asked.options, impl=impl)
    if report is None:
        layout = family_of(loaded.model).layout(inputs["input_ids"][0].cpu())
        assert layout is not None, "every question is about a video"
        cost, kept = 1.0, layout.visual_tokens
    else:
        (sample,) = report.samples
        cost, kept = report.flops.ratio, sample.kept[-1]
    return Outcome(said, is_exact(said, asked.answer), cost, kept)


def _look(loaded: Loaded, inputs: Mapping[str, Any]) -> Looked:
    attention = visual_attention(loaded.model, inputs)
    frames, top = per_frame(attention.scores), top_tokens(attention.scores)
    return Looked(
        frames / frames.mean(1, keepdim=True),
        per_position(attention.scores, attention.grid),
        share_in_last(top.flip(1)),
        share_in_last(top),
    )
