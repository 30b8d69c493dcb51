"""Small models and what they are given."""

import numpy as np
from flash import use_flash
from small_llava_video import small_llava_video

from adatp.small.untrained import load_untrained


def make_clip(frames: int, shots: int = 3, size: int = 84, seed: int = 0) -> np.ndarray:
    """`[frames, size, size, 3]` uint8: shots of coloured blocks, each with a little noise."""
    random = np.random.default_rng(seed)
    scenes = random.integers(0, 256, (shots, 6, 6, 3)).repeat(size // 6, 1).repeat(size // 6, 2)
    clip = [scenes[i * shots // frames] + random.integers(-9, 10, (size, size, 3)) for i in range(frames)]
    return np.stack(clip).clip(0, 255).astype(np.uint8)


def make_inputs(untrained, questions, frames: int = 10, seed: int = 0):
    """Processor output for one clip a question, all of `frames` frames, left-padded."""
    prompts = [
        untrained.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    clips = [make_clip(frames, shots=2 + i, seed=seed + i) for i in range(len(questions))]
    return untrained.processor(text=prompts, videos=clips, return_tensors="pt", padding=True)


ATTENTIONS, FAMILIES = ("eager", "sdpa", "flash"), ("llava_onevision", "llava_video")


def make_small(attention: str):
    """The untrained model at 84 pixels: 9 tokens a frame; 16 decoder layers, cuts before layers 2 to 5."""
    if attention != "flash":
        return load_untrained(image_size=84, layers=16, attention=attention)
    untrained = load_untrained(image_size=84, layers=16)
    use_flash(untrained.model)
    return untrained


def make_videollm(family: str):
    """A small model of a family, with sdpa: 9 and 12 tokens a frame."""
    return small_llava_video() if family == "llava_video" else make_small("sdpa")
