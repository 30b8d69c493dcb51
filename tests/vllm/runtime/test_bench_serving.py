"""The benchmark of servers with real ones, on a small model."""

import json
import os

import pytest
from transformers import LlavaOnevisionConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from bench import serving

LOAD = serving.SMOKE


@pytest.mark.parametrize(
    ("config", "methods"),
    [(LlavaOnevisionConfig, ()), (Qwen2_5_VLConfig, ("evs",)), (Qwen3VLConfig, ("evs", "vidcom2"))],
)
def test_the_models_that_vllm_itself_prunes(config, methods):
    architecture = config.__name__.removesuffix("Config") + "ForConditionalGeneration"
    assert serving.pruning_methods(config(architectures=[architecture])) == methods


def test_every_server_is_measured(tmp_path, monkeypatch, capsys):
    """All of it, with two requests at a time at the most."""
    monkeypatch.setitem(os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    file = tmp_path / "a.json"
    serving.main(["--smoke", "--json", str(file), "--enforce-eager"])
    found = json.loads(file.read_text(encoding="utf-8"))
    stock, plain, pruned = found["servers"]
    assert found["flags"][-1] == "--enforce-eager"
    assert stock["flags"] == ["--no-enable-prefix-caching", "--no-enable-chunked-prefill"]
    assert plain["flags"] == pruned["flags"] == []
    assert found["video_pruning_rate"] == "not available for this model"
    assert found["machine"]["vllm"] == "0.32.0"
    assert stock["blocks"] == LOAD.room * -(-(found["load"]["prompt_tokens"] + 1) // serving.BLOCK) + 1
    assert pruned["blocks"] == 3 * stock["blocks"]  # of a third of the layers each
    for server in (stock, plain, pruned):
        assert [row["together"] for row in server["rows"]] == [1, 2]
        for row in server["rows"]:
            assert len(row["first_token"]) == serving.LEAST * LOAD.rounds
            assert all(0 < seconds < 60 for seconds in row["first_token"])
            assert row["tokens_per_second"][0] == pytest.approx(LOAD.tokens * row["requests_per_second"][0], rel=1e-3)
            assert row["preemptions"] == 0
            assert ("flops" in row) == (server is pruned)
    assert all(0 < row["kept"] < row["flops"] < 0.6 for row in pruned["rows"])
    assert "AdaTP, p = 1" in capsys.readouterr().out
