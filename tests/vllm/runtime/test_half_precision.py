"""In bf16 single tokens differ, so logits are compared: vLLM is as near to fp32 as transformers itself is in bf16."""

import warnings

import pytest
import torch
from vllm_models import QUESTIONS, asked, make_llm

import adatp
from adatp.methods import AdaTP, FastV

PROMPTS = [asked(number) for number in range(len(QUESTIONS))]
TOP = 20


def by_vllm(model, method) -> list[dict[int, float]]:
    """The log probabilities of the most likely first tokens, by token."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1, logprobs=TOP)
    answers = make_llm(model, method, dtype="bfloat16").generate(PROMPTS, params, use_tqdm=False)
    return [{token: own.logprob for token, own in answer.outputs[0].logprobs[0].items()} for answer in answers]


@torch.no_grad()
def by_transformers(model, method, dtype) -> list[torch.Tensor]:
    """The log probabilities of the first token, `[vocabulary]` for each prompt."""
    from transformers import AutoModelForImageTextToText

    from adatp.models import load_processor

    loaded, processor = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).eval(), load_processor(model)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adatp.NoRelevanceWarning)
        with adatp.apply(loaded, processor, method, relevance=None):
            for given in PROMPTS:
                videos = [given["multi_modal_data"]["video"]]
                inputs = processor(text=given["prompt"], videos=videos, return_tensors="pt").to(dtype)
                found.append(loaded(**inputs, logits_to_keep=1).logits[0, -1].float().log_softmax(-1))
    return found


@pytest.mark.parametrize("method", [AdaTP(), FastV()], ids=lambda method: method.name)
def test_logits(onevision, method):
    half, full = (by_transformers(onevision, method, dtype) for dtype in (torch.bfloat16, torch.float32))
    served, own = [], []
    for answer, rough, exact in zip(by_vllm(onevision, method), half, full, strict=True):
        tokens = list(answer)
        served.append((torch.tensor(list(answer.values())) - exact[tokens]).abs().mean())
        own.append((rough - exact)[tokens].abs().mean())
    assert sum(served) < 2 * sum(own)
