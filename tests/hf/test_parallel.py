"""A model whose heads are split over processes, and one whose layers lie on several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import make_model
from tensor_parallel import METHODS
from transformers import AutoModelForImageTextToText
from videollm import make_inputs

import adatp


def test_two_ranks_keep_what_one_keeps(videollm, tmp_path):
    """Tensor parallel over gloo; without the all-reduce each rank would select by its own heads."""
    hold_two_ranks(videollm.model, tmp_path)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl-qwen3"])
def test_two_ranks_of_other_families_keep_what_one_keeps(kind, tmp_path):
    """Those that transformers has a plan for, without and with norms of queries and keys; none for Qwen3-VL."""
    hold_two_ranks(make_model(kind), tmp_path)


def hold_two_ranks(model, tmp_path):
    model.save_pretrained(tmp_path)
    worker = Path(__file__).parents[1] / "helpers" / "tensor_parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    run = subprocess.run(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(worker), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    ranks = sorted((result["method"], result["rank"]) for result in found)
    assert ranks == [(method, rank) for method in sorted(METHODS) for rank in (0, 1)], run.stderr[-2000:]
    for result in found:
        assert result["ranks"] == 2
        assert result["heads"] == 1, "each rank has one of the two key heads"
        assert result["dropped"] > 0
        assert result["same tokens kept"]
        assert result["same answer"]
        assert result["same cache"]


def outcome(model, untrained, inputs, method="adatp"):
    with adatp.apply(model, untrained.processor, method, relevance=untrained.relevance) as pruned:
        output = model.generate(
            **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        samples, layers = pruned.report.samples, range(len(pruned.report.samples[0].kept))
        kept = torch.stack([sample.kept_mask(layer) for sample in samples for layer in layers])
    return kept, torch.stack(output.logits)


def placed(untrained, folder, device_map):
    """The model as `from_pretrained(device_map=...)` loads it."""
    untrained.model.save_pretrained(folder / "checkpoint")
    return AutoModelForImageTextToText.from_pretrained(
        folder / "checkpoint", device_map=device_map, offload_folder=folder / "offload", dtype=torch.float32
    ).eval()


def split(untrained, front, back):
    """The first half of the model on `front`, the rest of its decoder's layers on `back`."""
    layers = len(untrained.model.model.language_model.layers)
    decoder = "model.language_model"
    parts = dict.fromkeys(("model.vision_tower", "model.multi_modal_projector", "model.image_newline"), front)
    parts |= {f"{decoder}.{name}": front for name in ("embed_tokens", "norm", "rotary_emb")}
    parts |= {f"{decoder}.layers.{i}": front if i < 4 else back for i in range(layers)}
    return {**parts, "lm_head": front}


# a parameter of the body itself, which accelerate wants placed and then does not find among the modules
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")
@pytest.mark.parametrize("method", ["adatp", "pyramiddrop", "dycoke", "visionzip"])
def test_a_decoder_of_which_a_part_is_on_disk(videollm, tmp_path, method):
    """Its weights are nowhere between the calls of its modules, so nothing but those may be called."""
    inputs = make_inputs(videollm, ["What is in the picture?", "Why?"])
    model = placed(videollm, tmp_path, split(videollm, "cpu", "disk"))
    assert model.model.language_model.layers[5].self_attn.q_proj.weight.is_meta
    ours, expected = (outcome(each, videollm, inputs, method) for each in (model, videollm.model))
    assert not expected[0].all()
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("device_map", ["auto", "split"])
def test_a_decoder_on_two_devices(videollm, tmp_path, device_map):
    inputs = make_inputs(videollm, ["What is in the picture?", "Why?"])
    model = placed(videollm, tmp_path, split(videollm, "cuda:0", "cpu") if device_map == "split" else "auto")
    ours = outcome(model, videollm, inputs.to(model.device))
    expected = outcome(videollm.model, videollm, inputs.to(videollm.model.device))
    assert torch.equal(ours[0].cpu(), expected[0].cpu())
    torch.testing.assert_close(ours[1].cpu(), expected[1].cpu(), atol=1e-3, rtol=1e-3)
