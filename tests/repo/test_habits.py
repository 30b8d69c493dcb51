"""What keeps the house tidy works: ends of files, hooks before a commit, calls that can be read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WHITESPACE = ROOT / ".ci" / "whitespace"
MOST = 6  # arguments by their place: of more nobody knows which is which


def test_hooks_need_no_network():
    """They run what `make lint` runs, from the environment that it sets up."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        if program == "make":
            assert f"\n{arguments[0]}: " in makefile
        elif program.startswith(".venv/bin/"):
            assert f"$(BIN)/{Path(program).name} {arguments[0]}" in makefile
        else:
            assert f"\t{program}\n" in makefile


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a\nb\n", ""),
        ("", ""),
        ("a \nb\n", ":1: white space at the end of the line"),
        ("a\n\tb\t\n", ":2: white space at the end of the line"),
        ("a\r\n", ":1: white space at the end of the line"),
        ("a\nb", ": no newline at the end of the file"),
        ("a\n\n", ": an empty line at the end of the file"),
        ("a \0", ""),
    ],
)
def test_ends_of_lines_and_files(tmp_path, content, fault):
    path = tmp_path / "file"
    path.write_bytes(content.encode())
    done = subprocess.run([sys.executable, WHITESPACE, path], capture_output=True, text=True)
    assert done.stdout == (f"{path}{fault}\n" if fault else "")
    assert done.returncode == bool(fault)


@pytest.mark.parametrize("folder", ["adatp", "bench"])
def test_no_call_has_many_arguments_by_place(folder):
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > MOST:
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = ast.unparse(node.func)
    assert found == {}
