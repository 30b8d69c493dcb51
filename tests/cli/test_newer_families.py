"""Commands on small saved models of the newer families, whose frames are temporal patches."""

import json

import numpy as np
import pytest
import torch
from numbered_video import write
from PIL import Image
from small_models import KINDS, make_model, make_siglip
from small_prompts import make_tokenizer
from stub_processor import StubProcessor
from transformers.utils import is_torchvision_available

from adatp.cli.main import main
from adatp.evaluation.session import inputs_of, load
from adatp.models import families
from adatp.video import sample_frames

FRAMES = 7  # an odd number: the last patch is one frame twice
REAL = {"qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"), "qwen3_vl": ("Qwen3VLProcessor",) * 2}


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "numbered.mp4", 20)


@pytest.fixture(params=KINDS)
def saved(request, tmp_path, monkeypatch):
    """(folder, stub): a saved model, and what takes the place of its processor."""
    kind = request.param
    if kind.split("-")[0] not in families():
        pytest.skip(f"there is no family {kind}")
    make_model(kind).save_pretrained(tmp_path / "model")
    stub = StubProcessor(kind)
    monkeypatch.setattr("adatp.evaluation.session.load_processor", lambda checkpoint: stub)
    return tmp_path / "model", stub


def arguments(saved, numbered, command="run"):
    folder, _ = saved
    return (command, numbered, "--question", "Who?", "--model", folder, "--frames", FRAMES)


def patches(stub):
    """The frames of the clip that each frame of the decoder stands for."""
    if stub.kind.startswith("internvl"):
        return [[i, i + 1] for i in range(FRAMES)]
    return [[0, 2], [2, 4], [4, 6], [6, 7]]


class TestRun:
    def test_json(self, capsys, saved, numbered):
        given = arguments(saved, numbered)
        code, out, err = run(capsys, *given, "--json", "--compare", "--max-new-tokens", 3, "--set", "tau_s=1")
        assert code == 0, err
        result, own = json.loads(out), patches(saved[1])
        report = result["report"]
        assert report["pruned"]
        assert result["unpruned"]["tokens"] == result["answer"]["tokens"] == 3
        assert result["video"]["frames"] == len(result["video"]["times"]) == FRAMES
        assert result["video"].get("patches", [[i, i + 1] for i in range(FRAMES)]) == own
        assert ("patches" in result["video"]) == (own[0] == [0, 2])
        assert report["samples"][0]["frames"] == len(own)
        assert any("no global debiasing" in note for note in result["notes"])

    def test_the_segments_are_told_in_frames_of_the_clip(self, capsys, saved, numbered):
        code, out, _ = run(capsys, *arguments(saved, numbered), "--max-new-tokens", 1, "--set", "tau_s=1")
        assert code == 0
        clip = sample_frames(numbered, FRAMES)
        table = out.split("Segments")[1].split("Time to first token")[0]
        rows = [line.split()[:3] for line in table.splitlines() if line.lstrip()[:1].isdigit()]
        spans = [(begin, stop - 1) for begin, stop in patches(saved[1])]
        wanted = [[f"{a}-{b}", f"{clip.times[a]:.1f}-{clip.times[b]:.1f}"] for a, b in spans]
        assert [row[1:] for row in rows] == wanted

    def test_the_overlay_draws_the_first_frame_of_a_patch(self, capsys, saved, numbered, tmp_path, monkeypatch):
        pytest.importorskip("matplotlib")
        seen = []
        veil = __import__("adatp.figures.overlay", fromlist=["veil"]).veil
        monkeypatch.setattr(
            "adatp.figures.overlay.veil", lambda frame, *rest, **more: seen.append(frame) or veil(frame, *rest, **more)
        )
        file = tmp_path / "overlay.png"
        code, _, err = run(
            capsys, *arguments(saved, numbered), "--max-new-tokens", 1, "--overlay", file, "--layers", "2"
        )
        assert code == 0, err
        assert np.asarray(Image.open(file).convert("RGB")).std() > 10
        clip = sample_frames(numbered, FRAMES)
        drawn = [int(np.argmin([np.abs(shrunk(frame) - shrunk(own)).sum() for own in clip.frames])) for frame in seen]
        assert drawn == [begin for begin, _ in patches(saved[1])]

    def test_the_processor_takes_all_frames(self, capsys, saved, numbered):
        folder, stub = saved
        loaded = load(str(folder), device="cpu", dtype="bfloat16", attention="sdpa", relevance=None)
        clip = sample_frames(numbered, FRAMES)
        inputs = inputs_of(loaded, clip, "Who?")
        assert all(call["do_sample_frames"] is False for call in stub.calls)
        assert stub.calls[-1]["video_metadata"] == [clip.metadata]
        pixels = "pixel_values" if stub.kind.startswith("internvl") else "pixel_values_videos"
        assert inputs[pixels].dtype == torch.bfloat16
        if "second_per_grid_ts" in inputs:
            assert inputs["second_per_grid_ts"].dtype == torch.float32


def shrunk(frame):
    return np.asarray(Image.fromarray(frame).resize((16, 12)), float)


def test_compare(capsys, saved, numbered):
    given = arguments(saved, numbered, "compare")
    code, out, err = run(capsys, *given, "--methods", "adatp,fastv,visionzip", "--repeat", 1, "--json")
    assert code == 0, err
    result = json.loads(out)
    _, adatp, fastv, visionzip = result["methods"]
    assert adatp["refused"] is None
    assert fastv["kept"][-1] < result["visual_tokens"]
    assert "do not offer" in visionzip["refused"]


def test_calibrate(capsys, saved, numbered):
    folder, stub = saved
    code, out, err = run(capsys, "calibrate", numbered, "--model", folder, "--frames", FRAMES, "--json")
    assert code == 0, err
    found = json.loads(out)
    (video,) = found["videos"]
    assert (found["features"], video["frames"]) == ("tower", len(patches(stub)))
    for entry in video["segments"][-2:]:
        settings = ("--set", f"tau_s={entry['tau_s']!r}", "--max-new-tokens", 1, "--json")
        _, out, _ = run(capsys, *arguments(saved, numbered), *settings)
        assert len(json.loads(out)["report"]["samples"][0]["segments"]) == entry["segments"]


def test_a_second_tower(capsys, saved, numbered, tmp_path):
    for part in make_siglip():
        part.save_pretrained(tmp_path / "siglip")
    folder, stub = saved
    second = ("--relevance", tmp_path / "siglip", "--json")
    code, out, err = run(capsys, *arguments(saved, numbered), *second, "--max-new-tokens", 1)
    assert code == 0, err
    result = json.loads(out)
    assert len(result["report"]["samples"][0]["similarity"]) == len(patches(stub))
    assert result["answer"]["seconds"]["relevance"] > 0
    code, out, err = run(capsys, *arguments(saved, numbered, "compare"), *second, "--methods", "adatp", "--repeat", 1)
    assert code == 0, err
    assert json.loads(out)["methods"][1]["refused"] is None
    code, out, err = run(capsys, "calibrate", numbered, "--model", folder, "--frames", FRAMES, *second)
    assert code == 0, err
    assert json.loads(out)["features"] == "siglip"


def test_figures(capsys, saved, numbered, tmp_path):
    pytest.importorskip("matplotlib")
    given = arguments(saved, numbered, "figures")
    code, _, err = run(capsys, *given, "--methods", "adatp,fastv", "--out", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    times = sample_frames(numbered, FRAMES).times
    own = patches(saved[1])
    assert json.dumps([round(times[begin], 3) for begin, _ in own], separators=(",", ":")) in page
    assert ("each picture is the first of the 2 frames of a temporal patch" in page) == (own[0] == [0, 2])
    assert Image.open(tmp_path / "out" / "kept.png").size[0] > 0


@pytest.mark.parametrize("saved", ["qwen2_5_vl"], indirect=True)
def test_tables_know_no_such_model(capsys, saved, numbered):
    folder, _ = saved
    code, out, err = run(capsys, "tables", numbered, "--model", folder)
    assert (code, out) == (2, "")
    assert "the paper's models have onevision-0.5b: 24 and 14 x 14" in err


@pytest.mark.parametrize("kind", REAL)
class TestRealProcessor:
    @pytest.fixture
    def folder(self, tmp_path, kind):
        """A saved model with all files of its processor."""
        make_model(kind).save_pretrained(tmp_path)
        tokenizer = make_tokenizer(kind)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(tmp_path)
        processor, video = REAL[kind]
        video = video.replace("VLProcessor", "VLVideoProcessor")
        sizes = {
            "patch_size": 4,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 32 * 32, "longest_edge": 8 * 32 * 32},
        }
        image = {**sizes, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": processor}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({**sizes, "video_processor_type": video}))
        return tmp_path

    @pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
    def test_run(self, capsys, folder, numbered):
        code, out, err = run(
            capsys, "run", numbered, "--question", "Who?", "--model", folder, "--frames", FRAMES, "--json"
        )
        assert code == 0, err
        result = json.loads(out)
        assert result["video"]["patches"] == [[0, 2], [2, 4], [4, 6], [6, 7]]
        assert result["report"]["samples"][0]["frames"] == 4

    @pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
    def test_a_missing_torchvision_is_told(self, capsys, folder, numbered):
        code, out, err = run(capsys, "run", numbered, "--question", "Who?", "--model", folder, "--frames", FRAMES)
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"adatp: error: processor of {folder} cannot be loaded: ")
        assert "requires the Torchvision library but it was not found" in err


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
