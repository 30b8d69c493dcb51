"""Arguments of any type and value at the public functions: taken, or refused by name."""

import pytest
import torch
from odd_values import refused_by_name, try_odd_values
from transformers import SiglipModel
from videollm import make_inputs

import adatp
from adatp.errors import InputTypeError
from adatp.small.checkpoint import FOLDER


def apply(small, **given):
    usual = {"processor": small.processor, "method": adatp.AdaTP(last=5), "relevance": small.relevance}
    return adatp.apply(**{"model": small.model, **usual, **given})


@pytest.mark.parametrize("name", ["model", "processor", "method", "flops", "question", "impl", "compile_layers"])
def test_apply(sdpa, name):
    def check(value):
        with refused_by_name(f"{name} must be", "cannot prune a", "flops cannot be used"):
            apply(sdpa, **{"question": "Who?", name: value}).remove()

    try_odd_values(check)


@pytest.mark.parametrize("method", ["fastv", "none", adatp.AdaTP(last=5)])
@pytest.mark.parametrize("value", [3, b"x", [], torch.tensor(1), ..., {"auto": 1}])
def test_relevance_is_checked_even_where_it_is_not_used(sdpa, method, value):
    with pytest.raises(InputTypeError, match="relevance must be"):
        apply(sdpa, method=method, relevance=value)


@pytest.mark.parametrize("value", ["/nowhere", "", "a\0b", "\ud800", "x" * 5000, FOLDER / "nowhere", FOLDER])
def test_a_relevance_that_cannot_be_loaded(sdpa, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused_by_name("relevance: SigLIP", "relevance must be"):
        apply(sdpa, relevance=value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("processor", "llava-hf/any", "processor must be the model's processor or tokenizer, or None, got 'llava-hf"),
        ("question", [], r"question must be a string, a list of strings or None, got \[\]"),
        ("question", (q for q in ["Who?"]), "question must be a string, a list of strings or None, got <generator"),
        ("question", b"Who?", "question must be a string, a list of strings or None, got b'Who"),
        ("compile_layers", 1, "compile_layers must be True or False, got 1"),
        ("flops", "0.3", r"flops must be a number \(int or float\), got '0.3'"),
        ("method", adatp.AdaTP, r"method must be a name or a method such as AdaTP\(p=1.5\), got <class"),
        (
            "relevance",
            adatp.Relevance,
            "relevance must be a Relevance, a SecondTower, a checkpoint's name or path, 'auto' or None, got",
        ),
    ],
)
def test_a_wrong_type_is_told(sdpa, name, value, message):
    with pytest.raises(InputTypeError, match=message):
        apply(sdpa, **{name: value})


def test_an_unknown_implementation(sdpa):
    with pytest.raises(ValueError, match="impl must be 'auto', 'reference' or 'triton', got 'cuda'"):
        apply(sdpa, impl="cuda")


def test_the_question_of_a_handle(sdpa):
    def check(value):
        with refused_by_name("question must be"):
            pruned.question = value

    with apply(sdpa) as pruned:
        try_odd_values(check)


def test_the_layer_of_a_report(sdpa):
    def check(value):
        with refused_by_name("layer must be"):
            assert sample.kept_mask(value).shape == (10, 9)

    with apply(sdpa) as pruned, torch.no_grad():
        sdpa.model(**make_inputs(sdpa, ["Who?"]))
        sample = pruned.report.samples[0]
    try_odd_values(check)


def test_the_checkpoint_of_a_processor():
    def check(value):
        with refused_by_name("checkpoint", "cannot be loaded"):
            adatp.load_processor(value)

    for value in (None, 3, b"x", [], "", "a\0b", "\ud800", "x" * 5000, FOLDER / "nowhere", FOLDER / "SHA256SUMS"):
        check(value)


@pytest.fixture(scope="module")
def siglip():
    return SiglipModel.from_pretrained(FOLDER / "siglip")


@pytest.mark.parametrize("name", ["siglip", "tokenizer", "tower_layers"])
def test_the_parts_of_a_relevance(sdpa, siglip, name):
    def check(value):
        usual = {"siglip": siglip, "tokenizer": sdpa.relevance.tokenizer, "tower_layers": 3}
        with refused_by_name(f"{name} must be"):
            adatp.Relevance(**{**usual, name: value})

    try_odd_values(check)


@pytest.mark.parametrize("name", ["tower_layers", "device", "dtype"])
def test_where_a_relevance_is_loaded(name):
    def check(value):
        usual = {"tower_layers": 3, "device": "cpu", "dtype": torch.float32}
        with refused_by_name(f"{name} must be"):
            adatp.Relevance.from_pretrained(str(FOLDER / "siglip"), **{**usual, name: value})

    for value in (None, "abacus", "cuda:99999999999", -1, 1.5, "3", torch.int64, [], object(), b"cpu"):
        check(value)


def test_the_questions_of_a_relevance(sdpa):
    def check(value):
        with refused_by_name("questions must be"), torch.no_grad():
            assert sdpa.relevance.text(value).shape[0] == len(value)

    try_odd_values(check)
