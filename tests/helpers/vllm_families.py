"""Small models of other families for the tests of serving, and prompts that tell the times of a video's frames."""

from pathlib import Path
from typing import Any

import torch
from small_llava_video import small_llava_video
from transformers import SiglipConfig, SiglipModel
from vllm_models import asked

from adatp.small.untrained import byte_tokenizer, load_untrained


def save_llava_video(folder: Path, pool: str = "average", image_size: int = 196) -> Path:
    """Save a LLaVA-Video of 16 layers with the weights of `load_untrained`; return its folder."""
    small = small_llava_video(image_size=image_size, pool=pool, add_time_instruction=True)
    small.model.generation_config.suppress_tokens = None
    small.model.save_pretrained(folder)
    small.processor.save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """Save a SigLIP with random weights that continues the tower of `save_llava_video`; return its folder."""
    untrained = load_untrained()
    vision = untrained.model.config.vision_config.to_dict() | {"num_hidden_layers": 4, "vision_use_head": True}
    text = untrained.relevance.text_model.config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    byte_tokenizer("right").save_pretrained(folder)
    return folder


def timed(number: int, frames: int = 8, apart: float = 3) -> dict[str, Any]:
    """Return vLLM's prompt number `number`, whose video tells its times: 2 frames a second, of which one in `apart`."""
    given = asked(number, frames)
    indices = [int(apart * i) for i in range(frames)]
    metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": indices[-1] + 1}
    given["multi_modal_data"]["video"] = given["multi_modal_data"]["video"], metadata
    return given


def kept_of(llm: Any, monkeypatch: Any) -> list[tuple[int, ...]]:
    """Return a list that takes the visual tokens at every layer's input of each prefill to come, in order."""
    from vllm_models import model_runner

    from adatp.engine.samples import cut_sample

    found: list[tuple[int, ...]] = []
    reports = model_runner(llm).get_model().pruning._reports
    monkeypatch.setattr(reports, "add", lambda _, cuts, length, __: found.append(cut_sample(cuts, length, None).kept))
    return found
