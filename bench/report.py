"""Write the tables of README and docs, and the pictures, from the result files: `python -m bench.report`.

Only this module writes the text between `<!-- report: NAME -->` and `<!-- end -->` in a page.
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
from adatp.tables.tabulate import markdown_table, markdown_tables
from bench import long_videos, serving
from bench.decoding import HEADS, in_words, rows_of
from bench.e2e.picture import draw_speed
from bench.e2e.tables import tables
from bench.gpu.plan import STEPS
from bench.gpu.summary import tables as gpu_tables
from bench.in_short import accuracy_in_short, speed_in_short

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- report: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def study() -> str:
    """Return the accuracy section: all methods, the kinds of question at p = 1, and the model's biases."""
    found = _read("study.json")
    shown = [
        ("Accuracy on held-out questions", accuracy(found)),
        ("By kind of question, p = 1", by_kind(found, 1.0)),
        ("Biases of the unpruned model's attention", biases(found)),
    ]
    return f"{_where(found)}\n\n{markdown_tables(shown)}\n\n{' '.join(caption(found))}\n"


def speed() -> str:
    """Return the section on the time to the first token: prefill, stages and goals of every machine."""
    parts = []
    for file in _machines():
        found = _load(file)
        made = tables(found)
        shown = [own for own in made if own[0].startswith(("Prefill of", "To the first", "Goals"))]
        whole = f"[{file.stem}.md](../bench/results/{file.stem}.md)"
        head = f"`{file.relative_to(ROOT)}`, all of it in {whole}. {_where(found)}"
        parts.append(f"{head}\n\n{markdown_tables(shown)}\n")
    return "\n".join(parts)


def gpu() -> str:
    """Return the section on every GPU, without the states of the steps."""
    parts = []
    for folder in _gpus():
        found = _steps(folder)
        shown = [own for own in gpu_tables(found) if own[0] != "Steps"]
        head = f"`{folder.relative_to(ROOT)}/`. {_where_gpu(found[0])}"
        parts.append(f"{head}\n\n{markdown_tables(shown)}\n")
    return "\n".join(parts)


def decoding() -> str:
    """Return the section on what sampling frames costs by the size of the stored ones."""
    found = _read("decoding-cpu-2-cores.json")
    machine = found["machine"]
    head = f"Measured on {machine['cpu']}, {machine['cores']} cores. Ratios are to 480p by the same codec."
    return f"{head}\n\n{markdown_table([list(HEADS), *rows_of(found)])}\n\n{in_words(found['difference'])}\n"


def lengths() -> str:
    """Return the section on how the cuts grow with the length of a video."""
    found = _read("long-videos-cpu-2-cores.json")
    machine = found["machine"]
    head = f"Measured on {machine['cpu']}, {machine['cores']} cores. Ratios are those of a token to the shortest video."
    return f"{head}\n\n{markdown_table([list(long_videos.HEAD), *long_videos.rows_of(found)])}\n"


def servers() -> str:
    """Return the section on servers under load."""
    found = _read("serving-cpu-2-cores.json")
    machine = found["machine"]
    head = (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['dtype']}, vLLM {machine['vllm']}, in "
        f"{found['seconds'] / 60:.0f} minutes. Ratios are those of medians to the first server."
    )
    return f"{head} {serving.in_words(found)}\n\n{markdown_table([list(serving.HEAD), *serving.rows_of(found)])}\n"


def _steps(folder: Path) -> list[dict[str, Any]]:
    """Return the results of the steps that have run, in the plan's order."""
    files = [folder / f"{step.name}.json" for step in STEPS]
    return [_load(file) for file in files if file.exists()]


BLOCKS: dict[str, Callable[[], str]] = {
    "study": study,
    "speed": speed,
    "gpu": gpu,
    "decoding": decoding,
    "long-videos": lengths,
    "serving": servers,
    "accuracy-in-short": lambda: accuracy_in_short(_read("study.json")),
    "speed-in-short": lambda: speed_in_short(map(_steps, _gpus()), map(_load, _machines())),
}


def written(page: str) -> str:
    """Return a page with every block written anew from the result files."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Write README and docs, the full tables and the pictures."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # equal figures give equal pictures
    matplotlib.rcParams["svg.hashsalt"] = "adatp"
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    found = _read("study.json")
    (RESULTS / "study.md").write_text(markdown(found), encoding="utf-8")
    draw_accuracy(RESULTS / "study.svg", found)
    for file in _machines():
        found = _load(file)
        file.with_suffix(".md").write_text(f"{_where(found)}\n\n{markdown_tables(tables(found))}\n", encoding="utf-8")
        draw_speed(file.with_suffix(".svg"), found)


def _machines() -> list[Path]:
    """Return the files with end-to-end results, one for each machine."""
    return sorted(RESULTS.glob("e2e-*.json"))


def _gpus() -> list[Path]:
    """Return the folders of results, one for each GPU."""
    return sorted(RESULTS.glob("gpu-*"))


def _read(name: str) -> Any:
    return _load(RESULTS / name)


def _load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _where(found: dict[str, Any]) -> str:
    """Describe the machine and the time that the run took."""
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
