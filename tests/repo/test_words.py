"""The words of the code: the docstring of a public function begins with a verb."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "adatp"
FILES = sorted(ROOT.rglob("*.py"))
VERBS = {
    "Accept",
    "Add",
    "Answer",
    "Apply",
    "Ask",
    "Average",
    "Build",
    "Check",
    "Choose",
    "Compare",
    "Compute",
    "Convert",
    "Copy",
    "Count",
    "Cover",
    "Decode",
    "Describe",
    "Do",
    "Draw",
    "Encode",
    "Explain",
    "Find",
    "Forget",
    "Give",
    "Group",
    "Index",
    "Keep",
    "Learn",
    "Let",
    "Load",
    "Make",
    "Move",
    "Open",
    "Mark",
    "Parse",
    "Pool",
    "Print",
    "Prune",
    "Queue",
    "Raise",
    "Read",
    "Record",
    "Refuse",
    "Remove",
    "Reorder",
    "Repeat",
    "Replace",
    "Restore",
    "Return",
    "Round",
    "Run",
    "Sample",
    "Select",
    "Set",
    "Show",
    "Split",
    "Stack",
    "Store",
    "Tell",
    "Train",
    "Turn",
    "Wait",
    "Wrap",
    "Write",
    "Yield",
}


def public_functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Return, by name, a module's public functions and the public methods of its public classes, without properties."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found |= {f"{node.name}.{own.name}": own for own in node.body if isinstance(own, ast.FunctionDef)}
    return {
        name: function
        for name, function in found.items()
        if not function.name.startswith("_") and not any(is_property(own) for own in function.decorator_list)
    }


def first_word(docstring: str) -> str:
    return docstring.split(maxsplit=1)[0].strip(",.:") if docstring else ""


def is_property(decorator: ast.expr) -> bool:
    name = ast.unparse(decorator)
    return name in ("property", "cached_property") or name.endswith((".setter", ".getter", ".deleter"))


def documented_bases() -> dict[str, set[str]]:
    """Return, for each class, the names of the methods that a base class in the package has with a docstring."""
    own: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                functions = (function for function in node.body if isinstance(function, ast.FunctionDef))
                own[node.name] = {function.name for function in functions if ast.get_docstring(function)}
                bases[node.name] = [ast.unparse(base).split("[")[0] for base in node.bases]

    def all_of(name: str) -> set[str]:
        return own.get(name, set()).union(*(all_of(base) for base in bases.get(name, []) if base != name))

    return {name: set().union(*(all_of(base) for base in bases[name])) for name in bases}


INHERITED = documented_bases()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_says_what_it_does(path):
    wrong = {}
    for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))).items():
        docstring = ast.get_docstring(function) or ""
        if not docstring and function.name in INHERITED.get(name.split(".")[0], set()):
            continue
        if first_word(docstring) not in VERBS:
            wrong[name] = docstring.split("\n")[0]
    assert wrong == {}, "begin the docstring with a verb, as in 'Return ...'; add a new verb to VERBS"


def test_every_verb_is_in_use():
    found = set()
    for path in FILES:
        functions = public_functions(ast.parse(path.read_text(encoding="utf-8"))).values()
        found |= {first_word(ast.get_docstring(function) or "") for function in functions}
    assert VERBS - found == set()
