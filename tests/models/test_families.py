"""A family is one file in adatp/models/: whoever adds one edits nothing else.

Run as a script, in a copy of the package with one file more, this module prints what that file brings.
"""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import adatp
from adatp.models import families, family_of
from adatp.models.family import Family

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-family.md"
TOY = DOCUMENT.read_text(encoding="utf-8").split("```py\n")[1].split("```")[0]
FRAMES = 6
TOKENS = 5


def facts(folder: str) -> dict:
    """What the new family's model does, in a process whose adatp has it."""
    import torch
    from recompute import kept_tokens, prompt_embeds, recompute
    from videollm import make_inputs

    from adatp.evaluation.session import load
    from adatp.small.untrained import Untrained, load_untrained

    found = sorted(families())  # before anything here has imported the file
    from adatp.models import toy_video

    onevision = load_untrained(image_size=84, layers=16)
    names = ("vision_config", "text_config", "image_token_index", "video_token_index", "image_grid_pinpoints")
    config = toy_video.ToyVideoConfig(**{name: getattr(onevision.model.config, name) for name in names})
    model = toy_video.ToyVideoForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(onevision.model.state_dict())
    model.save_pretrained(folder)
    onevision.processor.save_pretrained(folder)
    loaded = load(folder, device="cpu", dtype="float32", attention="sdpa", relevance=onevision.relevance)
    toy = Untrained(loaded.model, loaded.processor, onevision.relevance)
    inputs = make_inputs(toy, ["What is in the picture?"], frames=FRAMES)

    def generate(of=toy.model):
        output = of.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return output.sequences[0, -TOKENS:], torch.cat(output.logits)

    everything = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
    saved, plain, embeds = generate(model), generate(), prompt_embeds(toy.model, inputs)[0]
    with adatp.apply(toy.model, toy.processor, everything):
        same = generate()
    with adatp.apply(toy.model, toy.processor, relevance=toy.relevance) as pruned:
        tokens, logits = generate()
        sample = pruned.report.samples[0]
    with torch.no_grad():
        again = torch.cat([embeds, toy.model.get_input_embeddings()(tokens[:-1])])
        again = recompute(toy.model, again, kept_tokens(sample, len(embeds)))[-TOKENS:]
    video = inputs["input_ids"][0] == config.video_token_id
    kept = kept_tokens(sample, len(embeds))[-1]
    return {
        "families": found,
        "family": type(family_of(toy.model)).__name__,
        "loaded": [type(toy.model).__name__, type(toy.processor).__name__],
        "placeholders": int(video.sum()),
        "prunable": sample.visual_tokens,
        "kept": sample.kept,
        "kept placeholders in the last layer": int(video[kept].sum()),
        "question": sample.question,
        "segments": len(sample.segments),
        "what was loaded is what was saved": torch.equal(saved[1], plain[1]),
        "ratio 1 is the plain model": torch.equal(same[1], plain[1]),
        "off the recomputation": float((logits - again).abs().max()),
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """`facts` from a copy of the package with one file more."""
    copy, saved = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("toy")
    package = Path(adatp.__file__).parent
    shutil.copytree(package, copy / "adatp", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "adatp" / "models" / "toy_video.py").write_text(TOY, encoding="utf-8")
    helpers = Path(__file__).parents[1] / "helpers"
    path = os.pathsep.join([str(copy), str(helpers), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, str(saved)]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


class TestOneFileMore:
    def test_is_short(self):
        assert len(TOY.splitlines()) < 90

    def test_is_a_family(self, toy):
        assert toy["families"] == sorted([*families(), "toy_video"])
        assert toy["family"] == "ToyVideo"
        assert "toy_video" not in families(), "which is no other process's"

    def test_loads_from_a_checkpoint(self, toy):
        assert toy["loaded"] == ["ToyVideoForConditionalGeneration", "ToyVideoProcessor"]
        assert toy["what was loaded is what was saved"]

    def test_with_ratios_of_1_is_the_plain_model(self, toy):
        assert toy["ratio 1 is the plain model"]

    def test_is_pruned_but_for_what_it_says_is_not_prunable(self, toy):
        assert toy["prunable"] == 9 * FRAMES
        assert toy["placeholders"] == 10 * FRAMES + 1
        assert toy["kept"][0] == 9 * FRAMES > toy["kept"][-1] > 0
        assert toy["kept placeholders in the last layer"] == toy["kept"][-1] + FRAMES + 1
        assert toy["question"] == "What is in the picture?"
        assert 1 < toy["segments"] < FRAMES, "segments of several frames, with newlines inside"

    def test_agrees_with_the_recomputation(self, toy):
        assert toy["off the recomputation"] < 1e-4


# The families there are


@pytest.mark.parametrize("model_type", families())
class TestEveryFamily:
    def test_has_a_file_of_its_own_that_says_what_it_is(self, model_type):
        family = families()[model_type]
        module = importlib.import_module(f"adatp.models.{model_type}")
        assert inspect.getmodule(family) is module
        assert [other for other in families().values() if inspect.getmodule(other) is module] == [family]
        assert module.__doc__
        assert "model_type" in vars(family), "not its base's"
        assert family.model_type == model_type

    def test_is_whole(self, model_type):
        family = families()[model_type]
        assert issubclass(family, Family)
        assert not inspect.isabstract(family)
        # an override is called as the engine calls the base's
        for name in Family.__abstractmethods__ - {"__init__"}:
            ours, base = (inspect.getattr_static(owner, name) for owner in (family, Family))
            assert type(ours) is type(base), name
            if inspect.isfunction(base):
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(base).parameters), name


def test_an_instance_has_what_the_engine_reads(videollm):
    family = family_of(videollm.model, videollm.processor.tokenizer)
    for name in inspect.get_annotations(Family):
        assert getattr(family, name) is not None, name
    assert family.body is videollm.model.model
    assert len(family.decoder.layers) == 16


@pytest.mark.parametrize("model_type", ["toy_video", "qwen2", None])
def test_another_model_type_is_refused_with_the_list_of_the_known(model_type):
    class Other(nn.Module):
        pass

    model = Other()
    if model_type is not None:
        model.config = type("Config", (), {"model_type": model_type})()
    with pytest.raises(TypeError) as refusal:
        family_of(model)
    assert str(refusal.value) == (
        f"cannot prune a Other (model_type {model_type!r}); supported are: {', '.join(sorted(families()))}. "
        "A new family is one file in adatp/models/"
    )


@pytest.mark.parametrize(
    ("layer_types", "module", "reason"),
    [
        (["linear_attention", "full_attention"], "a", ": its decoder has linear_attention layers, which keep no keys"),
        (["sliding_attention", "full_attention"], "a", ": its decoder has sliding windows, which would span dropped"),
        (["full_attention"], "transformers_modules.a", ": its code is not that of transformers"),
        (["full_attention"], "a", "; supported are: "),
        (None, "a", "; supported are: "),
    ],
    ids=["hybrid", "windows", "remote code", "full attention", "not told"],
)
def test_another_model_is_refused_with_what_stands_in_its_way(layer_types, module, reason):
    Other = type("Other", (nn.Module,), {"__module__": module})  # noqa: N806
    text = type("Text", (), {"layer_types": layer_types})()
    model = Other()
    model.config = type("Config", (), {"model_type": "other", "text_config": text})()
    with pytest.raises(TypeError) as refusal:
        adatp.apply(model)
    assert str(refusal.value).startswith(f"cannot prune a Other (model_type 'other'){reason}")


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1])))
