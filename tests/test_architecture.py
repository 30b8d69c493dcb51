"""The arrows of the house point one way: cli -> adatp -> adatp_kernels -> torch, triton."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adatp

ROOT = Path(__file__).parent.parent


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, with their dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.name)
def test_kernels_know_torch_and_triton_only(path):
    assert not packages(imports(path)) & {"adatp", "transformers", "numpy"}


METHOD = [
    ROOT / "adatp" / f"{name}.py" for name in ("layout", "segments", "budget", "prefill", "compression", "sparse")
]


@pytest.mark.parametrize("path", [*METHOD, *sorted((ROOT / "adatp" / "methods").glob("*.py"))], ids=lambda p: p.stem)
def test_the_methods_know_nothing_of_transformers(path):
    assert "transformers" not in packages(imports(path))


def test_the_package_has_no_circles():
    """Following imports at module level from any module never leads back to it."""
    files = {
        f"adatp.{p.relative_to(ROOT / 'adatp').with_suffix('')}".replace("/", "."): p
        for p in (ROOT / "adatp").rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {name: (imports(path, top_level_only=True) & files.keys()) - {name} for name, path in files.items()}
    del graph["adatp"]  # the public names; nothing inside imports them
    for name, targets in graph.items():
        seen, stack = set(), list(targets)
        while stack:
            current = stack.pop()
            assert current != name, f"{name} imports itself through {seen}"
            if current not in seen:
                seen.add(current)
                stack += graph.get(current, ())


def test_the_command_line_starts_without_torch_and_transformers():
    code = "import sys, adatp.cli; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_found():
    for name in adatp.__all__:
        assert getattr(adatp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = adatp.nonsense


def test_nothing_but_the_entry_points_imports_the_command_line():
    users = {p.name for p in (ROOT / "adatp").rglob("*.py") if "adatp.cli" in imports(p)}
    assert users == {"__main__.py"}
