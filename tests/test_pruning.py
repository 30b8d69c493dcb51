"""The handle and its arguments."""

import threading

import pytest
import torch
from videollm import make_inputs

import adatp
from adatp.errors import InputError, UnsupportedType


def applied(untrained, method="adatp", **options):
    return adatp.apply(untrained.model, untrained.processor, method, relevance=untrained.relevance, **options)


def test_its_repr_says_method_family_and_state(sdpa):
    pruned = applied(sdpa, adatp.AdaTP(p=1.5))
    try:
        assert repr(pruned).startswith("<adatp.Pruned: AdaTP(p=1.5, ")
        assert repr(pruned).endswith(" on llava_onevision, applied>")
    finally:
        pruned.remove()
    assert repr(pruned).endswith(", removed>")


@pytest.mark.parametrize("name", ["FastV", "FASTV", "fastv"])
def test_a_method_is_named_in_any_case(sdpa, name):
    with applied(sdpa, name) as pruned:
        assert pruned.method == adatp.FastV()


@pytest.mark.parametrize("method", [adatp.AdaTP, adatp.FastV, adatp.DyCoke, adatp.Random, adatp.PyramidDrop])
def test_settings_are_given_by_keyword(method):
    with pytest.raises(TypeError, match="positional"):
        method(0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"relevance": 3},
            "relevance must be a Relevance, a SecondTower, a checkpoint's name or path, 'auto' or None, got 3",
        ),
        ({"question": 3}, "question must be a string, a list of strings or None, got 3"),
        ({"question": ["a", None]}, "question must be a string, a list of strings or None"),
    ],
)
def test_wrong_types_are_told(sdpa, wrong, message):
    options = {"relevance": sdpa.relevance, **wrong}
    with pytest.raises(TypeError, match=message):
        adatp.apply(sdpa.model, sdpa.processor, **options)
    with pytest.raises(TypeError, match="method must be a name or a method"):
        adatp.apply(sdpa.model, sdpa.processor, 3)


def test_a_wrong_question_is_told_when_it_is_set(sdpa):
    with applied(sdpa) as pruned:
        with pytest.raises(TypeError, match="question must be"):
            pruned.question = 3
        assert pruned.question is None


def test_a_path_is_a_relevance(sdpa, tmp_path):
    with pytest.raises(OSError, match="cannot be loaded"):
        adatp.apply(sdpa.model, sdpa.processor, relevance=tmp_path)


def test_refusals_have_a_class_of_their_own(sdpa):
    assert issubclass(adatp.Unsupported, InputError)
    assert issubclass(InputError, ValueError)
    with pytest.raises(UnsupportedType, match="supported are"):
        adatp.apply(torch.nn.Linear(2, 2))
    inputs = make_inputs(sdpa, ["What?"])
    with applied(sdpa), torch.no_grad():
        with pytest.raises(adatp.Unsupported, match="labels"):
            sdpa.model(**inputs, labels=inputs["input_ids"])


def test_a_thread_has_a_question_of_its_own(sdpa):
    """Two threads that share a handle each compare frames with the question that they have set."""
    inputs, asked, ready = make_inputs(sdpa, ["What is in the picture?"]), {}, threading.Barrier(2)

    def ask(question):
        pruned.question = question
        ready.wait()
        with torch.no_grad():
            sdpa.model(**inputs)
        asked[question] = pruned.thread_report.samples[0].question

    with applied(sdpa, question="Who?") as pruned:
        threads = [threading.Thread(target=ask, args=(question,)) for question in ("How many?", "Where?")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked == {"How many?": "How many?", "Where?": "Where?"}
        assert pruned.question == "Who?", "what this thread has applied with"
