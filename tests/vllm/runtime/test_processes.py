"""Servers of several processes, and compiled ones: what they generate is what transformers does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_models import QUESTIONS, asked, by_transformers

from adatp.methods import AdaTP

TOKENS = 40
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from vllm_models import asked, generate, make_llm

if __name__ == "__main__":
    changes = json.loads(sys.argv[3])
    llms = [make_llm(sys.argv[2], "adatp", **changes) for _ in range(int(sys.argv[4]))]
    prompts = [asked(number) for number in range(4)]
    print("ANSWERS", json.dumps([generate(llm, prompts, 40) for llm in llms]))
"""


@pytest.fixture(scope="module")
def reference(onevision):
    prompts = [asked(number) for number in range(len(QUESTIONS))]
    return [answer.tokens for answer in by_transformers(onevision, AdaTP(), prompts, TOKENS, None)]


def serve(model: Path, tmp_path: Path, engines: int = 1, processes: bool = True, **changes) -> list[list[list[int]]]:
    """Return what the engines of a program generate; a program of its own, because an engine leaves traces."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    helpers = Path(__file__).parents[2] / "helpers"
    run = subprocess.run(
        [sys.executable, program, helpers, model, json.dumps(changes), str(engines)],
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes)), "VLLM_CACHE_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout[-3000:]
    [line] = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS")]
    return json.loads(line.removeprefix("ANSWERS"))


def test_the_engine_in_a_process_of_its_own(onevision, tmp_path, reference):
    assert serve(onevision, tmp_path) == [reference]


def test_two_engines_of_one_program(onevision, tmp_path, reference):
    assert serve(onevision, tmp_path, engines=2) == [reference, reference]


def test_tensor_parallel(onevision, tmp_path, reference):
    """Each of two ranks has half of the heads; the scores are averaged over both."""
    assert serve(onevision, tmp_path, tensor_parallel_size=2) == [reference]


def test_compiled(onevision, tmp_path, reference):
    assert serve(onevision, tmp_path, processes=False, enforce_eager=False) == [reference]
