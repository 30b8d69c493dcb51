"""A folder's name is a rule: what it may import, where hooks are registered, what prints."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adatp

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "adatp").rglob("*.py"))
# From the top down: a folder imports what stands below it, and nothing beside or above it. A file of the root counts by
# its own name.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"tables", "figures"},
    {"evaluation"},
    {"small"},
    {"pruning"},
    {"hf", "vllm"},
    {"engine", "models"},
    {"report"},
    {"methods"},
    {"relevance", "flops", "world"},
    {"layout", "video", "tensors"},
    {"checks"},
    {"errors"},
)


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


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "adatp"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "adatp").with_suffix("").parts[0]


def calls(path: Path) -> set[str]:
    """Names of the functions and methods that a file calls."""
    found = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {own.attr if isinstance(own, ast.Attribute) else getattr(own, "id", "") for own in found}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.name)
def test_kernels_know_torch_and_triton_only(path):
    assert not packages(imports(path)) & {"adatp", "transformers", "numpy"}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room_of(path) in {"engine", "hf", "methods", "pruning", "report", "layout"}],
    ids=name_of,
)
def test_the_engine_names_no_family(path):
    """What a family needs is in `adatp/models/`; the engine asks it."""
    assert not re.search("llava|qwen|internvl", path.read_text(encoding="utf-8"), re.IGNORECASE)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_folder_imports_what_stands_below_it(path):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    own = room_of(path)
    if own == "__init__":
        return  # the public names, imported when they are used
    for module in imports(path):
        if module.startswith("adatp.") and module != "adatp.__version__":
            room = module.split(".")[1]
            assert room == own or floor[room] > floor[own], f"{own} imports {module}"


def test_every_room_has_its_floor():
    assert {room_of(path) for path in FILES} - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("room", ["engine", "methods", "tensors", "world"])
def test_tensor_code_knows_nothing_of_transformers(room):
    for path in (ROOT / "adatp" / room).glob("*.py"):
        assert "transformers" not in packages(imports(path)), path.name


def test_hooks_are_registered_in_two_rooms():
    registering = {
        room_of(path)
        for path in FILES
        if "training" not in path.parts  # which has a plain model of its own
        and any(name.startswith("register_") and name.endswith("hook") for name in calls(path))
    }
    assert registering == {"hf", "vllm"}


def test_evaluation_prints_nothing():
    for path in (ROOT / "adatp" / "evaluation").rglob("*.py"):
        assert not {"rich", "matplotlib"} & packages(imports(path)), path.name
        assert "print" not in calls(path), path.name


def test_the_root_holds_what_users_import():
    assert len(list((ROOT / "adatp").glob("*.py"))) <= 10


@pytest.mark.parametrize("folder", ["adatp", "kernels"])
def test_a_file_is_read_in_one_sitting(folder):
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_the_package_has_no_circles():
    """Following imports at module level from any module never leads back to it."""
    files = {f"adatp.{path.relative_to(ROOT / 'adatp').with_suffix('')}".replace("/", "."): path for path in FILES}
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
    code = "import sys, adatp.cli.main; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_dir_lists_the_public_names_and_nothing_else():
    assert dir(adatp) == sorted([*adatp.__all__, "__version__"])
    assert adatp.__version__ == "0.1.0"


def test_every_public_name_is_found():
    for name in adatp.__all__:
        assert getattr(adatp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = adatp.nonsense


def test_nothing_but_the_entry_point_imports_the_command_line():
    users = {path.name for path in FILES if "adatp.cli.main" in imports(path)}
    assert users == {"__main__.py"}


def test_input_that_cannot_be_used_is_no_plain_error():
    """The command line tells an `InputError` in a line, and anything else as a bug."""
    for path in FILES:
        if "training" not in path.parts:
            assert " ValueError(" not in path.read_text(encoding="utf-8"), name_of(path)
