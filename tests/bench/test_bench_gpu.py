"""The one command for a GPU runs on a machine without anything installed, and survives what fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bench.gpu.__main__ as command
from bench.gpu import run, trace
from bench.gpu.cuts import measure_cuts
from bench.gpu.plan import STEPS, Step
from bench.gpu.tests import FAILED, OUTCOME
from bench.inputs import Case
from bench.record import Record, write_json

ROOT = Path(__file__).parents[2]


def bare(*arguments: str) -> subprocess.CompletedProcess:
    """The command where PyAV, `kernels`, scikit-video, Selenium and this package are not installed."""
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers" / "bare"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path):
    done = bare("--dry-run", "--out", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    for step in STEPS:
        assert f"{step.name}, at most {step.limit} s: {step.what}" in done.stdout
        assert all(f"(estimate, not measured): {figure}" in done.stdout for figure in step.expected)
    assert not (tmp_path / "results").exists()


def test_it_fits_into_the_time_there_is():
    assert sum(step.limit for step in STEPS[:4]) <= 9 * 60
    assert sum(step.limit for step in STEPS) <= 25 * 60


def test_a_step_that_does_not_exist_is_refused():
    done = bare("--only", "versions,speed", "--dry-run")
    assert done.returncode == 2
    assert "there is no step 'speed'" in done.stderr


def test_it_runs_where_nothing_is_installed(tmp_path):
    done = bare("--only", "versions,tests,prefill", "--out", str(tmp_path))
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("versions", "tests", "prefill")}
    assert done.returncode == 0, [own.get("error") for own in found.values()]
    for own in found.values():
        assert own["status"] == "done"
        assert own["seconds"] > 0
        assert own["machine"]["torch"] == torch.__version__
        assert set(own["commit"]) == {"id", "dirty"}
    packages = found["versions"]["packages"]
    assert [packages[name] for name in ("av", "kernels", "scikit-video", "selenium")] == ["not installed"] * 4
    assert all(roof > 0 for roof in found["versions"]["roofs"].values())
    (ran,) = found["tests"]["pytest"]
    assert ran["passed"] > 0
    assert not {"failed", "error", "skipped"} & set(ran)
    assert all(own["same"] for own in found["tests"]["repeats"])
    unpruned, pruned = found["prefill"]["rows"]
    assert (unpruned["name"], pruned["name"]) == ("unpruned", "AdaTP p=1")
    assert len(set(unpruned["widths"])) == 1
    assert pruned["widths"][-1] < pruned["widths"][0] == unpruned["widths"][0]
    assert pruned["own_cost"] == pytest.approx(pruned["seconds"][0] - pruned["forced_seconds"][0], rel=0.01, abs=1e-3)
    assert pruned["to_unpruned"][1] == pytest.approx(pruned["seconds"][0] / unpruned["seconds"][0], rel=0.01)
    assert pruned["trace"]["kernels"] > unpruned["trace"]["kernels"]
    assert pruned["cuts"]["host"] > 0 == unpruned["cuts"]["host"]
    assert "of unpruned" in done.stdout


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_fails_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    result = json.dumps({"step": "tests", "status": "done"})
    commands = {
        "versions": lambda file: python("import sys; print('no such device'); sys.exit(3)"),
        "tests": lambda file: python(f"open({str(file)!r}, 'w').write({result!r})"),
        "prefill": lambda file: python("import os; os.kill(os.getpid(), 11)"),
    }
    monkeypatch.setattr(run, "_command", lambda step, file: commands[step.name](file))
    assert command.main(["--only", "versions,tests,prefill", "--out", str(tmp_path)]) == 1
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in commands}
    assert [own["status"] for own in found.values()] == ["failed", "done", "failed"]
    assert found["versions"]["error"] == "exit code 3\nno such device"
    assert found["prefill"]["error"].startswith("exit code -11")
    assert "no such device" in capsys.readouterr().out
    assert command.main(["--only", "tests", "--out", str(tmp_path)]) == 0


def test_a_step_whose_process_fails_in_the_end_has_failed(tmp_path):
    file = tmp_path / "late.json"
    code = f'import os; open({str(file)!r}, \'w\').write(\'{{"status": "done", "rows": [1]}}\'); os.abort()'
    found = run.run(Step("late", "nothing", 60, ()), tmp_path, python(code))
    assert (found["status"], found["rows"]) == ("failed", [1])
    assert "exit code -6" in found["error"]


def test_what_a_step_raises_is_in_its_file(tmp_path):
    step = Step("nothing", "a module that does not exist", 60, ())
    found = run.run(step, tmp_path)
    assert found["status"] == "failed"
    assert "No module named 'bench.gpu.nothing'" in found["error"]
    assert found["machine"]["cores"] > 0


def test_a_step_past_its_limit_is_ended_with_all_it_started_and_keeps_what_it_found(tmp_path):
    file, late = tmp_path / "slow.json", tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    code = (
        "import json, subprocess, sys, time\n"
        f"json.dump({{'step': 'slow', 'status': 'running', 'rows': [1, 2]}}, open({str(file)!r}, 'w'))\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)"
    )
    begin = time.perf_counter()
    found = run.run(Step("slow", "nothing", 1, ()), tmp_path, python(code))
    assert time.perf_counter() - begin < 20
    assert found == json.loads(file.read_text())
    assert found["rows"] == [1, 2]
    assert (found["status"], found["error"]) == ("ended at its limit", "ended after 1 s")
    time.sleep(4)
    assert not late.exists()


def test_a_record_holds_every_row_at_once(tmp_path):
    file = tmp_path / "step.json"
    record = Record(file, "step")
    for number in (1.23456, 2):
        record.add("rows", {"value": number})
        assert json.loads(file.read_text())["rows"][-1] == {"value": round(number, 3)}
    assert json.loads(file.read_text())["status"] == "running"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "result.json"
    write_json(file, {"rows": [1]})
    with pytest.raises(TypeError):
        write_json(file, {"rows": [object()]})
    assert json.loads(file.read_text()) == {"rows": [1]}


def test_gaps_are_what_no_kernel_runs_in(monkeypatch):
    ran = [("a", 1.0, 2.0), ("b", 1.5, 3.0), ("c", 1.6, 1.7), ("a", 2.0, 2.5), ("a", 5.0, 6.0)]
    monkeypatch.setattr(trace, "_ran", lambda run: ran)
    found = trace.trace(lambda: None)
    assert (found["kernels"], found["span"], found["gaps"]) == (5, 5.0, 2.0)
    assert found["kernel_seconds"] == pytest.approx(4.1)
    assert [(own["name"], own["calls"]) for own in found["top"]] == [("a", 3), ("b", 1), ("c", 1)]


def test_a_call_that_runs_nothing_has_no_gaps(monkeypatch):
    monkeypatch.setattr(trace, "_ran", lambda run: [])
    assert trace.trace(lambda: None) == {"kernels": 0, "kernel_seconds": 0, "span": 0, "gaps": 0, "top": []}


def test_a_later_cut_is_the_first_one_that_drops_anything():
    first, later = measure_cuts(Case("onevision-0.5b", 8))
    assert (first["cut"], later["cut"]) == ("first", "later")
    assert 8 * 196 + 113 > first["width"] > later["width"] > 113
    assert all(took > 0 for row in (first, later) for took in (*row["seconds"], *row["host"]))


def test_a_static_video_has_no_later_cut():
    """Its one segment keeps a token for each position, which is less than every later quota."""
    (first,) = measure_cuts(Case("onevision-0.5b", 16, one_segment=True))
    assert first["width"] <= 196 + 113


def test_outcomes_are_read_from_what_pytest_prints():
    printed = (
        "collecting ... collected 3 items\n"
        "tests/test_cuda.py::test_a PASSED                      [ 33%]\n"
        "tests/test_cuda.py::test_b[one video, 0.5] FAILED      [ 66%]\n"
        "tests/test_cuda.py::test_c SKIPPED (needs two GPUs)    [100%]\n"
        "FAILED tests/test_cuda.py::test_b[one video, 0.5] - AssertionError\n"
    )
    assert OUTCOME.findall(printed) == ["PASSED", "FAILED", "SKIPPED"]
    assert FAILED.findall(printed) == ["FAILED tests/test_cuda.py::test_b[one video, 0.5] - AssertionError"]
