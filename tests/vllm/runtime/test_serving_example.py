"""The example that serves the built-in model, from a copy: `make serve-demo` runs it."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run the example, and see that no process of it is left."""
    file = folder / "serving.py"
    file.write_bytes((ROOT / "examples" / "serving.py").read_bytes())
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ["PYTHONPATH"], *sys.path]))
    environment = {**os.environ, "PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with subprocess.Popen(
        [sys.executable, file, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, told = process.communicate(timeout=240)
            assert is_gone(process.pid), "a process of the server is left"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, told)


def is_gone(group: int) -> bool:
    """Wait for the end of a group of processes, whose helpers end after the others; tell whether it came."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_it_answers_and_tells_what_was_kept(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^(.+\?)  (.*)  \(right: (.+)\)$", done.stdout, re.MULTILINE)
    assert len(answers) == 9
    assert sum(said == right for _, said, right in answers) >= 8
    kept = re.findall(r"^  (\d+) visual tokens, (\d+) of them in the last layer$", done.stdout, re.MULTILINE)
    assert len(kept) == 9
    assert all(visual == "512" and 0 < int(left) < 128 for visual, left in kept)


def test_a_server_that_does_not_start_ends_it(tmp_path):
    done = run(tmp_path, "--enable-prefix-caching")
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
    assert "--no-enable-prefix-caching" in done.stderr
    assert done.stdout == ""
