"""Serve the built-in model with vLLM, pruned, and ask it about a video through the openai client.

python examples/serving.py [FLAG ...]

The flags are those of `adatp serve`. It needs vLLM: pip install 'adatp[vllm,world]'
"""

import base64
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from adatp.evaluation.heldout import paper_of
from adatp.small.checkpoint import FOLDER
from adatp.world.files import write_mp4

MODEL, SIGLIP = str(FOLDER / "model"), str(FOLDER / "siglip")
HOST = "127.0.0.1"
PATIENCE = 300  # seconds that a server may take to start


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


def serve(port: int, log: Path) -> subprocess.Popen:
    """Start the server. Without compilation it starts sooner, and 256 MB of keys and values suffice for a demo."""
    command = [sys.executable, "-m", "adatp", "serve", MODEL, "--relevance", SIGLIP, "--dtype", "float32"]
    command += ["--host", HOST, "--port", str(port), "--max-model-len", "4096"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", "256M"]
    return subprocess.Popen([*command, *sys.argv[1:]], stdout=log.open("w"), stderr=subprocess.STDOUT)


def is_ready(port: int, server: subprocess.Popen) -> bool:
    """Wait for the server; tell whether it answers."""
    begin = time.monotonic()
    while server.poll() is None and time.monotonic() - begin < PATIENCE:
        try:
            with urlopen(f"http://{HOST}:{port}/health"):
                return True
        except (URLError, ConnectionError):
            time.sleep(0.5)
    return False


def counted(port: int) -> list[int]:
    """Return the numbers of visual tokens that all prompts had so far, and that entered the last layer."""
    with urlopen(f"http://{HOST}:{port}/metrics") as metrics:
        families = list(text_string_to_metric_families(metrics.read().decode()))
    found = {sample.name: int(sample.value) for family in families for sample in family.samples}
    return [found.get(f"adatp:{name}_total", 0) for name in ("visual_tokens", "kept_visual_tokens")]


def ask(port: int, video: Path) -> None:
    """Ask the server about the video, and print what it answers and keeps."""
    client = OpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="none")
    url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    for asked in paper.questions:
        before = counted(port)
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": asked.text}]
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=16, temperature=0
        )
        visual, kept = (now - then for now, then in zip(counted(port), before, strict=True))
        said = answer.choices[0].message.content.strip()
        print(f"{asked.text}  {said}  (right: {asked.answer})")
        print(f"  {visual} visual tokens, {kept} of them in the last layer")


paper = paper_of("heldout", 101, questions=9, options=False)  # the built-in model knows videos made by code alone
with tempfile.TemporaryDirectory() as folder:
    video, log = Path(folder, "demo.mp4"), Path(folder, "server.log")
    write_mp4(video, paper.clip().frames)
    port = free_port()
    server = serve(port, log)
    try:
        if not is_ready(port, server):
            sys.exit(f"the server did not start; its log ends with\n{log.read_text()[-2000:]}")
        ask(port, video)
    finally:
        server.terminate()
        server.wait()
