"""A server in processes of its own, asked by the real openai client about a video that is sent as a data URL."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from adatp.evaluation.heldout import paper_of
from adatp.small.checkpoint import FOLDER
from adatp.world.files import write_mp4
from adatp.world.questions import KINDS

NAME = "small"
MODEL, SIGLIP = str(FOLDER / "model"), str(FOLDER / "siglip")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def paper():
    """A held-out video and questions about it, which the small model answers rightly with and without pruning."""
    return paper_of("heldout", 101, questions=len(KINDS), options=False)


@pytest.fixture(scope="module")
def url(paper, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("video") / "demo.mp4"
    write_mp4(file, paper.clip().frames)
    return "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a server with two engines behind one port, while the tests run."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "adatp", "serve", MODEL, "--relevance", SIGLIP, "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048"]
    command += ["--enforce-eager", "--data-parallel-size", "2"]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as written:
        server = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment)
        try:
            for _ in range(300):
                if server.poll() is not None:
                    break
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            assert server.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)


@pytest.fixture
def client(address):
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client, url, question, **changes):
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    given = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    return client.chat.completions.create(**{**given, **changes})


def counters(address) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = [line.split() for line in answer.read().decode().splitlines() if line.startswith("adatp:")]
    return {name.split("{")[0]: float(value) for name, value in lines}


def test_answers(client, url, paper):
    """All at once: the requests of a batch, on both engines."""
    with ThreadPoolExecutor(len(paper.questions)) as pool:
        answers = pool.map(lambda asked: ask(client, url, asked.text), paper.questions)
        assert [answer.choices[0].message.content for answer in answers] == [asked.answer for asked in paper.questions]


def test_streaming(client, url, paper):
    asked = next(asked for asked in paper.questions if len(asked.answer.split()) > 1)
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, url, asked.text, stream=True)]
    assert "".join(pieces) == asked.answer
    assert len([piece for piece in pieces if piece]) > 1


def test_counters(address, client, url, paper):
    before = counters(address)
    ask(client, url, paper.questions[0].text)
    after = counters(address)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["adatp:pruned_prefills_total"] == 1
    assert grown["adatp:visual_tokens_total"] == 512
    assert 0 < grown["adatp:kept_visual_tokens_total"] <= round(0.12 * 512)
    assert 0 < grown["adatp:prefill_flops_share_sum_total"] < 0.5


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"url": "data:video/mp4;base64,AAAA"}, ""),
        ({"url": "data:video/mp4;base64,"}, ""),
        ({"question": "why? " * 3000}, "maximum context length"),
        ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs cannot be given"),
        ({"model": "another"}, "does not exist"),
    ],
    ids=["broken", "empty", "too long", "prompt_logprobs", "model"],
)
def test_what_cannot_be_answered(client, url, paper, changes, wanted):
    """The client is told, without paths of the server, and the next request is answered."""
    import openai

    given = {"url": url, "question": paper.questions[0].text, **changes}
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, **given)
    told = json.dumps(refused.value.body)
    assert 400 <= refused.value.status_code < 500, told
    assert wanted in told
    assert str(FOLDER) not in told
    assert "Traceback" not in told
    assert ask(client, url, paper.questions[0].text).choices[0].message.content == paper.questions[0].answer
