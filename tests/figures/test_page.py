"""What is in the page, read back as a browser would."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_study import small_study

import adatp.figures.page
from adatp.evaluation.bias import Bias, measure, shares
from adatp.figures.page import Run, write_page
from adatp.hf.attention_map import AttentionMap
from adatp.layout import Grid, VideoSize
from adatp.report import Sample
from adatp.video import Clip


@pytest.fixture(scope="module")
def study(videollm):
    return small_study(videollm)


def page_of(study, folder) -> str:
    write_page(folder / "page.html", study)
    return (folder / "page.html").read_text(encoding="utf-8")


def data_of(page: str):
    return json.loads(re.search(r'<script id="study" type="application/json">(.*?)</script>', page, re.S)[1])


def unpack(text: str, shape) -> np.ndarray:
    """`[N, n, c]` bool of bits that begin anew with every layer."""
    layers, frames, tokens = shape
    packed = np.frombuffer(base64.b64decode(text), np.uint8).reshape(layers, -1)
    return np.unpackbits(packed, axis=1)[:, : frames * tokens].reshape(shape).astype(bool)


@pytest.fixture(scope="module")
def data(study, tmp_path_factory):
    return data_of(page_of(study, tmp_path_factory.mktemp("page")))


def test_every_mask_of_every_method(study, data):
    shape = study.attention.scores.shape
    assert [run["id"] for run in data["runs"]] == list(study.runs)
    for packed, run in zip(data["runs"], study.runs.values(), strict=True):
        masks = unpack(packed["masks"], shape)
        for layer in range(shape[0]):
            assert np.array_equal(masks[layer], run.sample.kept_mask(layer).numpy())
        assert packed["kept"] == list(run.sample.kept) == masks.sum((1, 2)).tolist()
        assert packed["flops"] == run.flops


def test_segments_and_similarity(study, data):
    packed, sample = data["runs"][0], study.runs["adatp"].sample
    assert packed["similarity"] == pytest.approx(sample.similarity, rel=1e-4)
    assert [(s["start"], s["stop"], s["significant"], s["similarity"]) for s in packed["segments"]] == [
        (s.start, s.stop, s.significant, s.similarity) for s in sample.segments
    ]
    assert data["runs"][2]["similarity"] is None


def test_the_numbers_of_every_layer(study, data):
    found = measure(study.attention.scores, study.attention.grid)
    for layer, entry in enumerate(data["layers"]):
        assert entry["perFrame"] == pytest.approx(found.per_frame[layer].tolist(), rel=1e-4)
        assert entry["perPosition"] == pytest.approx(found.per_position[layer].flatten().tolist(), rel=1e-4)
        assert entry["inLast"] == found.in_last[layer].item()
        assert entry["kinds"] == shares(found.kinds)[layer].tolist()
        assert (entry["peak"]["row"], entry["peak"]["column"]) == (found.peak.row[layer], found.peak.column[layer])
        assert entry["peak"]["factor"] == pytest.approx(found.peak.factor[layer].item())
    for kind, packed in enumerate(data["kinds"], start=1):
        assert np.array_equal(unpack(packed, found.kinds.shape), (found.kinds == kind).numpy()), Bias(kind)


def test_the_score_of_every_token(study, data):
    scores = study.attention.scores
    levels = np.frombuffer(base64.b64decode(data["scores"]), "<u2").reshape(scores.shape)
    most = np.array([entry["most"] for entry in data["layers"]])[:, None, None]
    times_mean = (scores / scores.mean((1, 2), keepdim=True)).numpy()
    assert np.abs(levels / 65535 * most - times_mean).max() < 1e-4 * most.max()


def test_the_frames_are_the_clips(study, data):
    assert (data["frames"]["width"], data["frames"]["height"]) == (84, 84)
    assert data["times"] == pytest.approx(study.clip.times.tolist(), abs=1e-3)
    for text, frame in zip(data["frames"]["jpeg"], study.clip.frames, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        assert np.abs(shown.astype(int) - frame).mean() < 8


def test_frames_shrink_until_all_fit(study, tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (10, 600, 900, 3)).astype(np.uint8)
    clip = replace(study.clip, frames=frames)
    sizes = []
    for budget in (10**8, 300_000):
        monkeypatch.setattr(adatp.figures.page, "FRAMES_BYTES", budget)
        found = data_of(page_of(replace(study, clip=clip), tmp_path))["frames"]
        sizes.append(found["width"])
        assert sum(len(base64.b64decode(text)) for text in found["jpeg"]) <= budget
        assert found["height"] == pytest.approx(found["width"] * 2 / 3, abs=1)
    assert sizes[0] == 640
    assert sizes[1] < 640


EVIL = '</script><script>hacked = 1</script><!-- & "quotes" \u2028 <img src=x onerror="hacked = 1">'


def test_no_text_ends_the_data(study, tmp_path):
    run = replace(study.runs["adatp"], name=EVIL, settings=EVIL, answer=EVIL)
    evil = replace(study, model=EVIL, video=EVIL, question=EVIL, answer=EVIL, notes=(EVIL,), runs={"adatp": run})
    page = page_of(evil, tmp_path)
    assert page.count("</script") == page_of(study, tmp_path).count("</script") == 2
    assert "hacked = 1</script>" not in page
    found = data_of(page)
    assert found["model"] == found["question"] == found["answer"] == found["video"]["name"] == EVIL
    assert found["notes"] == [found["runs"][0]["answer"]] == [EVIL]


def test_the_text_of_the_page_is_never_markup(study, tmp_path):
    page = page_of(study, tmp_path)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)
    assert "default-src 'none'" in page


def test_a_run_of_other_frames_is_refused(study, tmp_path):
    other = replace(study.attention, scores=study.attention.scores[:, :-1])
    with pytest.raises(ValueError, match=r"runs\['adatp'\] must have the attention's \(16, 9, "):
        write_page(tmp_path / "page.html", replace(study, attention=other))
    assert not (tmp_path / "page.html").exists()


def test_a_page_of_a_large_model_is_small(study, tmp_path):
    """32 frames of 196 tokens, 28 layers, 9 methods, and frames that no JPEG makes small."""
    layers, frames, tokens = 28, 32, 196
    random = np.random.default_rng(0)
    attention = AttentionMap(torch.rand(layers, frames, tokens), (VideoSize(frames, Grid(14, 14)),))
    kept = torch.arange(0, frames * tokens, 3)
    sample = Sample(
        videos=attention.videos, other_tokens=130, question=None, kept=(len(kept),) * layers, similarity=None,
        segments=(), method=None, _visual=torch.arange(frames * tokens), _origins={0: kept},
    )  # fmt: skip
    run = Run("a method", "", "", 0.3, sample)
    clip = Clip(random.integers(0, 256, (frames, 360, 640, 3)).astype(np.uint8), np.arange(32.0), 32.0, 32, None)
    page = page_of(replace(study, clip=clip, attention=attention, runs=dict.fromkeys("abcdefghi", run)), tmp_path)
    assert len(page.encode()) < 4e6
