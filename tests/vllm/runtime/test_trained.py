"""The small trained model answers in a pruned server as `adatp run` does, with segments and significance on."""

from typing import Any, NamedTuple

import pytest
from vllm_models import make_llm, model_runner

from adatp.engine.samples import cut_sample
from adatp.evaluation.answers import is_exact
from adatp.evaluation.heldout import papers
from adatp.evaluation.measure import EncodedClip, applied, with_relevance
from adatp.evaluation.session import load
from adatp.methods import AdaTP
from adatp.small.checkpoint import FOLDER

CLIPS, EACH = 16, 4
TOKENS = 12
METHOD = AdaTP()


class Said(NamedTuple):
    """An answer to a question: its tokens, the visual tokens at every layer's input, and the significant segments."""

    tokens: list[int]
    kept: tuple[int, ...]
    segments: list[tuple[int, int, bool]]


@pytest.fixture(scope="module")
def loaded():
    return with_relevance(load(None, device="cpu", dtype="auto", attention="sdpa", relevance="auto"))


@pytest.fixture(scope="module")
def exam():
    """64 questions about held-out clips: each with its clip and its paper's question."""
    found = [(paper, asked) for paper in papers(CLIPS, EACH) for asked in paper.questions]
    assert len(found) == 64
    return found


@pytest.fixture(scope="module")
def expected(loaded, exam):
    """What transformers answers, by the code of `adatp run`. Each clip is encoded once."""
    encoded = {paper.number: EncodedClip(loaded, paper.clip()) for paper, _ in exam}
    found = []
    with applied(loaded, METHOD) as pruned:
        for paper, asked in exam:
            inputs = encoded[paper.number].inputs(asked.text)
            output = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1)
            answer = output[0, inputs["input_ids"].shape[1] :].tolist()
            found.append(said(answer, pruned.report.samples[0]))
    return found


@pytest.fixture(scope="module")
def served(loaded, exam):
    """What vLLM answers, all questions in one batch."""
    from vllm import SamplingParams

    llm = make_llm(FOLDER / "model", METHOD, str(FOLDER / "siglip"), max_num_seqs=16, limit_mm_per_prompt={"video": 1})
    samples: dict[int, Any] = {}

    def add(request: str, cuts: Any, length: int, question: str | None) -> None:
        samples[int(request.split("-")[0])] = cut_sample(cuts, length, question)

    model_runner(llm).get_model().pruning._reports.add = add
    prompts = [
        {"prompt": chat(loaded, asked.text), "multi_modal_data": {"video": paper.clip().frames}}
        for paper, asked in exam
    ]
    answers = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS), use_tqdm=False)
    return [said(list(answer.outputs[0].token_ids), samples[int(answer.request_id)]) for answer in answers]


def chat(loaded: Any, question: str) -> str:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt: str = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt


def said(tokens: list[int], sample: Any) -> Said:
    return Said(tokens, sample.kept, [(own.start, own.stop, own.significant) for own in sample.segments])


def test_the_questions_use_all_of_the_method(expected):
    """There are several segments, significant ones and others, and the questions decide which."""
    assert all(len(own.segments) > 1 for own in expected)
    flags = [flag for own in expected for *_, flag in own.segments]
    assert 0 < sum(flags) < len(flags)


def test_the_answers_are_those_of_adatp_run(served, expected):
    assert [own.tokens for own in served] == [own.tokens for own in expected]


def test_the_same_tokens_are_kept(served, expected):
    assert [(own.kept, own.segments) for own in served] == [(own.kept, own.segments) for own in expected]


def test_the_answers_are_right(loaded, exam, served):
    """They mean something: more are right than any guess would have."""
    texts = [loaded.processor.decode(own.tokens, skip_special_tokens=True) for own in served]
    right = sum(is_exact(text, asked.answer) for text, (_, asked) in zip(texts, exam, strict=True))
    assert right > 48
