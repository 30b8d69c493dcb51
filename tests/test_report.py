import json

import pytest
import torch
from videollm import make_inputs

import adatp


@pytest.fixture(scope="module")
def report(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?", "Why?"])
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        sdpa.model(**inputs)
    return pruned.report


def test_segments_add_up_to_the_layers(report):
    for sample in report.samples:
        assert len(sample.kept) == 16
        for layer, kept in enumerate(sample.kept):
            assert sum(s.kept[layer] for s in sample.segments) == kept
        assert sample.segments[0].start == 0
        assert sample.segments[-1].stop == sample.frames
        for left, right in zip(sample.segments, sample.segments[1:], strict=False):
            assert left.stop == right.start


def test_kept_mask_agrees_with_the_counts(report):
    for sample in report.samples:
        for layer, kept in enumerate(sample.kept):
            mask = sample.kept_mask(layer)
            assert mask.shape == (sample.frames, sample.tokens_per_frame)
            assert mask.sum() == kept
            for segment in sample.segments:
                assert mask[segment.start : segment.stop].sum() == segment.kept[layer]
        with pytest.raises(ValueError, match="from 0 to 15, got 16"):
            sample.kept_mask(16)


def test_no_position_twice_in_a_segment(report):
    for sample in report.samples:
        for segment in sample.segments:
            assert sample.kept_mask(2)[segment.start : segment.stop].sum(0).max() <= 1


def test_segment_similarity_is_the_mean_of_its_frames(report):
    for sample in report.samples:
        for segment in sample.segments:
            values = sample.similarity[segment.start : segment.stop]
            assert segment.similarity == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_flops_follow_from_the_lengths(report, sdpa):
    width = sdpa.model.config.text_config
    per_token = 2 * width.hidden_size * (
        2 * width.hidden_size
        + 2 * width.hidden_size * width.num_key_value_heads // width.num_attention_heads
        + 3 * width.intermediate_size
    )  # fmt: skip
    assert report.flops.linear == per_token * sum(sum(s.lengths()) for s in report.samples)
    assert report.flops.linear_full == per_token * sum(16 * s.lengths()[0] for s in report.samples)
    assert 0 < report.flops.ratio < 1


def test_as_text(report):
    ratio, *samples = str(report).splitlines()
    assert f"{report.flops.ratio:.1%}" in ratio
    assert len(samples) == 2
    for text, sample in zip(samples, report.samples, strict=True):
        assert f"visual tokens {sample.visual_tokens} -> {sample.kept[2]} -> " in text
        assert f"-> {sample.kept[-1]}; {len(sample.segments)} segments" in text


def test_to_dict_is_json(report):
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["pruned"] is True
    assert again["samples"][0]["kept"] == list(report.samples[0].kept)
    assert again["flops"]["ratio"] == report.flops.ratio
