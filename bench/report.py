"""Write the README's tables, and the pictures beside the result files, from these: `python -m bench.report`.

What stands in the README between `<!-- report: NAME -->` and `<!-- end -->` is written here and nowhere else.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from adatp.figures.accuracy import draw_accuracy
from adatp.tables.accuracy import accuracy, biases, by_kind, caption, markdown
from adatp.tables.tabulate import markdown_tables
from bench.e2e.picture import draw_speed
from bench.e2e.tables import tables
from bench.gpu.plan import STEPS
from bench.gpu.summary import tables as gpu_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- report: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def study() -> str:
    """Accuracy: all methods, by kind at p = 1, and the model's biases."""
    found = _read("study.json")
    shown = [
        ("Accuracy on held-out questions", accuracy(found)),
        ("By kind of question, p = 1", by_kind(found, 1.0)),
        ("Biases of the unpruned model's attention", biases(found)),
    ]
    return f"{_where(found)}\n\n{markdown_tables(shown)}\n\n{' '.join(caption(found))}\n"


def speed() -> str:
    """Time to first token: every machine's prefill, stages and goals."""
    parts = []
    for file in sorted(RESULTS.glob("e2e-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        made = tables(found)
        shown = [own for own in made if own[0].startswith(("Prefill of", "To the first", "Goals"))]
        head = (
            f"`{file.relative_to(ROOT)}`, all of it in [{file.stem}.md](bench/results/{file.stem}.md). {_where(found)}"
        )
        parts.append(f"{head}\n\n{markdown_tables(shown)}\n")
    return "\n".join(parts)


def gpu() -> str:
    """What every GPU took, but for how its steps ended."""
    parts = []
    for folder in sorted(RESULTS.glob("gpu-*")):
        found = _steps(folder)
        shown = [own for own in gpu_tables(found) if own[0] != "Steps"]
        head = f"`{folder.relative_to(ROOT)}/`. {_where_gpu(found[0])}"
        parts.append(f"{head}\n\n{markdown_tables(shown)}\n")
    return "\n".join(parts)


def _steps(folder: Path) -> list[dict[str, Any]]:
    """What the steps that were run have found, in the plan's order."""
    files = [folder / f"{step.name}.json" for step in STEPS]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


BLOCKS: dict[str, Callable[[], str]] = {"study": study, "speed": speed, "gpu": gpu}


def written(readme: str) -> str:
    """The README with every block as the result files have it."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", readme)


def main() -> None:
    """Write the README, the full tables and the pictures."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # the same figures make the same picture
    matplotlib.rcParams["svg.hashsalt"] = "adatp"
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
    found = _read("study.json")
    (RESULTS / "study.md").write_text(markdown(found), encoding="utf-8")
    draw_accuracy(RESULTS / "study.svg", found)
    for file in sorted(RESULTS.glob("e2e-*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        file.with_suffix(".md").write_text(f"{_where(found)}\n\n{markdown_tables(tables(found))}\n", encoding="utf-8")
        draw_speed(file.with_suffix(".svg"), found)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _where(found: dict[str, Any]) -> str:
    """What it ran on and how long that took."""
    machine = found["machine"]
    return (
        f"Measured on {machine['processor']}, {machine['cores']} cores, device {machine['device']}, "
        f"{machine['dtype']}, torch {machine['torch']}, transformers {machine['transformers']}, in "
        f"{found['seconds'] / 60:.0f} minutes."
    )


def _where_gpu(found: dict[str, Any]) -> str:
    machine, commit = found["machine"], found["commit"]
    changed = ", with changes" if commit["dirty"] else ""
    return (
        f"Measured on one {machine['gpu']} with {machine['cores']} cores of {machine['cpu']}, {machine['dtype']}, "
        f"torch {machine['torch']}, Triton {machine['triton']}, transformers {machine['transformers']}, at commit "
        f"{commit['id'][:7]}{changed}."
    )


if __name__ == "__main__":
    main()
