"""What the README shows runs as it stands there."""

import json
import re
from pathlib import Path

import pytest
from videollm import make_inputs

import adatp
from adatp.cli.main import main
from adatp.evaluation.paper.shapes import MODEL_SHAPES, shape_flops
from bench import report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_drop_in(sdpa, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    inputs = make_inputs(sdpa, ["What is in the picture?"])
    with pytest.warns(adatp.NoRelevanceWarning, match="no SigLIP is known"):
        exec(code, {"model": sdpa.model, "processor": sdpa.processor, "inputs": inputs})
    kept, ratio = capsys.readouterr().out.splitlines()
    assert kept.startswith("(90, 90, ")
    assert 0 < float(ratio) < 1


def test_the_table_of_ratios():
    rows = re.findall(r"^\| LLaVA-(\S+),.*?\|(.*)\|$", README, re.MULTILINE)
    assert len(rows) == 3
    for (_, cells), shape in zip(rows, MODEL_SHAPES.values(), strict=True):
        for cell, p in zip(cells.split("|"), (2.0, 1.5, 1.0), strict=True):
            flops, _ = shape_flops(shape, adatp.AdaTP(p=p), shape.text_tokens)
            assert cell.strip() == f"{flops.ratio * 100:.1f} %"


def test_the_figures_are_those_of_the_result_file():
    eager, cut = re.search(r"take 1/(\d+) of full eager.*?first cut ([\d.]+) %", README, re.DOTALL).groups()
    results = json.loads((ROOT / "bench/results/cpu-2-cores.json").read_text(encoding="utf-8"))["benchmarks"]
    medians = {(r["group"], r["extra_info"]["provider"]): r["stats"]["median"] for r in results}
    scores = "score: OneVision-0.5B, 32 frames, 113 rows"
    assert eager == f"{medians[scores, 'eager attention'] / medians[scores, 'reference']:.0f}"
    first = "first cut: OneVision-0.5B, 32 frames"
    assert cut == f"{100 * medians[first, 'all'] / medians[first, 'unpruned decoder layer']:.1f}"


def test_the_memory_is_that_of_the_result_file():
    peak, cache = re.search(
        r"takes is ([\d.]+) of the unpruned\s+one's at p = 1, and the KV cache ([\d.]+);", README
    ).groups()
    rows = json.loads((ROOT / "bench/results/memory-cpu-2-cores.json").read_text(encoding="utf-8"))["rows"]
    whole, pruned = ({r["row"]: r for r in rows}[name] for name in ("unpruned", "1.0"))
    assert peak == f"{pruned['peak_bytes'] / whole['peak_bytes']:.2f}"
    assert cache == f"{pruned['cache_bytes'] / whole['cache_bytes']:.2f}"
    assert all(row["cache_bytes_reported"] == row["cache_bytes"] for row in rows[1:])


def test_the_tables_are_those_of_the_result_files():
    assert report.written(README) == README


def test_every_feature_has_the_test_it_names():
    (table,) = re.findall(r"^\| \| \| shown by `tests/` \|\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    defined = {name for text in files.values() for name in re.findall(r"^ *(?:def|class) (\w+)", text, re.MULTILINE)}
    for line in table.splitlines()[1:]:
        feature, _, tests = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([\w.]+)`", tests):
            assert name in files or name in defined, feature
        assert tests or feature.startswith("**"), f"nothing shows {feature}"


def test_every_make_target_exists():
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    assert targets >= {"demo", "test", "lint", "bench", "bench-e2e", "report", "memory"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_option_exists(capsys):
    for command in ("demo", "run", "flops", "convert", "compare", "figures", "tables", "ablate", "study", "world"):
        line = " ".join(re.findall(rf"^adatp {command} ([^#\n]*)", README, re.MULTILINE))
        assert line
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in re.findall(r"--[\w-]+", line))
