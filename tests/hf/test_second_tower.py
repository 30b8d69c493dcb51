"""A whole SigLIP beside a model whose own tower is none."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from decoding import by_generate
from small_models import make_model, make_siglip
from small_prompts import Video, make_inputs, make_tokenizer, user_turn
from transformers.utils import is_torchvision_available

import adatp
from adatp.models import family_of
from adatp.relevance import similarity
from adatp.small.untrained import load_untrained

MEAN, STD = [0.4, 0.45, 0.5], [0.25, 0.3, 0.2]
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def siglip():
    return make_siglip()


@pytest.fixture(scope="module")
def tower(siglip):
    return adatp.SecondTower(*siglip, MEAN, STD)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind)


def patches_of(pictures, patch=4, merge=2):
    """`[T, 3, H, W]` pictures as the processor writes them, in loops: rows of 2 x 2 neighbours, two pictures each."""
    count, _, height, width = pictures.shape
    rows = []
    for t in range(0, count, 2):
        for block_row in range(0, height, patch * merge):
            for block_column in range(0, width, patch * merge):
                for y in range(block_row, block_row + patch * merge, patch):
                    for x in range(block_column, block_column + patch * merge, patch):
                        rows.append(pictures[t : t + 2, :, y : y + patch, x : x + patch].transpose(0, 1).flatten())
    return torch.stack(rows), torch.tensor([count // 2, height // patch, width // patch])


def encode(model, inputs):
    function = getattr(model, f"get_{family_of(model).modality}_features")
    names = [name for name in inspect.signature(function).parameters if name in inputs]
    return function(**{name: inputs[name] for name in names}, return_dict=True)


def prompts(kind):
    """Videos of 4 and of 7 frames."""
    long = Video(7) if kind == "internvl" else Video(7, 8, 12)
    return [user_turn(Video(4), QUESTION), user_turn(long, "Who?")]


def test_pictures_are_those_that_the_processor_was_given(kind, model):
    if kind == "internvl":
        frames = torch.randn(3, 3, 32, 32)
        (pictures,) = family_of(model).pictures({"pixel_values": frames})
        assert torch.equal(pictures, frames)
        return
    videos = [torch.randn(4, 3, 16, 24), torch.randn(6, 3, 8, 8)]
    patches, grids = zip(*map(patches_of, videos), strict=True)
    given = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.stack(grids)}
    pictures = family_of(model).pictures(given)
    assert all(torch.equal(own, video[::2]) for own, video in zip(pictures, videos, strict=True))


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_pictures_are_those_of_the_real_processor(kind, model):
    if not kind.startswith("qwen"):
        pytest.skip("its pixels are pictures already")
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    real = Qwen3VLVideoProcessor if kind.startswith("qwen3") else Qwen2VLVideoProcessor
    processor = real(patch_size=4, merge_size=2, temporal_patch_size=2, image_mean=MEAN, image_std=STD)
    frames = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8)
    given = processor(frames, do_resize=False, do_sample_frames=False, return_tensors="pt")
    (pictures,) = family_of(model).pictures(given)
    expected = (frames[::2] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-4)


def test_features_are_those_of_the_siglip_on_the_same_pictures(siglip, tower):
    """Pictures of the SigLIP's own size need no scaling."""
    colours = torch.rand(5, 3, 28, 28)
    normalised = (colours - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = siglip[0].get_image_features(pixel_values=colours * 2 - 1, return_dict=True).pooler_output
        torch.testing.assert_close(tower(normalised), expected, rtol=1e-4, atol=1e-5)
        assert tower(torch.randn(2, 3, 40, 12)).shape == (2, 64)


@torch.no_grad()
def test_segments_and_significance_come_from_it(kind, model, tower):
    tokenizer = make_tokenizer(kind)
    inputs = make_inputs(kind, model, tokenizer, prompts(kind))
    frames = torch.cat([tower(video) for video in family_of(model).pictures(inputs)]).split([4, 7])
    with adatp.apply(model, tokenizer, adatp.AdaTP(tau_s=0.9), relevance=tower) as pruned:
        by_generate(model, dict(inputs), 2)
        report = pruned.report
    for sample, features, question in zip(report.samples, frames, (QUESTION, "Who?"), strict=True):
        expected = similarity(features[None], tower.text([question]))[0]
        torch.testing.assert_close(torch.tensor(sample.similarity), expected, rtol=1e-4, atol=1e-5)
        cosines = torch.nn.functional.cosine_similarity(features[1:], features[:-1], dim=1)
        starts = [0, *(1 + int(i) for i in (cosines < 0.9).nonzero().flatten())]
        assert [segment.start for segment in sample.segments] == starts
    assert report.notes == ()


@torch.no_grad()
def test_copies_for_beams_and_features_beforehand(kind, model, tower):
    tokenizer = make_tokenizer(kind)
    inputs, family = make_inputs(kind, model, tokenizer, prompts(kind)), family_of(model)
    features = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    with adatp.apply(model, tokenizer, relevance=tower) as pruned:
        by_generate(model, dict(inputs), 2)
        expected = [sample.similarity for sample in pruned.report.samples]
        if features or kind != "internvl":  # up to 5.17 copies get the wrong frames
            by_generate(model, dict(inputs), 2, num_beams=2)
            assert [sample.similarity for sample in pruned.report.samples][::2] == expected
        if features:
            encoded = encode(model, inputs)
            del inputs[family.pixels]
            for _ in range(2):
                by_generate(model, {**inputs, "mm_encoder_outputs": {family.modality: encoded}}, 2)
                assert [sample.similarity for sample in pruned.report.samples] == expected


def test_features_without_a_second_look_are_refused(model, kind, tower):
    tokenizer = make_tokenizer(kind)
    inputs = make_inputs(kind, model, tokenizer, [user_turn(Video(4), QUESTION)])
    with torch.no_grad():
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            pytest.skip("this version of transformers takes no features")
        encoded, family = encode(model, inputs), family_of(model)
        del inputs[family.pixels]
        with adatp.apply(model, tokenizer, relevance=tower), pytest.raises(adatp.Unsupported, match="second SigLIP"):
            by_generate(model, {**inputs, "mm_encoder_outputs": {family.modality: encoded}}, 2)


def test_a_checkpoint_by_its_path(model, kind, siglip, tower, tmp_path):
    siglip[0].save_pretrained(tmp_path)
    siglip[1].save_pretrained(tmp_path)
    tokenizer = make_tokenizer(kind)
    processor = SimpleNamespace(tokenizer=tokenizer, video_processor=SimpleNamespace(image_mean=MEAN, image_std=STD))
    with adatp.apply(model, processor, relevance=tmp_path) as pruned:
        assert isinstance(pruned.relevance, adatp.SecondTower)
        pictures = torch.randn(2, 3, 28, 28)
        assert torch.equal(pruned.relevance(pictures), tower(pictures))
    with pytest.raises(ValueError, match="processor must be the model's processor, whose image_mean"):
        adatp.apply(model, tokenizer, relevance=tmp_path)
    with pytest.raises(ValueError, match=r"relevance: SigLIP .* cannot be loaded"):
        adatp.apply(model, processor, relevance=tmp_path / "none")


def test_the_wrong_kind_is_refused(model, kind, tower):
    llava = load_untrained(image_size=28, layers=15)
    with pytest.raises(adatp.Unsupported, match="pass a SecondTower"):
        adatp.apply(model, make_tokenizer(kind), relevance=llava.relevance)
    with pytest.raises(adatp.Unsupported, match="the model's own tower is a SigLIP"):
        adatp.apply(llava.model, llava.processor, relevance=tower)
