"""The package installs as it says, and leaves Hugging Face's own `kernels` package alone."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    """Run code in a fresh interpreter with the repository root first on sys.path, as `python -m` has it."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_there_is_no_package_called_kernels_here():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.skipif(
    getattr(util.find_spec("kernels"), "origin", None) is None, reason="kernels is not installed: pip install kernels"
)
def test_import_kernels_finds_hugging_faces():
    found = python("import kernels; print(kernels.__file__)")
    assert Path(found).is_relative_to(Path(sys.prefix)), found
    assert not Path(found).is_relative_to(ROOT / "kernels")


def test_adatp_kernels_is_the_folder_kernels():
    found = python("import adatp_kernels.score; print(adatp_kernels.score.__file__)")
    assert Path(found).resolve() == (ROOT / "kernels" / "score.py").resolve()


def test_a_model_imports_with_both_installed():
    code = "from transformers import LlavaOnevisionForConditionalGeneration as M; import adatp; print(M.__name__)"
    assert python(code) == "LlavaOnevisionForConditionalGeneration"


def test_the_wheel_holds_both_packages(tmp_path):
    source = tmp_path / "source"  # a build leaves its own folder behind, which the next one would pack
    source.mkdir()
    for name in ("adatp", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("adatp-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(source)) for path in (source / "adatp").rglob("*") if path.is_file()}
    training = {name for name in sources if name.startswith("adatp/small/training/")}
    assert "adatp/small/training/training.jsonl" in training
    sources -= training
    data = {"evaluation/paper/tables.json", "figures/page.html", "models/published.json", "py.typed"}
    assert {f"adatp/{name}" for name in data} <= sources <= set(names)
    assert not training & set(names)
    assert "adatp_kernels/score.py" in names
    assert not any(name.startswith(("kernels/", "tests/", "bench/")) for name in names)


def test_python_s_minimum_is_what_setup_py_says():
    """The linters and the README follow it. The environment that constraints.txt pins needs it too."""
    (minor,) = re.findall(r'python_requires=">=3\.(\d+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["ruff"]["target-version"] == f"py3{minor}"
    assert tools["mypy"]["python_version"] == f"3.{minor}"
    told = re.findall(r"Python 3\.(\d+) or newer", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(told) <= {minor}
