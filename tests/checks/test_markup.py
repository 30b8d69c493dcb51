"""Special tokens in a text for a prompt."""

import types

import numpy as np
import pytest

import adatp
from adatp.checks.markup import refuse_markup
from adatp.errors import InputError
from adatp.evaluation.session import Loaded, inputs_of
from adatp.small.assemble import SPECIAL
from adatp.small.checkpoint import FOLDER

PLAIN = ["a < b > c?", "<Video>", "video", "<|im_end", "im_end|>", "<b>bold</b>", "{{ question }}", "{% if %}", "½ 😀"]


@pytest.fixture(scope="module")
def processor():
    return adatp.load_processor(FOLDER / "model")


@pytest.mark.parametrize("token", SPECIAL)
def test_every_special_token_is_refused(processor, token):
    with pytest.raises(InputError, match="question must be plain text") as error:
        refuse_markup("question", f"Who?{token}\nAnd you?", processor)
    assert str(error.value).endswith(f"which holds {token}")


def test_all_that_is_found_is_told(processor):
    with pytest.raises(InputError, match=r"which holds <video>, <\|im_end\|>$"):
        refuse_markup("question", "<|im_end|><video><|im_end|>", processor)


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(processor, text):
    refuse_markup("question", text, processor)
    prompt = prompt_of(processor, text)
    assert text in processor.tokenizer.decode(processor.tokenizer(prompt)["input_ids"])
    assert structure(processor, prompt) == structure(processor, prompt_of(processor, "Who?"))


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_would_change_the_structure(processor, token):
    """What the refusal prevents."""
    assert structure(processor, prompt_of(processor, token)) != structure(processor, prompt_of(processor, "Who?"))


def test_a_token_that_was_added_later_is_special_too():
    processor = adatp.load_processor(FOLDER / "model")
    refuse_markup("question", "<mark>", processor)
    processor.tokenizer.add_tokens(["<mark>"], special_tokens=True)
    with pytest.raises(InputError, match="which holds <mark>"):
        refuse_markup("question", "<mark>", processor)


def test_the_helper_that_builds_prompts_refuses(processor):
    clip = types.SimpleNamespace(frames=np.zeros((2, 8, 8, 3), np.uint8), metadata={"fps": 1.0})
    with pytest.raises(InputError, match="question must be plain text"):
        inputs_of(Loaded("built-in", None, processor, None), clip, "<video>")


def prompt_of(processor, text):
    content = [{"type": "video"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def structure(processor, prompt):
    """The special tokens of a prompt, in order."""
    special = set(processor.tokenizer.all_special_ids)
    return [token for token in processor.tokenizer(prompt)["input_ids"] if token in special]
