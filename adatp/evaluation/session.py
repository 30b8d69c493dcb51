"""The whole path from a video file and a question to an answer and a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adatp.checks.checkpoints import load_weights, loading
from adatp.checks.markup import refuse_markup
from adatp.errors import CheckpointError, Unsupported
from adatp.hf.stopwatch import FirstToken, Stopwatch, now
from adatp.methods import Method
from adatp.models import family_of, load_processor, tokenizer_of
from adatp.pruning import apply
from adatp.relevance import Aligned
from adatp.report import PruningReport
from adatp.small.checkpoint import FOLDER, check
from adatp.video import Clip, Limits, sample_frames
from adatp_kernels.dispatch import Impl


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        name: name of the model, for reports.
        model, processor: the Hugging Face objects.
        relevance: as `adatp.apply` takes it.
        note: a note for the user about the model, or None.
    """

    name: str
    model: Any
    processor: Any
    relevance: Aligned | str | None
    note: str | None = None


@dataclass(frozen=True)
class Answer:
    """One generation.

    Attributes:
        text: the answer.
        tokens: number of generated tokens.
        seconds: time to the first token by stage: decoding, preprocessing, tower, relevance, prefill, other.
    """

    text: str
    tokens: int
    seconds: dict[str, float]

    @property
    def first_token(self) -> float:
        """Time to the first token, in seconds."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        pruned: the answer with the method.
        report: the method's report: the tokens that it kept.
        unpruned: the answer without pruning, or None if it was not requested.
    """

    pruned: Answer
    report: PruningReport
    unpruned: Answer | None


def load(checkpoint: str | None, *, device: str, dtype: str, attention: str, relevance: Aligned | str | None) -> Loaded:
    """Load a checkpoint by name or path. None stands for the built-in model.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        UnsupportedType: the model is not of a supported family.
        InputError: a file of the built-in model is missing or has changed.
    """
    from transformers import AutoModelForImageTextToText

    name, note = checkpoint or "built-in", None
    if checkpoint is None:
        check(FOLDER)
        checkpoint, note = str(FOLDER / "model"), "the built-in model knows the videos of `adatp world`, and no others"
        dtype = "float32" if dtype == "auto" else dtype  # its file holds float16
        relevance = str(FOLDER / "siglip") if relevance == "auto" else relevance
    processor = load_processor(checkpoint)  # reads the configuration first, so that another family loads no weights
    options = {"dtype": dtype, "attn_implementation": attention}
    model = load_weights(AutoModelForImageTextToText, "model", checkpoint, name, **options)
    _try(model, processor, name)
    return Loaded(name, model.to(device).eval(), processor, relevance, note)


def _try(model: Any, processor: Any, name: str) -> None:
    """Build a short prompt with a video: a damaged template, tokenizer or processor shows itself only then.

    Raises:
        CheckpointError: the prompt cannot be built, or its video is not what the model expects.
    """
    frames, metadata = np.zeros((2, 28, 28, 3), np.uint8), {"total_num_frames": 2, "fps": 1.0, "frames_indices": [0, 1]}
    with loading("processor of", name):
        inputs = _inputs(processor, frames, metadata, "?")
    family = family_of(model, tokenizer_of(processor))
    try:
        layout = family.layout(inputs["input_ids"][0], family.sizes(inputs))
    except Unsupported as error:
        raise CheckpointError(f"processor of {name} does not fit its model: {error}") from error
    if layout is None:
        raise CheckpointError(f"processor of {name} does not fit its model, which finds no video in a prompt")


def decode(video: str, frames: int, limits: Limits) -> tuple[Clip, float]:
    """Sample frames of a video file, within limits. Return the clip, and the seconds that this took.

    Raises:
        adatp.video.VideoError: the file cannot be used.
    """
    begin = now()
    clip = sample_frames(video, frames, limits=limits)
    return clip, now() - begin


def inputs_of(loaded: Loaded, clip: Clip, question: str) -> Any:
    """Return the model's inputs for a question about a clip, on its device.

    Raises:
        InputError: the question holds a special token.
    """
    refuse_markup("question", question, loaded.processor)
    inputs = _inputs(loaded.processor, clip.frames, clip.metadata, question).to(loaded.model.device)
    for name in list(inputs):
        if name.startswith("pixel_values"):  # of other numbers, such as times, digits would be lost
            inputs[name] = inputs[name].to(loaded.model.dtype)
    return inputs


def _inputs(processor: Any, frames: np.ndarray, metadata: dict[str, Any], question: str) -> Any:
    """Return the inputs for a question about sampled frames, of which the processor takes all."""
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return processor(
        text=prompt, videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )


@torch.inference_mode()
def generate(
    loaded: Loaded, inputs: Any, max_new_tokens: int, *, choices: Sequence[str] = (), streamer: Any = None
) -> tuple[str, int]:
    """Answer a prompt by greedy decoding. Return the text and its number of tokens.

    Args:
        loaded: the model.
        inputs: inputs of one prompt.
        max_new_tokens: largest number of tokens of the answer.
        choices: the allowed answers; if empty, every answer is allowed.
        streamer: as in Hugging Face's `generate`.
    """
    length = inputs["input_ids"].shape[1]
    output = loaded.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        streamer=streamer,
        prefix_allowed_tokens_fn=_only(loaded.processor.tokenizer, choices, length) if choices else None,
    )
    generated = output[0, length:]
    return str(loaded.processor.decode(generated, skip_special_tokens=True)).strip(), len(generated)


def _only(tokenizer: Any, choices: Sequence[str], length: int) -> Callable[[int, Tensor], list[int]]:
    """Return a `prefix_allowed_tokens_fn` for `generate`: it allows only the choices, after a prompt of that length."""
    ways = [[*tokenizer.encode(choice, add_special_tokens=False), tokenizer.eos_token_id] for choice in choices]

    def allowed(_: int, ids: Tensor) -> list[int]:
        said = ids[length:].tolist()
        return sorted({way[len(said)] for way in ways if way[: len(said)] == said and len(way) > len(said)})

    return allowed


def run(
    clip: Clip,
    decoding: float,
    question: str,
    loaded: Loaded,
    method: Method,
    *,
    flops: float | None = None,
    max_new_tokens: int,
    compare: bool,
    impl: Impl,
    tell: Callable[[str], None],
) -> Result:
    """Answer a question about a video by greedy decoding.

    Args:
        clip: the sampled frames.
        decoding: seconds that decoding the video took.
        question: the question.
        loaded: the model.
        method: the method to prune with.
        flops: see `adatp.apply`.
        max_new_tokens: largest number of tokens of the answer.
        compare: whether to run the unpruned model too.
        impl: implementation of the three operations.
        tell: called with the name of each step as it begins.
    """
    tell("preprocessing")
    begin = now()
    inputs = inputs_of(loaded, clip, question)
    before = {"decoding": decoding, "preprocessing": now() - begin}

    # The first call of a model is slower than later ones. For a fair comparison, neither timed call is the first.
    tell("warming up")
    text_only = {name: inputs[name][:, -1:] for name in ("input_ids", "attention_mask")}
    loaded.model.generate(**(inputs if compare else text_only), max_new_tokens=1, do_sample=False)

    unpruned = None
    if compare:
        tell("answering without pruning")
        unpruned = _timed(loaded, inputs, before, None, max_new_tokens)
    with apply(loaded.model, loaded.processor, method, flops=flops, relevance=loaded.relevance, impl=impl) as pruned:
        tell(f"answering with {type(method).__name__}")
        answer = _timed(loaded, inputs, before, pruned.relevance, max_new_tokens)
        report = pruned.report
    return Result(answer, report, unpruned)


def _timed(
    loaded: Loaded, inputs: Any, before: dict[str, float], relevance: Aligned | None, max_new_tokens: int
) -> Answer:
    family = family_of(loaded.model)
    stages: dict[str, list[nn.Module]] = {
        "tower": family.tower,
        "relevance": [] if relevance is None else [relevance, relevance.text_model],
        "prefill": [family.decoder],
    }
    first = FirstToken()
    with Stopwatch(stages) as watch:
        begin = now()
        text, tokens = generate(loaded, inputs, max_new_tokens, streamer=first)
    assert first.at is not None, "generate always returns a token"
    seconds = {**before, **watch.seconds}
    seconds["other"] = max(0.0, first.at - begin - sum(watch.seconds.values()))
    return Answer(text, tokens, seconds)
