"""Measure servers under load: the time to the first token, the throughput and the preemptions, pruned beside stock.

    python -m bench.serving [--model ID_OR_PATH] [--json FILE] [--smoke] [FLAG ...]

The servers run one after another, with the same flags and the same bytes for keys and values. Every request has a video
that no other has. Without --model, it is a LLaVA-OneVision with random weights and a small vision tower, so that most
of the time is the decoder's. Any other flag is one of `vllm serve`, for every server.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import transformers
from rich.console import Console

from adatp.evaluation.comparison import quartiles
from adatp.hf.stopwatch import now
from adatp.models import load_processor
from adatp.tables.tabulate import Rows, print_table
from adatp.vllm.version import installed
from bench.harness import machine
from bench.inputs import DTYPE
from bench.load import FPS, QUESTION, data_url, frames_of, send
from bench.record import commit, rounded, write_json
from bench.server import Server
from bench.serving_model import save_untrained

PRUNING_RATE = 0.75  # of `--video-pruning-rate`: vLLM's own pruning, before the decoder
SIZES = {"layers": 20, "heads": 8, "key_heads": 2, "image_size": 196}  # of the model with random weights
BLOCK = 32  # tokens of a block of the cache
LEAST = 4  # requests of a round
HEAD = (
    "requests at a time", "server", "first token", "quartiles", "of stock", "requests/s", "of stock", "output tokens/s",
    "preemptions",
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What the servers are asked.

    Attributes:
        frames: number of frames of each video.
        tokens: number of tokens of each answer.
        together: how many requests there are at a time.
        rounds: number of rounds at each of these.
        room: how many unpruned prompts the cache has room for, without their answers.
        model: sizes of the model with random weights.
    """

    frames: int = 32
    tokens: int = 32
    together: tuple[int, ...] = (1, 4, 16)
    rounds: int = 2
    room: int = 8
    model: dict[str, int] = field(default_factory=lambda: dict(SIZES))


SMOKE = Load(frames=8, tokens=4, together=(1, 2), rounds=1, room=4, model={})


@dataclass(frozen=True)
class Contender:
    """A server to measure.

    Attributes:
        name: its name.
        module: arguments of Python that start it.
        flags: what only this server gets.
        environment: variables that only this server gets.
    """

    name: str
    module: tuple[str, ...]
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--model", metavar="ID_OR_PATH", help="Checkpoint (default: one with random weights).")
    parser.add_argument("--relevance", default="auto", metavar="ID_OR_PATH", help="As of `adatp serve`.")
    parser.add_argument("--smoke", action="store_true", help="Measure little, on a small model, to see that it runs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="File to write the results to (default: none).")
    arguments, flags = parser.parse_known_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a server is stopped before
    tell = Console(stderr=True).print

    def keep(result: dict[str, Any]) -> None:
        if arguments.json:
            write_json(arguments.json, result)

    load = SMOKE if arguments.smoke else Load()
    with tempfile.TemporaryDirectory() as made:
        model, relevance, name = arguments.model, arguments.relevance, Path(arguments.model or "random weights").name
        if model is None:
            model, relevance = save_untrained(Path(made), **load.model)
        result = measure(model, relevance, load, flags, name=name, tell=tell, keep=keep)
    print_table(HEAD, rows_of(rounded(result)), title="Servers under load", left=2)
    print(in_words(result))


def measure(
    model: str,
    relevance: str,
    load: Load,
    flags: Sequence[str],
    *,
    name: str,
    tell: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure every server, one after another.

    Args:
        model: name or path of the checkpoint.
        relevance: see `adatp serve`.
        load: what they are asked.
        flags: flags of `vllm serve` for all of them.
        name: name of the model in the results.
        tell: called with each step as it begins.
        keep: called with all results so far, after every server.
    """
    begin = now()
    config = transformers.AutoConfig.from_pretrained(model)
    prompt = prompt_length(model, load.frames)
    blocks = load.room * -(-(prompt + 1) // BLOCK) + 1  # vLLM keeps one for itself
    cache = blocks * BLOCK * bytes_of_a_token(config.get_text_config())
    own_pruning = pruning_methods(config)
    common = [
        *("--dtype", str(DTYPE).removeprefix("torch.")),
        *("--max-model-len", str(5 * prompt // 4 + load.tokens)),
        *("--max-num-seqs", str(max(load.together))),
        *("--block-size", str(BLOCK), "--kv-cache-memory-bytes", str(cache)),
        *flags,
    ]
    result: dict[str, Any] = {
        "machine": {**machine(), "transformers": transformers.__version__, "vllm": installed()},
        "commit": commit(),
        "seconds": 0,
        "model": {
            "name": name,
            "type": config.model_type,
            "layers": config.get_text_config().num_hidden_layers,
            "width": config.get_text_config().hidden_size,
        },
        "load": {**asdict(load), "prompt_tokens": prompt},
        "flags": common,
        "cache_bytes": cache,
        "video_pruning_rate": PRUNING_RATE if own_pruning else "not available for this model",
        "servers": [],
    }
    for contender in contenders(model, relevance, own_pruning):
        tell(contender.name)
        with tempfile.TemporaryDirectory() as folder:
            server = Server(contender.module, [*common, *contender.flags], Path(folder, "log"), contender.environment)
            with server:
                own = {"name": contender.name, "flags": list(contender.flags), "blocks": server.blocks()}
                rows = under_load(server, model, load, tell)
        result["servers"].append({**own, "rows": rows})
        result["seconds"] = round(now() - begin)
        keep(result)
    return result


def contenders(model: str, relevance: str, own_pruning: Sequence[str]) -> list[Contender]:
    """Return the servers: stock with the flags that pruning needs, stock as it is, AdaTP, and vLLM's own pruning.

    The ratios are to the first one.

    Args:
        model: name or path of the checkpoint.
        relevance: see `adatp serve`.
        own_pruning: methods of vLLM's own pruning that the model has.
    """
    stock = ("-m", "vllm.entrypoints.openai.api_server", "--model", model)
    same = ("--no-enable-prefix-caching", "--no-enable-chunked-prefill")
    runner = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    found = [
        Contender("stock, flags as for AdaTP", stock, same, runner),
        Contender("stock, as it is", stock),
        Contender("AdaTP, p = 1", ("-m", "adatp", "serve", model, "--relevance", relevance)),
    ]
    rate = ("--video-pruning-rate", str(PRUNING_RATE))
    return found + [
        Contender(f"vLLM's {method}, rate {PRUNING_RATE:g}", stock, (*rate, "--video-pruning-method", method))
        for method in own_pruning
    ]


def pruning_methods(config: Any) -> tuple[str, ...]:
    """Return the methods that `--video-pruning-rate` has for a model. vLLM ignores the flag for a model without any."""
    from vllm import ModelRegistry

    (architecture,) = config.architectures
    return tuple(ModelRegistry.models[architecture].inspect_model_cls().supported_video_pruning_methods)


def prompt_length(model: str, frames: int) -> int:
    """Return the number of tokens of an unpruned prompt with a video."""
    processor = load_processor(model)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=prompt,
        videos=[frames_of(0, frames)],
        video_metadata=[{"total_num_frames": frames, "fps": FPS, "frames_indices": list(range(frames))}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return int(inputs["input_ids"].shape[1])


def bytes_of_a_token(text_config: Any) -> int:
    """Return the bytes of the keys and values of one token in all layers of an unpruned model."""
    heads = text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return int(2 * text_config.num_hidden_layers * text_config.num_key_value_heads * size * DTYPE.itemsize)


def under_load(server: Server, model: str, load: Load, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Ask a server, and return its results for each number of requests at a time."""
    videos = (data_url(frames_of(number, load.frames)) for number in count())

    def send_next(requests: int, together: int) -> dict[str, Any]:
        urls = [next(videos) for _ in range(requests)]
        return send(server, model, urls, together=together, tokens=load.tokens)

    tell("  warming up")
    send_next(LEAST, LEAST)
    rows = []
    for together in load.together:
        tell(f"  {together} at a time")
        before = server.metrics()
        rounds = [send_next(max(together, LEAST), together) for _ in range(load.rounds)]
        after = server.metrics()
        rows.append(
            {
                "together": together,
                "first_token": [seconds for found in rounds for seconds in found["ttfts"]],
                "requests_per_second": [found["request_throughput"] for found in rounds],
                "tokens_per_second": [found["output_throughput"] for found in rounds],
                "preemptions": int(after["vllm:num_preemptions_total"] - before["vllm:num_preemptions_total"]),
                **_kept(before, after),
            }
        )
    return rows


def _kept(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the share of the visual tokens in the last layer, and that of the prefill's FLOPs, of a pruned server."""
    grown = {name: value - before.get(name, 0) for name, value in after.items() if name.startswith("adatp:")}
    if not grown:
        return {}
    return {
        "kept": grown["adatp:kept_visual_tokens_total"] / grown["adatp:visual_tokens_total"],
        "flops": grown["adatp:prefill_flops_share_sum_total"] / grown["adatp:pruned_prefills_total"],
    }


def rows_of(result: dict[str, Any]) -> Rows:
    """Return the rows of the table; ratios are those of the medians to the first server's."""
    made = []
    first, *_ = result["servers"]
    for number, base in enumerate(first["rows"]):
        for server in result["servers"]:
            row = server["rows"][number]
            low, middle, high = quartiles(row["first_token"])
            rate, other = median(row["requests_per_second"]), median(base["requests_per_second"])
            made.append(
                [
                    str(row["together"]),
                    server["name"],
                    f"{middle:.2f} s",
                    f"{low:.2f} - {high:.2f} s",
                    f"{middle / median(base['first_token']):.3f}",
                    f"{rate:.3f}",
                    f"{rate / other:.3f}",
                    f"{median(row['tokens_per_second']):.1f}",
                    str(row["preemptions"]),
                ]
            )
    return made


def in_words(result: dict[str, Any]) -> str:
    """Return what was served, and to which requests, in words."""
    model, load = result["model"], result["load"]
    rate = result["video_pruning_rate"]
    return (
        f"Model: {model['name']}, {model['type']}, {model['layers']} layers of width {model['width']}. Each request "
        f"has its own video of {load['frames']} frames, {load['prompt_tokens']} tokens with the question, and gets "
        f"{load['tokens']} tokens. The cache has room for {load['room']} unpruned prompts without their answers, in "
        f"{result['cache_bytes'] / 2**20:.0f} MiB for every server. Rounds: {load['rounds']}. "
        f"vLLM's own `--video-pruning-rate`: {rate}."
    )


if __name__ == "__main__":
    main()
