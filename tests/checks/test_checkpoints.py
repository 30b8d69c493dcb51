"""Damaged checkpoints: whichever library finds the fault, it is told as a CheckpointError."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import adatp
from adatp.checks.checkpoints import loading
from adatp.errors import CheckpointError, InputError
from adatp.evaluation.session import load
from adatp.small.checkpoint import FOLDER


def load_model(folder):
    return load(str(folder), device="cpu", dtype="float32", attention="sdpa", relevance=None)


def load_siglip(folder):
    return adatp.Relevance.from_pretrained(folder, 3, device="cpu", dtype=torch.float32)


def write(text):
    return lambda path: path.write_text(text, encoding="utf-8")


def edit(**fields):
    """Set fields of a JSON file; those that are `...` are removed."""

    def change(path):
        content = {**json.loads(path.read_text(encoding="utf-8")), **fields}
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return change


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def garble(path):
    path.write_bytes(b"\xff\xfe\x00" * 100)


def drop_tensors(path):
    with safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in sorted(file.keys())[5:]}
    save_file(kept, path, metadata={"format": "pt"})


def narrow_tensors(path):
    with safe_open(path, "pt") as file:
        narrow = {name: file.get_tensor(name)[:1].clone() for name in file.keys()}  # noqa: SIM118  it is not a dict
    save_file(narrow, path, metadata={"format": "pt"})


DAMAGES = [
    *[("config.json", damage, "") for damage in (halve, remove, garble, write(""), write("[]"), write("3"))],
    ("config.json", edit(dtype="x"), ""),
    ("config.json", edit(vision_config={"hidden_size": "wide"}), ""),
    ("config.json", edit(vision_config=...), ""),
    *[("model.safetensors", damage, "") for damage in (halve, remove, garble, write(""), narrow_tensors)],
    ("model.safetensors", drop_tensors, "5 of its tensors are missing: .*, .*, .*, ..."),
    *[("tokenizer.json", damage, "") for damage in (halve, remove, garble, write(""), write("{}"))],
    ("tokenizer.json", edit(model=...), ""),
    ("tokenizer.json", edit(normalizer=-1), ""),
    ("tokenizer_config.json", edit(tokenizer_class=[]), ""),
]
OF_THE_MODEL = [
    ("config.json", edit(model_type=...), "Unrecognized model"),
    ("config.json", edit(video_token_index=1), "a prompt holds 1 video tokens in a row, which is not frames"),
    ("config.json", edit(video_token_index=99), "which finds no video in a prompt"),
    *[("processor_config.json", damage, "") for damage in (halve, remove, garble, write("[]"))],
    ("processor_config.json", edit(image_processor=1.5), ""),
    ("processor_config.json", edit(video_token=None), ""),
    ("processor_config.json", edit(video_token="x"), ""),
    ("processor_config.json", edit(num_image_tokens="x"), ""),
    *[("chat_template.jinja", damage, "") for damage in (halve, remove, garble, write(""), write("{% if"))],
]


@pytest.mark.parametrize(("file", "damage", "message"), [*DAMAGES, *OF_THE_MODEL])
def test_a_damaged_model(tmp_path, file, damage, message):
    folder = shutil.copytree(FOLDER / "model", tmp_path / "model")
    damage(folder / file)
    with pytest.raises(
        CheckpointError, match=rf"{folder} (cannot be loaded|does not fit its model).*{message}"
    ) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES)
def test_a_damaged_siglip(tmp_path, file, damage, message):
    folder = shutil.copytree(FOLDER / "siglip", tmp_path / "siglip")
    damage(folder / file)
    with pytest.raises(CheckpointError, match=rf"SigLIP {folder} cannot be loaded: .*{message}") as error:
        load_siglip(folder)
    assert "\n" not in str(error.value)


def test_whole_checkpoints_are_loaded():
    load_model(FOLDER / "model")
    load_siglip(FOLDER / "siglip")


@pytest.mark.parametrize("load_it", [load_model, load_siglip, adatp.load_processor])
def test_a_folder_that_is_not_there(load_it, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere cannot be loaded: there is no such folder") as error:
        load_it(tmp_path / "nowhere")
    assert isinstance(error.value, InputError)
    assert isinstance(error.value, OSError)


def test_another_family_loads_no_weights(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(adatp.Unsupported, match="model_type 'llava'"):
        load_model(tmp_path)


def test_a_siglip_of_another_kind():
    with pytest.raises(CheckpointError, match="its model_type must be 'siglip', got 'llava_onevision'"):
        load_siglip(FOLDER / "model")


def test_a_bug_of_ours_is_none_of_the_checkpoint(monkeypatch):
    monkeypatch.setattr("adatp.models.llava_onevision.load_processor", 3)  # the family calls it
    with pytest.raises(TypeError, match="'int' object is not callable"):
        adatp.load_processor(FOLDER / "model")


def test_an_error_of_the_machine_is_none_of_the_checkpoint():
    with pytest.raises(MemoryError), loading("model", "a/b"):
        raise MemoryError
