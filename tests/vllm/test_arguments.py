"""What vLLM is told, as arguments, as flags, and by `adatp serve`."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from adatp.cli.main import main
from adatp.cli.serve import METRICS
from adatp.errors import CheckpointError, UnsupportedType
from adatp.methods import AdaTP
from adatp.small.untrained import load_untrained
from adatp.vllm import engine_args
from adatp.vllm.arguments import ARCHITECTURES, flags


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    load_untrained().model.config.save_pretrained(folder)
    return folder


def test_the_method_with_its_settings_and_the_relevance(model):
    args = engine_args(model, AdaTP(p=1.5, segments=False), relevance="some/siglip")
    assert args["hf_overrides"] == {"architectures": [ARCHITECTURES["llava_onevision"]]}
    told = args["additional_config"]["adatp"]
    assert told["method"] == "adatp"
    assert told["settings"]["p"] == 1.5
    assert told["settings"]["segments"] is False
    assert told["relevance"] == "some/siglip"
    assert args["enable_prefix_caching"] is args["enable_chunked_prefill"] is False


def test_flags_say_the_same(model):
    args = engine_args(model, "fastv", relevance=None)
    told = flags(args)
    for name in ("hf_overrides", "additional_config", "compilation_config"):
        flag = "--" + name.replace("_", "-")
        assert json.loads(told[told.index(flag) + 1]) == args[name]
    for name in ("worker_cls", "scheduler_cls"):
        assert told[told.index("--" + name.replace("_", "-")) + 1] == args[name]
    assert told[told.index("--logits-processors") + 1] == args["logits_processors"][0]
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= set(told)


def test_the_command_of_vllm(model, capsys):
    assert main(["serve", str(model), "--p", "1.5", "--port", "8001", "--print-command"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[:3] == ["vllm", "serve", str(model)]
    assert command[3:-2] == flags(engine_args(model, AdaTP(p=1.5)))
    assert command[-2:] == ["--port", "8001"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--method", "fastv", "--set", "keep=7"], "keep must be in (0, 1]"),
        (["--set", "bla=1"], "has no setting 'bla'"),
        (["--p", "1", "--set", "p=2"], "p is set twice"),
    ],
)
def test_settings_that_do_not_fit(model, capsys, given, wanted):
    assert main(["serve", str(model), *given]) == 2
    assert wanted in capsys.readouterr().err


def test_models_that_cannot_be_served(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        engine_args(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    with pytest.raises(UnsupportedType, match="is a qwen2, which cannot be pruned by adatp inside vLLM; supported are"):
        engine_args(tmp_path)


def test_a_flag_of_another_command_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--port", "8000"])
    assert "unrecognized arguments: --port 8000" in capsys.readouterr().err


@pytest.mark.parametrize("found", [None, "0.31.0"])
def test_versions_of_vllm(found, model, capsys, monkeypatch):
    from adatp.vllm import version

    monkeypatch.setattr(version, "installed", lambda: found)
    for name in [name for name in sys.modules if name.startswith("adatp.vllm.runtime")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", str(model)]) == 2
    wanted = "vLLM is not installed: pip install" if found is None else "vLLM 0.31.0 is installed, but"
    assert wanted in capsys.readouterr().err
    assert METRICS not in os.environ, "what this command sets is gone with it"


def test_arguments_do_not_need_vllm():
    program = "import sys, adatp.vllm, adatp.vllm.plugin, adatp.cli.serve; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
