"""Right answers and costs of methods on the held-out questions."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp.errors import InputError
from adatp.evaluation.answers import answer_length, is_exact
from adatp.evaluation.bias import per_frame, per_position, share_in_last, top_tokens
from adatp.evaluation.heldout import Paper, papers
from adatp.evaluation.machine import cores
from adatp.evaluation.measure import EncodedClip, answer, with_relevance
from adatp.evaluation.session import Loaded
from adatp.hf.attention_map import visual_attention
from adatp.methods import METHODS, AdaTP, Method
from adatp.models import family_of, tokenizer_of
from adatp.world.questions import Asked
from adatp_kernels.dispatch import Impl

SETTINGS = (2.0, 1.5, 1.0)  # of AdaTP's p: the three budgets
PEERS = tuple(name for name in METHODS if name not in ("adatp", "none"))


@dataclass(frozen=True)
class Trial:
    """A method to try on every question.

    Attributes:
        method: the method with its settings.
        like: the method of another trial. This trial is set to cost the same on each question. None for the method's
            own settings.
    """

    method: Method
    like: Method | None = None


class Outcome(NamedTuple):
    """A trial on one question.

    Attributes:
        answer: the model's answer; one of the options, if the question has options.
        right: whether the answer is right.
        flops: FLOPs of the prefill's linear layers, over those of the unpruned prefill.
        kept: visual tokens at the last layer's input.
    """

    answer: str
    right: bool
    flops: float
    kept: int


class Judged(NamedTuple):
    """A question that was asked.

    Attributes:
        clip: number of the clip.
        asked: the question.
        plain: outcome of the unpruned model.
        outcomes: outcome of each trial, or the reason in words if the method cannot reach the cost.
    """

    clip: int
    asked: Asked
    plain: Outcome
    outcomes: dict[Trial, Outcome | str]


class Looked(NamedTuple):
    """Attention of one question's text to the video, in each layer of the unpruned model.

    Attributes:
        per_frame: `[N, n]` attention to each frame, over the mean of the frames.
        per_position: `[N, rows, columns]` attention to each position, over the mean of the positions.
        first, last: `[N]` share of the top 10 % of tokens that is in the first and in the last four frames.
    """

    per_frame: Tensor
    per_position: Tensor
    first: Tensor
    last: Tensor


class Examined(NamedTuple):
    """Results of one clip: the judged questions, and the attention of the first of them."""

    judged: list[Judged]
    looked: Looked


def trials() -> list[Trial]:
    """Return the trials: AdaTP at three settings, and every other method at the same costs."""
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

    All trials get the same prompt. If a question has options, the model may answer with one of them only (constrained
    decoding). The prompt asks for no letter, because the built-in model does not know letters.

    Args:
        load: returns the model; must be picklable if there are several workers.
        tried: the trials; each comes after the one in its `like`.
        clips: number of held-out clips.
        questions: largest number of questions about each clip.
        workers: number of processes, each with one thread; with 1, this process does the work, with all its threads.
        impl: implementation of the three operations.
        tell: called with the progress.
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
    """Return the number of processes for a device: one for each CPU core, or one for a GPU.

    The model is small, so one thread is enough for its tensors.
    """
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
            except InputError as error:
                if flops is None:  # only a wanted cost can be out of reach
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
        family = family_of(loaded.model, tokenizer_of(loaded.processor))
        layout = family.layout(inputs["input_ids"][0].cpu(), family.sizes(inputs))
        assert layout is not None, "every question is about a video"
        cost, kept = 1.0, layout.visual_tokens
    else:
        (sample,) = report.samples
        cost, kept = report.flops.ratio, sample.kept[-1]
    return Outcome(said, is_exact(said, asked.answer), cost, kept)


def _look(loaded: Loaded, inputs: Mapping[str, Any]) -> Looked:
    attention = visual_attention(loaded.model, inputs, loaded.processor)
    frames, top = per_frame(attention.scores), top_tokens(attention.scores)
    return Looked(
        frames / frames.mean(1, keepdim=True),
        per_position(attention.scores, attention.grid),
        share_in_last(top.flip(1)),
        share_in_last(top),
    )
