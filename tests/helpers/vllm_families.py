"""Small models of other families for the tests of serving, and prompts that tell the times of a video's frames."""

from pathlib import Path
from typing import Any

import numpy as np
import transformers
from small_llava_video import small_llava_video
from small_models import PATCH, make_model, make_siglip
from small_prompts import make_tokenizer
from vllm_models import QUESTIONS, asked, prompt, video


def save_llava_video(folder: Path, pool: str = "average", image_size: int = 196) -> Path:
    """Save a LLaVA-Video of 16 layers with the weights of `load_untrained`; return its folder."""
    small = small_llava_video(image_size=image_size, pool=pool, add_time_instruction=True)
    small.model.generation_config.suppress_tokens = None
    small.model.save_pretrained(folder)
    small.processor.save_pretrained(folder)
    return folder


def save_qwen(kind: str, folder: Path) -> Path:
    """Save a Qwen-VL of 16 layers with random weights; return its folder. CPU attention needs heads of 32."""
    model = make_model(kind, heads=2)
    model.save_pretrained(folder)
    sizes = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    limits = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    own = {"qwen2_5_vl": transformers.Qwen2_5_VLProcessor, "qwen3_vl": transformers.Qwen3VLProcessor}[kind]
    of_videos = transformers.Qwen3VLVideoProcessor if kind == "qwen3_vl" else transformers.Qwen2VLVideoProcessor
    tokenizer = make_tokenizer(kind)
    videos = of_videos(size=limits | {"longest_edge": 16 * 64 * 64}, do_sample_frames=False, **sizes)
    pixels = {"image_mean": videos.image_mean, "image_std": videos.image_std}  # vLLM takes those of images
    processor = own(
        transformers.Qwen2VLImageProcessor(size=limits, **pixels, **sizes),
        tokenizer,
        videos,
        chat_template="{{ messages }}",
    )
    processor.save_pretrained(folder)
    return folder


def save_second_tower(folder: Path) -> Path:
    """Save the SigLIP of `make_siglip`, which can stand beside a Qwen-VL; return its folder."""
    siglip, tokenizer = make_siglip()
    siglip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked_qwen(number: int, *lengths: int) -> dict[str, Any]:
    """Return vLLM's prompt number `number` for a Qwen-VL, with a video for each of the numbers of frames.

    Two temporal patches are a second, so that no video lasts longer than its frames are wide. Qwen2.5-VL's positions
    are those of transformers only then: after a longer video transformers 5.19 counts on from the size of a frame,
    vLLM from the end of the video.
    """
    videos = []
    for i, frames in enumerate(lengths):
        rows, columns = ((32, 48), (48, 48), (40, 32))[(number + i) % 3]
        pixels = np.ascontiguousarray(video(number + 10 * i, frames)[:, ::4, ::4][:, :rows, :columns])
        videos.append((pixels, {"fps": 4.0, "frames_indices": list(range(frames)), "total_num_frames": frames}))
    marks = "\nand ".join("<|vision_start|><|video_pad|><|vision_end|>" for _ in videos)
    text = prompt(QUESTIONS[number]).replace("<video>", marks)
    return {"prompt": text, "multi_modal_data": {"video": videos}}


def timed(number: int, frames: int = 8, apart: float = 3) -> dict[str, Any]:
    """Return vLLM's prompt number `number`, whose video tells its times: 2 frames a second, of which one in `apart`."""
    given = asked(number, frames)
    indices = [int(apart * i) for i in range(frames)]
    metadata = {"fps": 2.0, "frames_indices": indices, "total_num_frames": indices[-1] + 1}
    given["multi_modal_data"]["video"] = given["multi_modal_data"]["video"], metadata
    return given
