"""Every example runs from a copy, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SERVING = EXAMPLES / "serving.py"  # it needs vLLM: a test of tests/vllm runs it
SCRIPTS = sorted(set(EXAMPLES.glob("*.py")) - {SERVING})
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[str]:
    read = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in read["cells"] if cell["cell_type"] == kind]


def run(code: str, folder: Path) -> str:
    """What a script prints, in an empty folder, with whatever this process can import."""
    file = folder / "example.py"
    file.write_text(code, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, file], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _needed(pyav):
    pytest.importorskip("sklearn")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(script, tmp_path):
    assert "right:" in (printed := run(script.read_text(encoding="utf-8"), tmp_path)) or "pruned:" in printed


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(notebook, tmp_path):
    pytest.importorskip("matplotlib")
    assert "prefill FLOPs of the language model" in run("\n".join(cells(notebook, "code")), tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(notebook):
    """What `nbformat` asks of one, and nothing of a run."""
    read = json.loads(notebook.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in read["cells"]}) == len(read["cells"])
    for cell in read["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert cell.keys() == wanted


def test_the_list_names_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in (*SCRIPTS, SERVING, *NOTEBOOKS):
        assert f"]({path.name})" in text
