"""The paper's ablations (Tab. 2 to 4) on any model and any questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from adatp.evaluation.agreement import Agreement, agreement
from adatp.evaluation.answers import answer_length, chosen_letter, is_exact, letter_tokens
from adatp.evaluation.measure import EncodedClip, answer, prefill
from adatp.evaluation.questions import Question
from adatp.evaluation.session import Loaded
from adatp.flops import linear_ratio
from adatp.methods import AdaTP, Method, Unpruned
from adatp.video import Limits, sample_frames
from adatp_kernels.dispatch import Impl

FIRST = 2  # the first pruned layer, in all of them
DEPTH = 24  # layers of the model that the paper ablates
_FIELDS = {"alpha_boost": "alpha", "gamma_cap": "gamma"}  # of AdaTP, by the paper's names
_MODULES = ("segments", "global_debias", "local_debias")


class Variant(NamedTuple):
    """A row of one of the tables.

    Attributes:
        settings: the settings that the row varies, by the name of AdaTP's field.
        method: AdaTP with all settings of the row.
        paper: the row in the paper.
    """

    settings: dict[str, Any]
    method: AdaTP
    paper: Mapping[str, float]


class Ablation(NamedTuple):
    """One of the tables: its number and its rows."""

    number: str
    variants: list[Variant]


def plan(tables: Mapping[str, Any], which: str, layers: int, p: float) -> tuple[list[Ablation], list[str]]:
    """Return the ablations to run, and notes for the user.

    The paper's model has 24 layers, and its `last` is 8, 10, ... 16. A model of N layers gets N - 16, N - 14, ...
    N - 8, clipped to the range from the first pruned layer to the last layer.

    Args:
        tables: the paper's tables.
        which: "2", "3", "4" or "all".
        layers: decoder layers of the model, N.
        p: compression setting of all rows.
    """
    notes: dict[str, None] = {}

    def last_of(paper: int) -> int:
        wanted = layers - DEPTH + paper
        last = max(FIRST, min(wanted, layers - 1))
        if last != wanted:
            notes[f"last = N - {DEPTH - paper} = {wanted} is no layer to end at in a model of {layers}: {last} is"] = (
                None
            )
        return last

    base = AdaTP(p=p, first=FIRST, last=last_of(DEPTH - 12))

    def vary(number: str, rows: Sequence[Mapping[str, Any]], *fields: str) -> Ablation:
        own = [{_FIELDS.get(field, field): row[field] for field in fields} for row in rows]
        own = [{name: last_of(value) if name == "last" else value for name, value in row.items()} for row in own]
        return Ablation(
            number, [Variant(row, replace(base, **row), paper) for row, paper in zip(own, rows, strict=True)]
        )

    found = []
    if which in ("2", "all"):
        found.append(vary("2", tables["table2"], *_MODULES))
    if which in ("3", "all"):
        found.append(vary("3", tables["table3"], "last"))
    if which in ("4", "all"):
        parts = zip("abcd", ("tau_t", "alpha_boost", "gamma_cap", "tau_s"), strict=True)
        found += [vary(f"4{part}", tables["table4"][field], field) for part, field in parts]
    return found, list(notes)


class Outcome(NamedTuple):
    """A method on one question.

    Attributes:
        flops: FLOPs of the prefill's linear layers, over those of the unpruned prefill.
        agreement: agreement with the unpruned model's next token.
        answer: a letter or a text; None if the question has no options and no known answer.
        right: whether the answer is the known one; None if no answer is known.
    """

    flops: float
    agreement: Agreement
    answer: str | None
    right: bool | None


class Outcomes(NamedTuple):
    """Results of every method, and of the unpruned model, on every question.

    Attributes:
        of: by method, one outcome for each question, in the order of the questions.
        notes: notes for the user about clips and prefills.
    """

    of: dict[Method, list[Outcome]]
    notes: list[str]


def run(
    loaded: Loaded,
    questions: Sequence[Question],
    methods: Sequence[Method],
    *,
    frames: int,
    limits: Limits,
    impl: Impl,
    tell: Callable[[str], None],
) -> Outcomes:
    """Ask every question once with every method.

    A clip is decoded once. It is also encoded once if transformers supports that. The answer to a question with options
    is the letter with the highest next-token logit. The answer to another question is decoded greedily, if the right
    answer is known.

    Args:
        loaded: the model, as `with_relevance` returns it.
        questions: the questions to ask.
        methods: the methods to prune with; equal ones run once.
        frames: number of frames of every clip.
        limits: what each video file may cost.
        impl: implementation of the three operations.
        tell: called with the name of each step as it begins.
    """
    of: dict[Method, dict[int, Outcome]] = {method: {} for method in (Unpruned(), *methods)}
    notes: dict[str, None] = {}
    asked = 0
    for video in dict.fromkeys(question.video for question in questions):
        tell(f"decoding {video}")
        clip = sample_frames(video, frames, limits=limits)
        if clip.note:
            notes[f"{video}: {clip.note}"] = None
        encoded = EncodedClip(loaded, clip)
        for place, question in enumerate(questions):
            if question.video != video:
                continue
            asked += 1
            tell(f"question {asked} of {len(questions)}")
            inputs = encoded.inputs(question.prompt)
            plain = prefill(loaded, inputs)
            for method, outcomes in of.items():
                bare = method == Unpruned()
                ran = plain if bare else prefill(loaded, inputs, method, impl=impl)
                said = _answer(loaded, inputs, question, ran.logits, None if bare else method, impl)
                right = None if said is None else _is_right(said, question)
                ratio = 1.0
                if ran.report is not None:
                    (sample,) = ran.report.samples
                    ratio = linear_ratio(sample.lengths(), sample.visual_tokens + sample.other_tokens)
                    notes.update(dict.fromkeys(ran.report.notes))
                outcomes[place] = Outcome(ratio, agreement(plain.logits, ran.logits), said, right)
    return Outcomes({method: [own[i] for i in range(len(questions))] for method, own in of.items()}, list(notes))


def _answer(
    loaded: Loaded, inputs: Mapping[str, Any], question: Question, logits: Tensor, method: Method | None, impl: Impl
) -> str | None:
    tokenizer = loaded.processor.tokenizer
    if question.options:
        return chosen_letter(logits, letter_tokens(tokenizer, question.letters))
    if question.answer is None:
        return None
    tokens = answer_length(tokenizer, question.answer)
    return answer(loaded, inputs, method, tokens=tokens, impl=impl).text


def _is_right(said: str, question: Question) -> bool | None:
    if question.answer is None:
        return None
    return said == question.answer if question.options else is_exact(said, question.answer)


class Summary(NamedTuple):
    """A method on all questions.

    Attributes:
        flops: the mean of `Outcome.flops`.
        right: number of questions that were answered rightly.
        known: number of questions whose answer is known.
        same_top: share of questions with the unpruned model's most likely next token.
        kl: the mean KL divergence, in nats.
    """

    flops: float
    right: int
    known: int
    same_top: float
    kl: float


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Compute the means and counts over the questions."""
    n = len(outcomes)
    judged = [outcome.right for outcome in outcomes if outcome.right is not None]
    return Summary(
        flops=sum(outcome.flops for outcome in outcomes) / n,
        right=sum(judged),
        known=len(judged),
        same_top=sum(outcome.agreement.same_top for outcome in outcomes) / n,
        kl=sum(outcome.agreement.kl for outcome in outcomes) / n,
    )
