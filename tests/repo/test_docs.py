"""README and docs: what they show runs as it stands, what they say is so, and their links lead somewhere."""

import contextlib
import inspect
import io
import json
import re
from pathlib import Path

import pytest
import torch
from test_architecture import FLOORS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from videollm import make_inputs

import adatp
from adatp.cli.main import main
from adatp.evaluation.paper.shapes import MODEL_SHAPES, shape_flops
from adatp.flops import prefill_flops
from adatp.small.checkpoint import FOLDER
from bench import report

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("examples/*.md")),
]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES if path.exists()}
README = PAGES["README.md"]
TEXT = "\n".join(PAGES.values())
WORDS = " ".join(TEXT.split())
RESULTS = ROOT / "bench/results"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def read(name: str):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def said(pattern: str, text: str = WORDS) -> tuple[str, ...]:
    """The groups of what a page says, whose line breaks and indents are one space; the pages must agree."""
    found = {match.groups() for match in re.finditer(pattern, text)}
    assert len(found) == 1, f"{pattern}: {found}"
    return found.pop()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """What the README's quickstart defines, and what it prints."""
    pytest.importorskip("av")
    pytest.importorskip("sklearn")
    (code,) = blocks("README.md")
    names, out = {}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(tmp_path_factory.mktemp("quickstart"))
        exec(code, names)
    return names, out.getvalue()


class TestCode:
    def test_the_quickstart_prints_what_the_readme_shows(self, quickstart):
        (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
        number = re.compile(r"[\d.]+")
        _, printed = quickstart
        assert printed.split("\n")[0] == shown.split("\n")[0]
        assert number.sub("", printed).split() == number.sub("", shown).split()
        # another encoder of the video may move a token
        for value, other in zip(number.findall(printed), number.findall(shown), strict=True):
            assert float(value.rstrip(".")) == pytest.approx(float(other.rstrip(".")), rel=0.05)

    def test_the_quickstart_leaves_the_model_as_it_was(self, quickstart):
        from adatp.pruning import is_applied

        names, _ = quickstart
        assert not is_applied(names["model"])
        assert names["pruned"].report.pruned

    def test_the_quickstart_names_the_line_to_change(self):
        (code,) = blocks("README.md")
        assert '# A published model: checkpoint, siglip = "llava-hf/llava-onevision-qwen2-7b-ov-hf", "auto"' in code

    def test_the_drop_in(self, sdpa, capsys):
        (code,) = (code for code in blocks("docs/getting-started.md") if "your own code" in code)
        inputs = make_inputs(sdpa, ["What is in the picture?"])
        with pytest.warns(adatp.NoRelevanceWarning, match="no SigLIP is known"):
            exec(code, {"model": sdpa.model, "processor": sdpa.processor, "inputs": inputs})
        kept, ratio = capsys.readouterr().out.splitlines()
        assert kept.startswith("(90, 90, ")
        assert 0 < float(ratio) < 1

    @pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and blocks(page)])
    def test_the_blocks_go_on_from_the_quickstart(self, quickstart, page, capsys):
        names, _ = quickstart
        names = dict(names)
        encoded = "mm_encoder_outputs" in inspect.signature(names["model"].forward).parameters
        for code in blocks(page):
            if "your own code" not in code and (encoded or "mm_encoder_outputs" not in code):
                exec(code, names)


class TestLayout:
    def test_the_readme_is_short(self):
        assert README.count("\n") <= 200

    @pytest.mark.parametrize("page", PAGES)
    def test_every_link_leads_somewhere(self, page):
        for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
            assert path.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w\- ]", "", own.lower()).replace(" ", "-") for own in headings], target

    @pytest.mark.parametrize("page", PAGES)
    def test_every_path_exists(self, page):
        for path in re.findall(r"`((?:adatp|kernels|bench|tests|examples|docs)/[\w./-]*)`", PAGES[page]):
            assert (ROOT / path).exists() or re.search(r"[A-Z]{3}", path), path

    def test_the_index_has_every_page(self):
        index = PAGES["docs/README.md"]
        for page in PAGES:
            if page.startswith("docs/") and page != "docs/README.md":
                assert f"]({page.removeprefix('docs/')})" in index, page
                assert f"]({page})" in README, page

    def test_the_floors_are_those_of_the_test(self):
        (listed,) = re.findall(
            r"nothing beside or above it:\n\n```\n(.*?)```", PAGES["docs/architecture.md"], re.DOTALL
        )
        floors = [set(line.split(", ")) for line in listed.splitlines()]
        assert floors == [*[set(rooms) for rooms in FLOORS if rooms != {"__main__"}], {"kernels (adatp_kernels)"}]

    def test_the_files_of_engine_and_adapter_are_listed(self):
        (listed,) = re.findall(r"adapter\n\n```\n(.*?)```", PAGES["docs/architecture.md"], re.DOTALL)
        engine, adapter = (set(re.findall(r"(\w+\.py) ", part)) for part in listed.split("adatp/hf/"))
        for folder, names in (("engine", engine), ("hf", adapter)):
            assert {path.name for path in (ROOT / "adatp" / folder).glob("*.py")} - {"__init__.py"} <= names, folder

    def test_every_public_name_is_in_the_api(self):
        for name in adatp.__all__:
            assert re.search(rf"\b{name}\b", PAGES["docs/api.md"]), name


class TestFigures:
    @pytest.mark.parametrize("page", ["README.md", "docs/choosing-p.md"])
    def test_the_table_of_ratios(self, page):
        rows = re.findall(r"^\| LLaVA-(\S+),.*?\|(.*)\|$", PAGES[page], re.MULTILINE)
        assert len(rows) == 3
        for (_, cells), shape in zip(rows, MODEL_SHAPES.values(), strict=True):
            for cell, p in zip(cells.split("|"), (2.0, 1.5, 1.0), strict=True):
                flops, _ = shape_flops(shape, adatp.AdaTP(p=p), shape.text_tokens)
                assert cell.strip() == f"{flops.ratio * 100:.1f} %"

    @pytest.mark.parametrize("page", PAGES)
    def test_the_tables_are_those_of_the_result_files(self, page):
        assert report.written(PAGES[page]) == PAGES[page]

    def test_every_table_is_shown(self):
        assert set(re.findall(r"<!-- report: ([\w-]+) -->", TEXT)) >= report.BLOCKS.keys()

    def test_operations(self):
        eager, cut = said(r"take 1/(\d+) of full eager.*?first cut ([\d.]+) %")
        results = read("cpu-2-cores.json")["benchmarks"]
        medians = {(r["group"], r["extra_info"]["provider"]): r["stats"]["median"] for r in results}
        scores = "score: OneVision-0.5B, 32 frames, 113 rows"
        assert eager == f"{medians[scores, 'eager attention'] / medians[scores, 'reference']:.0f}"
        first = "first cut: OneVision-0.5B, 32 frames"
        assert cut == f"{100 * medians[first, 'all'] / medians[first, 'unpruned decoder layer']:.1f}"

    def test_memory(self):
        peak, cache = said(r"takes is ([\d.]+) of the unpruned one's at p = 1, and the KV cache ([\d.]+);")
        rows = read("memory-cpu-2-cores.json")["rows"]
        whole, pruned = ({r["row"]: r for r in rows}[name] for name in ("unpruned", "1.0"))
        assert peak == f"{pruned['peak_bytes'] / whole['peak_bytes']:.2f}"
        assert cache == f"{pruned['cache_bytes'] / whole['cache_bytes']:.2f}"
        assert all(row["cache_bytes_reported"] == row["cache_bytes"] for row in rows[1:])

    @pytest.mark.parametrize(
        "pattern",
        [r"takes the share from ([\d.]+) % to ([\d.]+) %", r"costs ([\d.]+) % of the unpruned decoder, and ([\d.]+) %"],
    )
    def test_relevance_of_a_published_shape(self, pattern):
        model = read("e2e-cpu-2-cores.json")["models"][0]
        assert (model["name"], model["frames"]) == ("onevision-0.5b", 32)
        (row,) = (row for row in model["rows"] if row["name"] == "AdaTP p=1")
        assert said(pattern) == (f"{100 * row['ratio_causal']:.1f}", f"{100 * row['ratio_all']:.1f}")

    def test_relevance_of_the_small_model(self, quickstart):
        """What the decoder's FLOPs leave out: SigLIP's last layer and head on every frame, and its text tower."""
        names, _ = quickstart
        model, length = names["model"], names["inputs"]["input_ids"].shape[1]
        vision = model.config.vision_config
        relevance = adatp.Relevance.from_pretrained(
            str(FOLDER / "siglip"), vision.num_hidden_layers, device="cpu", dtype=torch.float32
        )
        states = torch.zeros(len(names["clip"].frames), (vision.image_size // vision.patch_size) ** 2, relevance.width)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):  # a CPU's fused attention is not counted
            with FlopCounterMode(display=False) as counter:
                relevance(states)
                relevance.text([names["content"][1]["text"]])
        layers = model.config.text_config.num_hidden_layers
        whole = prefill_flops(model.config.text_config, [length] * layers, length).linear_full
        share = counter.get_total_flops() / whole
        assert {*re.findall(r"costs (\d+) % of (?:this small model's|the) unpruned decoder", WORDS)} == {
            f"{100 * share:.0f}"
        }
        assert said(r"come on top: (\d+) % of the unpruned decoder's") == (f"{100 * share:.0f}",)
        (row,) = (row for row in read("study.json")["methods"] if (row["method"], row["p"]) == ("adatp", 1.0))
        together, alone = said(r"at p = 1 costs (\d+) % instead of ([\d.]+) %")
        assert (together, alone) == (f"{100 * (row['flops'] + share):.0f}", f"{100 * row['flops']:.1f}")

    def test_accuracy(self):
        study = read("study.json")
        rows = {(row["method"], row["p"]): row for row in study["methods"]}
        own = [row for (name, _), row in rows.items() if name == "adatp"]
        assert len(own) == 3
        assert all(row["difference_interval"][0] <= 0 <= row["difference_interval"][1] for row in own)
        whole, pruned, fastv = study["unpruned"], rows["adatp", 1.0], rows["fastv", 1.0]
        shares = [f"{100 * row['by_group']['motion']:.1f}" for row in (whole, pruned, fastv)]
        assert (
            list(said(r"motion falls from ([\d.]+) % to ([\d.]+) % with AdaTP, and FastV keeps its ([\d.]+) %"))
            == shares
        )
        shares = [f"{100 * row['by_group']['short scene']:.1f}" for row in (pruned, fastv, whole)]
        assert list(said(r"AdaTP has ([\d.]+) %, FastV ([\d.]+) %, the unpruned model ([\d.]+) %")) == shares
        (table,) = (table for table in study["ablations"] if table["table"] == "2")
        last, best = table["rows"][-1], max(table["rows"], key=lambda row: row["accuracy"])
        shares = [f"{100 * row[name]:.1f}" for row in (best, last) for name in ("accuracy", "flops")]
        pattern = r"it AdaTP has ([\d.]+) % at ([\d.]+) % of the FLOPs, with it ([\d.]+) % at ([\d.]+) %"
        assert list(said(pattern)) == shares

    def test_nothing_is_claimed_that_does_not_hold(self):
        for claim in (
            "best of all",
            "quarter of the FLOPs",
            "nothing of it can be left out",
            "keeps all of the accuracy",
        ):
            assert claim not in WORDS


def test_every_feature_has_the_test_it_names():
    text = PAGES["docs/supported.md"]
    (table,) = re.findall(r"^\| \| \| shown by `tests/` \|\n(.*?)\n*\Z", text, re.MULTILINE | re.DOTALL)
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    defined = {name for text in files.values() for name in re.findall(r"^ *(?:def|class) (\w+)", text, re.MULTILINE)}
    for line in table.splitlines()[1:]:
        feature, _, tests = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([\w.]+)`", tests):
            assert name in files or name in defined, feature
        assert tests or feature.startswith("**"), f"nothing shows {feature}"


def test_every_make_target_exists():
    targets = set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE))
    assert targets >= {"demo", "test", "lint", "bench", "bench-e2e", "report", "memory"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_option_exists(capsys):
    for command in (
        "demo",
        "run",
        "flops",
        "convert",
        "compare",
        "figures",
        "tables",
        "ablate",
        "calibrate",
        "study",
        "world",
    ):
        line = " ".join(re.findall(rf"^adatp {command} ([^#\n]*)", TEXT, re.MULTILINE))
        assert line
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in re.findall(r"--[\w-]+", line))


def test_the_citation_names_the_version_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (license,) = re.findall(r'^    license="(.*)",$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"\nversion: {adatp.__version__}\n" in text
    assert f"\nlicense: {license}\n" in text
    assert "arXiv:2505.20100" in text
