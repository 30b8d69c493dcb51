"""The command line, as a user types it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import transformers
from original_checkpoint import SIDE, write_original
from PIL import Image

import adatp
from adatp.cli.main import main
from adatp.errors import InputError


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def buffered():
    """The environment of a process whose output waits in a buffer, as it does for most users."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint folder as one would download it, with its SigLIP beside it."""
    from transformers import SiglipModel

    import adatp.small.untrained

    folder = tmp_path_factory.mktemp("checkpoint")
    siglips = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            adatp.small.untrained, "SiglipModel", lambda config: siglips.append(SiglipModel(config)) or siglips[0]
        )
        untrained = adatp.small.untrained.load_untrained(image_size=84, layers=16)
    untrained.model.save_pretrained(folder)
    untrained.processor.save_pretrained(folder)
    siglips[0].save_pretrained(folder / "siglip")
    untrained.relevance.tokenizer.save_pretrained(folder / "siglip")
    return folder


class TestRun:
    def test_json_is_all_there_is_on_stdout(self, capsys, bikes):
        code, out, err = run(capsys, "run", bikes, "--question", "Who rides?", "--compare", "--json", "--frames", 8)
        result = json.loads(out)
        assert code == 0
        assert "answering with AdaTP" in err
        assert result["video"]["frames"] == 8
        assert result["report"]["pruned"] is True
        assert 0 < result["report"]["flops"]["ratio"] < 0.4
        assert result["report"]["samples"][0]["question"] == "Who rides?"
        assert set(result["answer"]["seconds"]) == {
            "decoding",
            "preprocessing",
            "tower",
            "relevance",
            "prefill",
            "other",
        }
        assert all(seconds >= 0 for seconds in result["answer"]["seconds"].values())
        assert result["answer"]["seconds"]["relevance"] > 0
        assert result["unpruned"]["seconds"]["relevance"] == 0
        assert result["answer"]["seconds_to_first_token"] == pytest.approx(sum(result["answer"]["seconds"].values()))
        assert any("knows the videos of" in note for note in result["notes"])

    def test_tables(self, capsys, bikes):
        code, out, _ = run(capsys, "run", bikes, "--question", "Who rides?", "--frames", 8, "--max-new-tokens", 4)
        assert code == 0
        for wanted in ("knows the videos of", "Who rides?", "visual tokens", "similarity", "first token", "FLOPs"):
            assert wanted in out
        assert "unpruned  " not in out

    def test_overlay(self, capsys, bikes, tmp_path):
        file = tmp_path / "overlay.png"
        code, _, err = run(
            capsys, "run", bikes, "--question", "?", "--frames", 4, "--overlay", file, "--layers", "1,2,15"
        )
        assert code == 0
        assert f"overlay written to {file}" in err
        picture = np.asarray(Image.open(file).convert("RGB"))
        assert picture.std() > 10

    def test_a_checkpoint_from_disk(self, capsys, bikes, checkpoint):
        arguments = ("run", bikes, "--question", "Who?", "--model", checkpoint, "--frames", 6, "--json")
        code, out, _ = run(capsys, *arguments, "--relevance", checkpoint / "siglip")
        result = json.loads(out)
        assert code == 0
        assert result["model"] == str(checkpoint)
        assert result["report"]["samples"][0]["similarity"] is not None
        assert result["notes"] == []

        code, out, _ = run(capsys, *arguments, "--relevance", "none", "--attention", "eager")
        result = json.loads(out)
        assert code == 0
        assert result["report"]["samples"][0]["similarity"] is None
        assert any("no global debiasing" in note for note in result["notes"])

    def test_a_method_and_its_settings(self, capsys, bikes):
        arguments = ("run", bikes, "--question", "Who?", "--frames", 8, "--method", "fastv", "--json")
        code, out, err = run(capsys, *arguments, "--set", "keep=0.25", "--set", "layer=3")
        report = json.loads(out)["report"]
        assert code == 0
        assert "answering with FastV" in err
        assert report["method"] == "fastv"
        assert report["samples"][0]["settings"] == {"layer": 3, "keep": 0.25}
        assert report["samples"][0]["kept"] == [128] * 3 + [32] * 13

        code, out, _ = run(capsys, *arguments, "--flops", 0.4)
        report = json.loads(out)["report"]
        assert code == 0
        assert report["flops"]["ratio"] == pytest.approx(0.4, abs=0.003)  # of few tokens, one more is 0.3 %
        assert report["samples"][0]["settings"]["keep"] < 0.5

    def test_a_method_before_the_decoder_is_shown(self, capsys, bikes, tmp_path):
        file = tmp_path / "overlay.png"
        arguments = ("--frames", 4, "--method", "visionzip", "--max-new-tokens", 2, "--overlay", file)
        code, out, _ = run(capsys, "run", bikes, "--question", "Who?", *arguments)
        assert code == 0
        assert "visionzip" in out
        assert Image.open(file).size[0] > 0

    def test_fewer_frames_than_asked_for(self, capsys, tmp_path, pyav):

        path = tmp_path / "short.mp4"
        with pyav.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width = stream.height = 64
            for i in range(3):
                picture = np.full((64, 64, 3), 80 * i, np.uint8)
                container.mux(stream.encode(pyav.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        code, out, _ = run(capsys, "run", path, "--question", "?", "--json")
        result = json.loads(out)
        assert code == 0
        assert result["video"]["frames"] == 3
        assert any("3 frames, fewer than the 32" in note for note in result["notes"])


class TestLlavaVideo:
    """From the original checkpoint to an answer."""

    @pytest.fixture
    def original(self, tmp_path):
        write_original(tmp_path)
        return tmp_path / "original"

    def test_convert_then_run(self, capsys, bikes, original, tmp_path):
        code, out, err = run(capsys, "convert", original, tmp_path / "converted", "--pool", "average")
        assert (code, out) == (0, "")
        assert "writing weights" in err
        file = tmp_path / "overlay.png"
        options = ("--frames", 5, "--relevance", "none", "--last", 2, "--json", "--overlay", file)
        code, out, _ = run(capsys, "run", bikes, "--question", "Who?", "--model", tmp_path / "converted", *options)
        report = json.loads(out)["report"]
        assert code == 0
        assert report["pruned"]
        side = SIDE // 2
        assert report["samples"][0]["visual_tokens"] == 5 * side * (side + 1)
        assert Image.open(file).size[0] > 0

    def test_errors_are_told(self, capsys, original, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        odd = shutil.copytree(original, tmp_path / "odd")
        broken = shutil.copytree(original, tmp_path / "broken")
        (broken / "config.json").write_text('{"mm', encoding="utf-8")
        config = json.loads((odd / "config.json").read_text(encoding="utf-8"))
        (odd / "config.json").write_text(json.dumps({**config, "mm_projector_type": "linear"}), encoding="utf-8")
        for arguments, message in (
            ((original, tmp_path / "full"), "full"),
            ((tmp_path / "missing", tmp_path / "new"), "missing"),
            ((broken, tmp_path / "new"), "config.json is not JSON"),
            ((odd, tmp_path / "new"), 'mm_projector_type is "linear", which cannot be converted'),
        ):
            code, out, err = run(capsys, "convert", *arguments)
            assert (code, out) == (2, "")
            assert message in err
            assert "Traceback" not in err


class TestErrors:
    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--p", "3"], "p must be in (0, 2.5]"),
            (["--frames", "0"], "--frames must be at least 1, got 0"),
            (["--question", " "], "--question is empty"),
            (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
            (["--overlay", "x.jpg"], "--overlay must name a .png file"),
            (["--overlay", "/nowhere/x.png"], "--overlay cannot be written"),
            (["--overlay", "/proc/x.png"], "--overlay cannot be written"),
            (["--layers", "3"], "give --overlay"),
            (["--layers", "40", "--overlay", "x.png"], "--layers must be from 0 to 15, got [40]"),
            (["--device", "cuda"], "--device cuda cannot be used: this PyTorch finds no CUDA device"),
            (["--device", "cuda:7"], "--device cuda:7 cannot be used"),
            (["--attention", "flash_attention_2"], "FlashAttention"),
            (
                ["--relevance", "/nowhere/siglip"],
                "relevance: SigLIP /nowhere/siglip cannot be loaded: there is no such folder",
            ),
            (["--device", "abacus"], "--device must be cpu, cuda"),
            (["--impl", "triton"], "impl='triton' cannot run"),
            (["--last", "16"], "last must be a layer of the model, at most 15"),
            (["--model", "/nowhere/model"], "checkpoint /nowhere/model cannot be loaded: there is no such folder"),
            (["--method", "fastv", "--p", "1"], "method 'fastv' has no setting 'p'; it has layer, keep"),
            (["--set", "tau=1"], "method 'adatp' has no setting 'tau'"),
            (["--p", "1", "--set", "p=2"], "p is set twice"),
            (["--method", "fastv", "--flops", "0.01"], "flops must be from"),
            (["--method", "none", "--flops", "0.5"], "flops cannot be used with the method 'none'"),
            (["--method", "pyramiddrop", "--set", "stages=17"], "stages must be at most the model's 16 layers"),
            (["--max-pixels", "1000"], "has frames of 640 x 272 pixels, more than the limit of 1,000 (pixels)"),
            (["--max-duration", "2.5"], "lasts 10 seconds, more than the limit of 2.5 (duration)"),
            (["--max-packets", "5"], "declares 250 packets, more than the limit of 5 (packets)"),
            (["--max-seconds", "1e-9"], "takes too many seconds"),
            (["--max-seconds", "0"], "seconds must be above 0 and finite, got 0.0"),
        ],
    )
    def test_exit_code_2_and_one_message(self, capsys, bikes, extra, message):
        code, out, err = run(capsys, "run", bikes, "--question", "?", *extra)
        assert code == 2
        assert out == ""
        assert message in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("name", ["missing.mp4", "text.mp4", "cut.mp4"])
    def test_files_that_are_no_video(self, capsys, bikes, tmp_path, name):
        (tmp_path / "text.mp4").write_text("not a video")
        (tmp_path / "cut.mp4").write_bytes(bikes.read_bytes()[:200_000])
        code, out, err = run(capsys, "run", tmp_path / name, "--question", "?")
        assert code == 2
        assert out == ""
        assert name in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("setting", ["keep", "=1", "keep="])
    def test_a_setting_without_name_or_value(self, capsys, setting):
        with pytest.raises(SystemExit) as error:
            main(["run", "x.mp4", "--question", "?", "--set", setting])
        assert error.value.code == 2
        assert "must be NAME=VALUE" in capsys.readouterr().err

    def test_unknown_arguments(self, capsys):
        with pytest.raises(SystemExit) as error:
            main(["run"])
        assert error.value.code == 2

    def test_a_bug_shows_itself_as_one(self, capsys, monkeypatch):
        """Not as input that cannot be used: the traceback, and then what to report."""
        monkeypatch.setattr("adatp.tables.run.print_flops", lambda *_: [][0])
        code, out, err = run(capsys, "flops", "--model", "onevision-0.5b")
        assert (code, out) == (70, "")
        assert err.startswith("Traceback")
        *_, error, last = err.splitlines()
        assert error == "IndexError: list index out of range"
        assert last.startswith("adatp: this is most likely a bug in adatp, not in what you gave it. Please report it")
        assert f"adatp {adatp.__version__}, Python" in last
        assert f"transformers {transformers.__version__}" in last

    def test_debug_shows_where_input_was_refused(self, monkeypatch):
        with pytest.raises(InputError, match="text-tokens"):
            main(["--debug", "flops", "--model", "onevision-0.5b", "--text-tokens", "-1"])

    def test_ctrl_c(self, capsys, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("adatp.tables.run.print_flops", interrupt)
        assert run(capsys, "flops", "--model", "onevision-0.5b") == (130, "", "")

    def test_too_little_memory_is_no_bug(self, capsys, monkeypatch):
        def allocate(*_):
            raise MemoryError

        monkeypatch.setattr("adatp.tables.run.print_flops", allocate)
        code, out, err = run(capsys, "flops", "--model", "onevision-0.5b")
        assert (code, out) == (2, "")
        assert err == "adatp: error: there is not enough memory; take fewer --frames, or a smaller model\n"

    @pytest.mark.parametrize(
        "arguments",
        [["flops", "--model", "onevision-0.5b"], ["flops", "--model", "onevision-0.5b", "--json"]],
    )
    def test_a_closed_pipe_is_quiet(self, arguments):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            command = [sys.executable, "-m", "adatp", *arguments]
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered())
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_full_disk_is_told(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            command = [sys.executable, "-m", "adatp", "flops", "--model", "onevision-0.5b"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered())
        assert (done.returncode, done.stderr) == (2, "adatp: error: [Errno 28] No space left on device\n")


class TestFlops:
    def test_json(self, capsys):
        code, out, _ = run(capsys, "flops", "--model", "onevision-0.5b", "--text-tokens", 113, "--json")
        result = json.loads(out)
        assert code == 0
        assert result["ratio"] == pytest.approx(0.276, abs=0.001)
        assert len(result["tokens_per_layer"]) == 24

    def test_tables(self, capsys):
        code, out, _ = run(capsys, "flops", "--model", "llava-video-7b", "--p", 1.5, "--last", 14)
        assert code == 0
        assert "15-27" in out
        assert "of unpruned" in out

    def test_another_method(self, capsys):
        arguments = ("--model", "onevision-0.5b", "--method", "dycoke", "--set", "k=0.9")
        code, out, _ = run(capsys, "flops", *arguments, "--json")
        result = json.loads(out)
        assert code == 0
        assert result["tokens_per_layer"] == [2201 + 113] * 24
        assert (result["method"], result["k"]) == ("dycoke", 0.9)
        code, out, _ = run(capsys, "flops", *arguments)
        assert code == 0
        assert "dycoke (k=0.9)" in out
        assert "deduplication" not in out

    def test_bad_input(self, capsys):
        assert run(capsys, "flops", "--model", "onevision-7b", "--last", 40)[0] == 2
        assert run(capsys, "flops", "--model", "onevision-7b", "--text-tokens", -1)[0] == 2

    def test_runs_as_a_module(self):
        command = [sys.executable, "-m", "adatp", "flops", "--model", "onevision-7b", "--json"]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(result.stdout)["ratio"] == pytest.approx(0.278, abs=0.001)
