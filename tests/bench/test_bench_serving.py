"""The benchmark of servers: what they are asked, how they are started and stopped, and how results are written."""

import base64
import os
from types import SimpleNamespace

import numpy as np
import pytest

from adatp.video import sample_frames
from bench import server, serving
from bench.load import data_url, frames_of
from bench.serving_model import save_untrained

ANSWERING = """
import os, sys
print(os.environ["WORD"], sys.argv[1], flush=True)
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"well")
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_every_request_has_a_video_of_its_own(tmp_path, pyav):
    one, two = frames_of(1, 8), frames_of(2, 8)
    assert (one.shape, one.dtype) == ((8, 224, 224, 3), np.uint8)
    assert np.array_equal(one, frames_of(1, 8))
    assert not np.array_equal(one, two)
    means = np.abs(np.diff(one.astype(int), axis=0)).mean((1, 2, 3))
    assert means.argmax() == 3  # a shot has four frames
    kind, content = data_url(one).split(",")
    assert kind == "data:video/mp4;base64"
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(content))
    seen = sample_frames(tmp_path / "a.mp4", 8, shortest_edge=None).frames
    assert seen.shape == one.shape
    assert np.abs(seen.astype(int) - one).mean() < 12


def test_a_server_runs_within_its_block(tmp_path):
    log = tmp_path / "log"
    with server.Server(("-c", ANSWERING), ["--flag"], log, {"WORD": "hello"}) as running:
        assert running._read("/health") == "well"
        assert log.read_text() == "hello --flag\n"
        group = running._process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_server_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STOPPING", 0.2)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWERING
    with server.Server(("-c", stubborn), ["--flag"], tmp_path / "log", {"WORD": ""}) as running:
        group = running._process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_server_that_ends_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"the server has ended: python -c .* --port \d+\nValueError: too small$"):
        with server.Server(("-c", "print('more'); raise ValueError('too small')"), ["--flag"], tmp_path / "log"):
            pass


def test_an_error_is_told_with_what_the_server_printed(tmp_path):
    printing = "print('ValueError: no such video', flush=True)\n" + ANSWERING
    with pytest.raises(ZeroDivisionError) as raised:
        with server.Server(("-c", printing), ["--flag"], tmp_path / "log", {"WORD": ""}):
            raise ZeroDivisionError
    assert raised.value.__notes__ == ["ValueError: no such video"]


def test_a_server_that_does_not_answer_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STARTING", 0.2)
    silent = server.Server(("-c", "import time; time.sleep(60)"), [], tmp_path / "log")
    with pytest.raises(RuntimeError, match="does not answer after"):
        silent.__enter__()
    assert silent._process.poll() is not None


def test_the_prompt_and_its_bytes(tmp_path, pyav):
    model, _ = save_untrained(tmp_path)
    text = len(f"user \n{serving.QUESTION}assistant\n".encode()) + 3  # a token a byte, and three special ones
    assert serving.prompt_length(model, 8) == 8 * 49 + 1 + text
    config = SimpleNamespace(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=256)
    assert serving.bytes_of_a_token(config) == 2 * 3 * 2 * 32 * serving.DTYPE.itemsize
    config.head_dim = 128
    assert serving.bytes_of_a_token(config) == 2 * 3 * 2 * 128 * serving.DTYPE.itemsize


def test_the_servers():
    first, plain, pruned = serving.contenders("M", "S", ())
    assert first.flags == ("--no-enable-prefix-caching", "--no-enable-chunked-prefill")
    assert (plain.flags, pruned.flags) == ((), ())
    assert pruned.module == ("-m", "adatp", "serve", "M", "--relevance", "S")
    *_, own = serving.contenders("M", "S", ("evs",))
    assert own.module == first.module
    assert own.flags == ("--video-pruning-rate", "0.75", "--video-pruning-method", "evs")


def result(**changes):
    def rows(factor):
        return [
            {
                "together": together,
                "first_token": [factor * value for value in (1.0, 2.0, 3.0)],
                "requests_per_second": [4 / factor, 1 / factor, 5 / factor],
                "tokens_per_second": [40 / factor] * 3,
                "preemptions": int(4 * factor),
            }
            for together in (1, 4)
        ]

    return {
        "model": {"name": "random weights", "type": "llava_onevision", "layers": 20, "width": 256},
        "load": {"frames": 32, "tokens": 16, "rounds": 3, "room": 8, "prompt_tokens": 1600},
        "cache_bytes": 2**27,
        "video_pruning_rate": "not available for this model",
        "servers": [{"name": "stock", "rows": rows(1)}, {"name": "AdaTP", "rows": rows(0.5)}],
        **changes,
    }


def test_ratios_are_to_the_first_server():
    stock, pruned, *_ = found = serving.rows_of(result())
    assert stock == ["1", "stock", "2.00 s", "1.50 - 2.50 s", "1.000", "4.000", "1.000", "40.0", "4"]
    assert pruned == ["1", "AdaTP", "1.00 s", "0.75 - 1.25 s", "0.500", "8.000", "2.000", "80.0", "2"]
    assert [row[:2] for row in found[2:]] == [["4", "stock"], ["4", "AdaTP"]]
    assert all(len(row) == len(serving.HEAD) for row in found)


def test_what_was_asked_is_told_in_words():
    words = serving.in_words(result())
    assert "20 layers of width 256" in words
    assert "32 frames, 1600 tokens with the question" in words
    assert "room for 8 unpruned prompts without their answers, in 128 MiB for every server" in words
    assert words.endswith("vLLM's own `--video-pruning-rate`: not available for this model.")
    assert serving.in_words(result(video_pruning_rate=0.75)).endswith("`--video-pruning-rate`: 0.75.")


def test_what_a_pruned_server_kept_comes_from_its_counters():
    before = {"adatp:visual_tokens_total": 100.0, "adatp:kept_visual_tokens_total": 90.0}
    after = {
        "adatp:visual_tokens_total": 300.0,
        "adatp:kept_visual_tokens_total": 140.0,
        "adatp:prefill_flops_share_sum_total": 0.6,
        "adatp:pruned_prefills_total": 2.0,
    }
    assert serving._kept(before, after) == {"kept": 0.25, "flops": 0.3}
    assert serving._kept({"vllm:x": 1.0}, {"vllm:x": 2.0}) == {}
