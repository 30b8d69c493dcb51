"""Requests for a server, each with a video that no other has, sent by the client of `vllm bench serve`."""

import asyncio
import base64
import io
import math
from contextlib import redirect_stdout
from fractions import Fraction
from typing import Any

import numpy as np

from bench.server import Server

SIDE, FPS = 224, 4  # of the videos; a model resizes them
SHOT = 4  # frames of a shot
QUESTION = "What happens in the video, and in which order? Describe it, please."


def frames_of(number: int, frames: int) -> np.ndarray:
    """Draw video `number`, `[frames, 224, 224, 3]` uint8: coloured blocks, new ones in every shot, with some noise."""
    draw = np.random.default_rng(number)
    shots = draw.integers(0, 255, (-(-frames // SHOT), 7, 7, 3)).repeat(SHOT, 0)[:frames]
    noisy = (shots + draw.integers(-8, 9, shots.shape)).clip(0, 255)
    return np.kron(noisy, np.ones((1, SIDE // 7, SIDE // 7, 1))).astype(np.uint8)


def data_url(frames: np.ndarray) -> str:
    """Return frames as a data URL of an MP4 file."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return f"data:video/mp4;base64,{base64.b64encode(file.getvalue()).decode()}"


def send(server: Server, model: str, urls: list[str], *, together: int, tokens: int) -> dict[str, Any]:
    """Send a request for each video, and return what vLLM's client measures.

    Args:
        server: the server.
        model: name of its model.
        urls: data URL of each video.
        together: largest number of requests at a time.
        tokens: number of tokens of each answer.

    Raises:
        RuntimeError: a request fails, or an answer has another number of tokens.
    """
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    def request(url: str) -> Any:
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        return SampleRequest(prompt=QUESTION, prompt_len=0, expected_output_len=tokens, chat_messages=messages)

    with redirect_stdout(io.StringIO()):
        found: dict[str, Any] = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai-chat",
                api_url=f"{server.base}/v1/chat/completions",
                base_url=server.base,
                model_id=model,
                model_name=model,
                tokenizer=None,  # the server counts the tokens
                input_requests=[request(url) for url in urls],
                logprobs=None,
                request_rate=math.inf,
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=together,
                lora_modules=None,
                extra_headers=None,
                extra_body={"temperature": 0},
                ready_check_timeout_sec=0,  # the server answers
            )
        )
    if found["failed"] or set(found["output_lens"]) != {tokens}:
        raise RuntimeError(f"not every request was answered with {tokens} tokens: {found['errors']}")
    return found
