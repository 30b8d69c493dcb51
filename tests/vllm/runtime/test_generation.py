"""What a pruned server generates: token for token what transformers does with the method applied."""

import pytest
from vllm_models import (
    QUESTIONS,
    TEXT,
    asked,
    by_transformers,
    generate,
    kept_of,
    make_llm,
    save_siglip,
)

from adatp.methods import AdaTP, FastV, PyramidDrop

TOKENS = 100  # over the borders of blocks in every layer


class Keeping(PyramidDrop):
    """PyramidDrop without its renumbering, which needs positions by layer."""

    renumbers = False


METHODS = {
    "adatp": AdaTP(),
    "adatp on other layers": AdaTP(p=1.5, first=4, last=9, tau_s=0.7, segments=True),
    "adatp without segments": AdaTP(segments=False, local_debias=False),
    "fastv": FastV(keep=0.3),
    "pyramiddrop": PyramidDrop(),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(scope="module")
def reference(onevision, method):
    """What transformers answers to four prompts of different lengths."""
    own = Keeping(**method.settings()) if isinstance(method, PyramidDrop) else method
    return by_transformers(onevision, own, [asked(number) for number in range(len(QUESTIONS))], TOKENS, None)


@pytest.fixture(scope="module")
def llm(onevision, method):
    return make_llm(onevision, method)


@pytest.fixture
def kept(monkeypatch, llm):
    """The visual tokens at every layer's input of the prefills in a test, in order."""
    return kept_of(llm, monkeypatch)


def test_one_prompt(llm, reference, kept):
    assert generate(llm, [asked(0)], TOKENS) == [reference[0].tokens]
    assert kept == [reference[0].kept]


def test_a_batch_of_different_lengths(llm, reference, kept):
    answers = generate(llm, [asked(number) for number in range(len(QUESTIONS))], TOKENS)
    assert answers == [answer.tokens for answer in reference]
    assert kept == [answer.kept for answer in reference]


def test_arrivals_while_others_decode(llm, reference):
    """Every seven steps one arrives, one of them without a video."""
    from vllm import SamplingParams

    prompts = [asked(0), TEXT, asked(1), asked(2)]
    text = generate(llm, [TEXT], TOKENS)[0]
    engine, done, step, waiting = llm.llm_engine, {}, 0, list(enumerate(prompts))
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    while waiting or engine.has_unfinished_requests():
        if waiting and step % 7 == 0:
            number, given = waiting.pop(0)
            engine.add_request(str(number), given, params)
        done |= {
            int(answer.request_id.split("-")[0]): list(answer.outputs[0].token_ids)
            for answer in engine.step()
            if answer.finished
        }
        step += 1
    assert [done[number] for number in range(4)] == [reference[0].tokens, text, *(r.tokens for r in reference[1:3])]


def test_the_question_matters(onevision, tmp_path):
    """Segments and significance by the frames' relevance, whose features ride with the embeddings."""
    siglip = str(save_siglip(tmp_path))
    method = AdaTP(tau_s=0.9, tau_t=0.0)
    prompts = [asked(number) for number in range(4)]
    expected = by_transformers(onevision, method, prompts, TOKENS, siglip)
    assert expected != by_transformers(onevision, method, prompts, TOKENS, None)
    llm = make_llm(onevision, method, siglip)
    assert generate(llm, prompts, TOKENS) == [answer.tokens for answer in expected]
