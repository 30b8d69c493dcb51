"""Small models and prompts for the tests of serving, and what transformers answers to them."""

import gc
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel

import adatp
from adatp.engine.samples import cut_sample
from adatp.small.untrained import byte_tokenizer, load_untrained
from adatp.vllm import engine_args

QUESTIONS = (
    "What happens?",
    "Which colour is the square?",
    "How many things are there, and where are they? Name each of them, please.",
    "Why?",
)
SIZES = {"max_model_len": 2048, "max_num_seqs": 4, "max_num_batched_tokens": 4096, "seed": 0}


class Answer(NamedTuple):
    """What transformers generates; `kept` has the visual tokens at every layer's input."""

    tokens: list[int]
    kept: tuple[int, ...]


def save_onevision(folder: Path) -> Path:
    """Save a LLaVA-OneVision of 18 layers with random weights; return its folder."""
    untrained = load_untrained()
    untrained.model.generation_config.suppress_tokens = None
    untrained.model.save_pretrained(folder)
    untrained.processor.save_pretrained(folder)
    return folder


def as_published(model: Path, folder: Path) -> Path:
    """Save a copy of the model with the names of the published checkpoints, which vLLM itself can read."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    renamed = {}
    for name, weight in weights.items():
        name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
        name = re.sub(r"^(model\.)?vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)
        renamed[name.removeprefix("model.")] = weight
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_siglip(folder: Path) -> Path:
    """Save a SigLIP with random weights that continues the tower of `load_untrained`; return its folder."""
    untrained = load_untrained()
    vision = untrained.model.config.vision_config.to_dict() | {"num_hidden_layers": 4, "vision_use_head": True}
    text = untrained.relevance.text_model.config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    byte_tokenizer("right").save_pretrained(folder)
    return folder


def video(seed: int, frames: int = 8) -> np.ndarray:
    """Make a video of coarse noise, some of whose frames differ from the first: `[frames, 196, 196, 3]` uint8."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (1, 7, 7, 3))
    noise = rng.integers(-60, 60, (frames, 7, 7, 3)) * (rng.random((frames, 1, 1, 1)) < 0.5)
    return np.kron((base + noise).clip(0, 255), np.ones((1, 28, 28, 1))).astype(np.uint8)


def prompt(question: str, videos: int = 1) -> str:
    return f"<|im_start|>user {'<video>' * videos}\n{question}<|im_end|><|im_start|>assistant\n"


def asked(number: int, frames: int = 8) -> dict[str, Any]:
    """Return vLLM's prompt number `number`, with its own video."""
    return {"prompt": prompt(QUESTIONS[number]), "multi_modal_data": {"video": video(number, frames)}}


TEXT = {"prompt": "<|im_start|>user Tell me a story.<|im_end|><|im_start|>assistant\n"}


def make_llm(model: Path, method: Any = "adatp", relevance: Any = None, **changes: Any) -> Any:
    """Start vLLM on the model, pruned; `method` None starts it as it is."""
    from vllm import LLM

    gc.collect()  # an engine that is gone must be so before the next one begins
    args = {} if method is None else engine_args(model, method, relevance=relevance)
    defaults = {"dtype": "float32", "enforce_eager": True, "limit_mm_per_prompt": {"video": 2, "image": 1}}
    return LLM(str(model), **{**args, **SIZES, **defaults, "mm_processor_cache_gb": 0, **changes})


def generate(llm: Any, prompts: list[dict[str, Any]], tokens: int = 16, **sampling: Any) -> list[list[int]]:
    """Return the greedy answers of vLLM, `tokens` tokens each."""
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0, "max_tokens": tokens, "ignore_eos": True, **sampling})
    return [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, params, use_tqdm=False)]


def by_transformers(
    model: Path, method: Any, prompts: list[dict[str, Any]], tokens: int, relevance: Any
) -> list[Answer]:
    """Return the greedy answers of transformers with the method applied, one prompt at a time."""
    from transformers import AutoModelForImageTextToText

    from adatp.models import load_processor

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    processor = load_processor(model)
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", adatp.NoRelevanceWarning)
        with adatp.apply(loaded, processor, method, relevance=relevance) as pruned:
            for given in prompts:
                inputs = processor(text=given["prompt"], **videos_of(given), return_tensors="pt")
                output = loaded.generate(
                    **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
                )
                kept = pruned.report.samples[0].kept if videos_of(given) else ()
                answers.append(Answer(output[0, inputs["input_ids"].shape[1] :].tolist(), kept))
    return answers


def videos_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a processor of transformers for the videos of a prompt of vLLM, with or without times."""
    found = given.get("multi_modal_data", {}).get("video", [])
    found = found if isinstance(found, list) else [found]
    if not found:
        return {}
    if not isinstance(found[0], tuple):
        return {"videos": found}
    return {"videos": [frames for frames, _ in found], "video_metadata": [metadata for _, metadata in found]}


def model_runner(llm: Any) -> Any:
    """Return the runner of a vLLM that runs in this process."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def preemptions(llm: Any) -> int:
    """Return how often a request was preempted, of a vLLM with `disable_log_stats=False`."""
    return next(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def kept_of(llm: Any, monkeypatch: Any) -> list[tuple[int, ...]]:
    """Return a list that takes the visual tokens at every layer's input of each prefill to come, in order."""
    found: list[tuple[int, ...]] = []
    reports = model_runner(llm).get_model().pruning._reports
    monkeypatch.setattr(reports, "add", lambda _, cuts, length, __: found.append(cut_sample(cuts, length, None).kept))
    return found
