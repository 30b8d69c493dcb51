"""The small model on disk: what is saved is loaded, and nothing else."""

import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText

from adatp.models import family_of
from adatp.relevance import Relevance
from adatp.small.checkpoint import check, save_checkpoint
from adatp.small.training.architecture import DECODER_LAYERS, TOWER_LAYERS, make_model, make_processor, make_siglip
from adatp.world.clips import make_clip
from adatp.world.drawing import draw

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    torch.manual_seed(0)
    siglip = make_siglip(len(tokenizer))
    model, processor = make_model(siglip, tokenizer), make_processor(tokenizer)
    save_checkpoint(folder, model, processor, siglip, tokenizer)
    return folder, model, processor, siglip


def test_it_is_small_and_deep_enough_for_the_papers_schedule(made):
    folder, model, *_ = made
    check(folder)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 16 * MEGABYTE
    assert len(model.model.language_model.layers) == DECODER_LAYERS >= 16


def test_what_is_saved_is_loaded(made):
    folder, model, processor, siglip = made
    again = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float16)
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    read = family_of(again).load_processor(str(folder / "model"))
    frames = draw(make_clip("train", 0))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "where is the star?"}]}]
    )
    ours, theirs = (one(text=text, videos=[frames], return_tensors="pt") for one in (processor, read))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["input_ids"].eq(again.config.video_token_index).sum() == 32 * 16 + 1  # 16 a frame, and a newline

    relevance = Relevance.from_pretrained(folder / "siglip", TOWER_LAYERS, device="cpu", dtype=torch.float32)
    assert torch.equal(relevance.head.probe, siglip.vision_model.head.probe.float())
    assert relevance.text(["where is the star?"]).shape == (1, relevance.width)


@pytest.mark.parametrize("name", ["model/model.safetensors", "siglip/config.json"])
def test_a_file_that_changed_or_is_gone_is_told(made, tmp_path, name):
    shutil.copytree(made[0], tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} does not match its checksum; restore it"):
        check(tmp_path / "checkpoint")
    file.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing; restore it"):
        check(tmp_path / "checkpoint")


def test_a_file_that_was_added_is_told(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "checkpoint")
    (tmp_path / "checkpoint/model/more.json").write_text("{}")
    with pytest.raises(ValueError, match=r"more\.json does not match its checksum"):
        check(tmp_path / "checkpoint")
