"""What a method reads of the vision tower is averaged and pooled in fp32, also in a bf16 model."""

import pytest
import torch
from small_llava_video import small_llava_video
from torch.nn.functional import avg_pool2d
from videollm import make_inputs

import adatp
from adatp.small.untrained import load_untrained

LOADERS = {"llava_onevision": lambda: load_untrained(image_size=84, layers=4), "llava_video": small_llava_video}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_visionzip_reads_exact_saliency_and_keys(load, dtype, monkeypatch):
    untrained = load()
    model, inputs = untrained.model.to(dtype), make_inputs(untrained, ["What is in the picture?"]).to(dtype)
    seen, compress = [], adatp.VisionZip.compress
    monkeypatch.setattr(adatp.VisionZip, "compress", lambda self, video: seen.append(video) or compress(self, video))
    with adatp.apply(model, untrained.processor, "visionzip"):
        model(**inputs)
    (video,) = seen
    assert video.saliency.dtype == video.keys.dtype == torch.float32

    vision = model.model.vision_tower
    states = vision(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states
    block = vision.encoder.layers[-1]
    normed = block.layer_norm1(states[len(vision.encoder.layers) - 1])
    query, key = (
        projection(normed).unflatten(-1, (block.self_attn.num_heads, -1)).transpose(1, 2).double()
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj)
    )
    received = (query @ key.mT * key.shape[-1] ** -0.5).softmax(-1).mean((1, 2))
    side = round(received.shape[1] ** 0.5)

    def pool(values):
        return avg_pool2d(values.mT.unflatten(2, (side, side)), 2).flatten(2).mT

    torch.testing.assert_close(video.saliency.double(), pool(received[..., None])[..., 0], rtol=1e-5, atol=0)
    torch.testing.assert_close(video.keys.double(), pool(key.mean(1)), rtol=1e-5, atol=1e-6)
