"""The FLOPs columns of the paper's Tab. 1, 2 and 3: the paper's figures, and ours for the same settings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from adatp.errors import InputError
from adatp.evaluation.paper.shapes import MODEL_SHAPES, ModelShape
from adatp.evaluation.paper.tower_flops import tower_flops
from adatp.flops import Flops, PrefillCounter
from adatp.methods import AdaTP, DyCoke, FastV, Method, Pool, PyramidDrop, Random, Uniform, VisionZip
from adatp.report import Sample

MODELS = {  # the paper's names
    "LLaVA-OneVision-0.5B": "onevision-0.5b",
    "LLaVA-OneVision-7B": "onevision-7b",
    "LLaVA-Video-7B": "llava-video-7b",
}
ABLATED = "onevision-0.5b"  # the model of Tab. 2 and 3 (section 4.3)
KEEP = {2.0: 0.5, 1.5: 0.375, 1.0: 0.25}  # FastV's keep, by the p of AdaTP in the same group (A.1)
MERGED = {2.0: 0.7, 1.5: 0.9, 1.0: 0.95}  # DyCoke's K, by the same p
CLOSE = 1.0  # a figure within so many points of the paper's counts as reproduced
MOST_TEXT = 2000  # largest number of text tokens that a search tries
COUNTED = (
    "FLOPs of one prefill in percent of the unpruned one's, counted by PyTorch's FlopCounterMode on the meta device "
    "for the published configurations. linear: the decoder's linear layers; with attention: and its two matrix "
    "products, every query against every key; with tower: and SigLIP's 26 layers and the projector, which no method "
    "prunes. Embeddings and the language model's head are left out. The paper does not say how many text tokens its "
    "prompts have; their number is one from which its figures follow"
)


class Shares(NamedTuple):
    """FLOPs of a prefill in percent of the unpruned prefill's, by three ways of counting.

    Attributes:
        linear: the decoder's linear layers.
        with_attention: `linear`, and the two matrix products of the decoder's attention.
        with_tower: `with_attention`, and the vision tower and the projector.
    """

    linear: float
    with_attention: float
    with_tower: float


@dataclass(frozen=True)
class Row:
    """The cost of a method on a model, beside the paper's figure.

    Attributes:
        table: number of the table in the paper.
        model: a key of `MODEL_SHAPES`.
        method: the method with its settings.
        paper: the paper's figure in percent; None if the paper has none.
        ours: our figures in percent.
        kind: "deterministic" if the settings decide the cost; "bound" if they give an upper bound and the video decides
            the cost; "run" for a run on a video.
        p: the p of AdaTP in the row's group of Tab. 1; None if there is no group.
        fitted: whether the settings are not the paper's, but were fitted to one of its figures.
        video: the video of a run.
        note: a note on the figures.
    """

    table: int
    model: str
    method: Method
    paper: float | None
    ours: Shares
    kind: str
    p: float | None = None
    fitted: bool = False
    video: str | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Our figure for linear layers minus the paper's, in points."""
        return None if self.paper is None else self.ours.linear - self.paper

    @property
    def is_check(self) -> bool:
        """Whether the paper states the figure and all settings behind it."""
        return self.kind == "deterministic" and self.paper is not None and not self.fitted

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "table": self.table,
            "model": self.model,
            "method": self.method.name,
            "settings": self.method.settings(),
            "ours": self.ours._asdict(),
            "paper": self.paper,
            "difference": self.difference,
            "kind": self.kind,
            "fitted": self.fitted,
            "video": self.video,
            "note": self.note,
        }


class Counter:
    """The cost of token counts on the published models, by their names. Each layer is counted once at each length."""

    def __init__(self) -> None:
        self._prefills: dict[str, PrefillCounter] = {}
        self._towers: dict[str, int] = {}

    def __call__(self, model: str, counts: Sequence[int]) -> Shares:
        """Return the shares of a prefill with these numbers of visual tokens at the layers' inputs."""
        flops, tower = self.prefill(model, counts), self.tower(model)
        pruned, full = flops.linear + flops.attention, flops.linear_full + flops.attention_full
        return Shares(100 * flops.ratio, 100 * flops.ratio_with_attention, 100 * (pruned + tower) / (full + tower))

    def prefill(self, model: str, counts: Sequence[int]) -> Flops:
        """Return the FLOPs of the decoder."""
        from transformers import Qwen2Config

        shape = MODEL_SHAPES[model]
        if model not in self._prefills:
            self._prefills[model] = PrefillCounter(Qwen2Config(**shape.text_config))
        lengths = [number + shape.text_tokens for number in counts]
        return self._prefills[model](lengths, shape.visual_tokens + shape.text_tokens)

    def tower(self, model: str) -> int:
        """Return the FLOPs of the vision tower and the projector."""
        if model not in self._towers:
            shape = MODEL_SHAPES[model]
            self._towers[model] = tower_flops(shape.frames, shape.text_config["hidden_size"])
        return self._towers[model]


def load_paper() -> dict[str, Any]:
    """Load the paper's Tab. 1 to 4: FLOPs in percent of the unpruned model's, accuracies in percent."""
    tables: dict[str, Any] = json.loads(
        files("adatp.evaluation.paper").joinpath("tables.json").read_text(encoding="utf-8")
    )
    return tables


def published_rows(count: Counter) -> list[Row]:
    """Return the rows of Tab. 1, 2 and 3 that follow from settings alone, and methods of ours that Tab. 1 lacks."""
    paper = load_paper()
    rows = [*_table1(paper["table1"], count), *_table2(paper["table2"], count), *_table3(paper["table3"], count)]
    return [replace(row, note=row.note or explain(row, rows)) for row in rows]


def open_settings(rows: Sequence[Row], model: str) -> list[AdaTP]:
    """Return the settings of AdaTP whose cost depends on the video, from the rows of a model; each setting once."""
    return list(dict.fromkeys(_resolved(row) for row in rows if row.kind == "bound" and row.model == model))


def with_runs(rows: Sequence[Row], runs: Mapping[tuple[str, AdaTP], Mapping[str, Sample]], count: Counter) -> list[Row]:
    """Return the rows with runs: each bound is followed by its runs.

    Args:
        rows: as `published_rows` returns them.
        runs: the samples, by (model, one of its `open_settings`) and then by video.
        count: as for `published_rows`.
    """
    mixed = []
    for row in rows:
        mixed.append(row)
        own = runs.get((row.model, _resolved(row)), {}) if row.kind == "bound" else {}
        for video, sample in own.items():
            significant = sum(segment.significant for segment in sample.segments)
            note = f"{significant} of {len(sample.segments)} segments significant"
            mixed.append(replace(row, ours=count(row.model, sample.kept), kind="run", video=video, note=note))
    return mixed


def _resolved(row: Row) -> AdaTP:
    """Return the method with an explicit last layer, so that one run serves Tab. 1 and Tab. 3."""
    assert isinstance(row.method, AdaTP), "only AdaTP's cost depends on the video"
    return replace(row.method, last=row.method.last_of(MODEL_SHAPES[row.model].layers))


def mean_differences(rows: Sequence[Row]) -> Shares:
    """Compute the mean absolute difference to the paper for each way of counting, in points, over the checked rows."""
    checks = [row for row in rows if row.is_check]
    return Shares(*(fmean(_distance(row, way) for row in checks) for way in range(len(Shares._fields))))


def least_differences(rows: Sequence[Row], count: Counter) -> Shares:
    """Compute the same with the best number of text tokens for each model and way of counting.

    The numbers in `MODEL_SHAPES` were fitted to linear layers. This makes the comparison with the other ways fair.
    """
    text = np.arange(MOST_TEXT + 1)[:, None]
    gaps = []
    for model, shape in MODEL_SHAPES.items():
        checks = [row for row in rows if row.is_check and row.model == model]
        whole = shape.visual_tokens + shape.text_tokens
        flops = count.prefill(model, [shape.visual_tokens] * shape.layers)
        rates = flops.linear / whole, flops.attention / whole**2, count.tower(model) * shape.layers
        full = _costs(text + np.full(shape.layers, shape.visual_tokens), *rates)
        shares = [100 * _costs(text + row.method.counts(shape, shape.layers), *rates) / full for row in checks]
        off = np.stack([abs(share - row.paper) for share, row in zip(shares, checks, strict=True)])
        best = off.mean(0).argmin(1)
        gaps.append(off[:, range(len(best)), best])
    return Shares(*np.concatenate(gaps).mean(0).tolist())


def _costs(lengths: Any, per_token: float, per_pair: float, tower: float) -> Any:
    """Compute the FLOPs of `[texts, layers]` lengths in the ways of `Shares`, `[ways, texts]`."""
    linear, attention = per_token * lengths.sum(1), per_pair * (lengths**2).sum(1)
    return np.stack([linear, linear + attention, linear + attention + tower])


def explain(row: Row, rows: Sequence[Row]) -> str:
    """Explain why a row differs from the paper's figure; return "" if it agrees, or if it is no check.

    Args:
        row: the row to explain.
        rows: the rows to compare it with.
    """
    if not row.is_check or row.paper is None or _distance(row) <= CLOSE:
        return ""
    shape, knob = MODEL_SHAPES[row.model], row.method.knob
    try:
        needed = row.method.at_flops(row.paper / 100, shape, shape.layers, shape.text_tokens)
        told = f"the paper's {row.paper:.2f} would take {knob}={_setting(needed):.3g}"
    except InputError as error:
        told = f"the paper's {row.paper:.2f} is out of reach ({error})"
    told += f", not the {_setting(row.method):g} that it states"
    peers = [other for other in rows if other.is_check and type(other.method) is type(row.method) and other.p]
    elsewhere = [other for other in peers if other.model != row.model and other.method == row.method]
    beside = [other for other in peers if other.model == row.model and other.method != row.method]
    facts = []
    if elsewhere:
        models = " and ".join(other.model for other in elsewhere)
        facts.append(f"the same {knob} is within {max(map(_distance, elsewhere)):.2f} points on {models}")
    if beside:
        settings = " and ".join(f"{_setting(other.method):g}" for other in beside)
        facts.append(f"{knob}={settings} within {max(map(_distance, beside)):.2f} on {row.model}")
    if facts and max(map(_distance, elsewhere + beside)) <= CLOSE:
        facts.append("so this figure does not follow from its setting")
    return "; ".join([told, *facts])


def _distance(row: Row, way: int = 0) -> float:
    """Return the distance from the paper's figure in points; `way` is an index of `Shares`."""
    assert row.paper is not None
    return abs(row.ours[way] - row.paper)


def _setting(method: Method) -> float:
    """Return the value of the knob, the method's main setting."""
    assert method.knob is not None
    return float(method.settings()[method.knob])


def _row(count: Counter, table: int, model: str, method: Method, paper: float | None, **more: Any) -> Row:
    """Return the row that follows from the settings alone."""
    shape = MODEL_SHAPES[model]
    # segments alone do not change the count: their quotas add up to the schedule's
    open_ended = isinstance(method, AdaTP) and (method.global_debias or method.local_debias)
    ours = count(model, method.counts(shape, shape.layers))
    return Row(table, model, method, paper, ours, "bound" if open_ended else "deterministic", **more)


def _table1(figures: Sequence[dict[str, Any]], count: Counter) -> Iterator[Row]:
    for name, model in MODELS.items():
        shape = MODEL_SHAPES[model]
        for p in KEEP:
            group = {row["method"]: row["flops"] for row in figures if (row["model"], row["p"]) == (name, p)}
            stated = {"FastV": FastV(keep=KEEP[p]), "DyCoke": DyCoke(k=MERGED[p]), "AdaTP": AdaTP(p=p)}
            for method, figure in group.items():
                if method in stated:
                    yield _row(count, 1, model, stated[method], figure, p=p)
                else:
                    zip_, note = _fit(figure, shape)
                    yield _row(count, 1, model, zip_, figure, p=p, fitted=True, note=note)
            for plain in (Random(), Uniform(), Pool()):
                same = plain.at_flops(group["AdaTP"] / 100, shape, shape.layers, shape.text_tokens)
                note = f"a fit: keep={same.keep:.3g} costs nearest to AdaTP's figure in the paper"
                yield _row(count, 1, model, same, None, p=p, fitted=True, note=note)
        yield _row(count, 1, model, PyramidDrop(), None)


def _fit(figure: float, shape: ModelShape) -> tuple[VisionZip, str]:
    """Fit VisionZip's number of patches a frame to `figure` percent of the FLOPs. Return the method and a note."""
    patches = shape.grid.patches

    def distance(left: int) -> float:
        return abs(100 * VisionZip(keep=left / patches).cost(shape, shape.layers, shape.text_tokens) - figure)

    left = min(range(1, patches + 1), key=distance)
    note = f"a fit: {left} of a frame's {patches} patches cost nearest to the paper's figure; it states no number"
    return VisionZip(keep=left / patches), note


def _table2(figures: Sequence[dict[str, Any]], count: Counter) -> Iterator[Row]:
    for row in figures:
        switches = {name: row[name] for name in ("segments", "global_debias", "local_debias")}
        yield _row(count, 2, ABLATED, AdaTP(**switches), row["flops"])


def _table3(figures: Sequence[dict[str, Any]], count: Counter) -> Iterator[Row]:
    for row in figures:
        yield _row(count, 3, ABLATED, AdaTP(first=row["first"], last=row["last"]), row["flops"])
