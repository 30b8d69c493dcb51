"""Where the text looks, held to the attention matrices of an eager forward."""

import pytest
import torch
from torch import nn
from videollm import make_clip, make_inputs

from adatp.hf.attention_map import visual_attention
from adatp.layout import VideoSize
from adatp.models import family_of
from adatp.pruning import apply
from adatp.small.untrained import load_untrained


@torch.no_grad()
def expected(model, inputs):
    """`[N, n, c]` from whole attention matrices."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        attentions = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    layout = family_of(model).layout(inputs["input_ids"][0])
    means = [attention[0][:, layout.rows][:, :, layout.visual].mean((0, 1)) for attention in attentions]
    return torch.stack(means).view(len(means), layout.frames, layout.tokens_per_frame)


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def settle(untrained) -> None:
    """Let transformers add the hooks of its own that it adds once, when it is first asked for hidden states."""
    visual_attention(untrained.model, make_inputs(untrained, ["Why?"], frames=4))


@pytest.fixture(scope="module")
def other():
    """A model of its own for tests that change it."""
    return load_untrained(image_size=84, layers=16, attention="eager")


def test_it_is_the_mean_of_the_attention_matrices(videollm):
    inputs = make_inputs(videollm, ["What happens?"], frames=6)
    found = visual_attention(videollm.model, inputs)
    torch.testing.assert_close(found.scores, expected(videollm.model, inputs), atol=1e-5, rtol=1e-4)
    assert found.scores.dtype == torch.float32
    assert found.scores.shape == (16, 6, found.grid.tokens)
    assert found.grid == family_of(videollm.model).grid
    assert found.videos == (VideoSize(6, found.grid),)
    assert found.frames == 6


def test_with_eager_attention(other):
    inputs = make_inputs(other, ["Why?"], frames=4)
    torch.testing.assert_close(
        visual_attention(other.model, inputs).scores, expected(other.model, inputs), atol=1e-5, rtol=1e-4
    )


def test_several_videos_with_text_between_them(videollm):
    content = [{"type": "video"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
    prompt = videollm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = videollm.processor(text=prompt, videos=[make_clip(3), make_clip(3, seed=1)], return_tensors="pt")
    found = visual_attention(videollm.model, inputs)
    assert found.videos == (VideoSize(3, found.grid),) * 2
    torch.testing.assert_close(found.scores, expected(videollm.model, inputs), atol=1e-5, rtol=1e-4)


def test_no_layers_keys_outlive_the_layer_and_no_matrix_is_made(sdpa, monkeypatch):
    """The hooks leave one layer in one cache at a time, and logits are made for one token."""
    import adatp.hf.attention_map

    alive = []

    class Cache(adatp.hf.attention_map.DynamicCache):
        def update(self, *args, **kwargs):
            alive.append(self)
            return super().update(*args, **kwargs)

    logits = []
    handle = sdpa.model.lm_head.register_forward_hook(lambda *call: logits.append(call[2].shape[1]))
    monkeypatch.setattr(adatp.hf.attention_map, "DynamicCache", Cache)
    visual_attention(sdpa.model, make_inputs(sdpa, ["Why?"], frames=4))
    handle.remove()
    assert len(alive) == len(set(map(id, alive))) == 16
    assert all(sum(layer.is_initialized for layer in cache.layers) == 1 for cache in alive)
    assert logits == [1]


def test_the_model_is_left_as_it_was(sdpa):
    inputs = make_inputs(sdpa, ["Why?"], frames=4)
    settle(sdpa)
    before = hooks(sdpa.model)
    with torch.no_grad():
        logits = sdpa.model(**inputs).logits
    visual_attention(sdpa.model, inputs)
    assert hooks(sdpa.model) == before
    with torch.no_grad():
        assert torch.equal(sdpa.model(**inputs).logits, logits)


def test_a_failed_run_leaves_no_hooks(other, monkeypatch):
    settle(other)
    before = hooks(other.model)

    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(other.model.model.language_model.layers[3].mlp, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        visual_attention(other.model, make_inputs(other, ["Why?"], frames=4))
    assert hooks(other.model) == before


def test_a_projection_that_does_not_run_is_named(other, monkeypatch):
    class Around(nn.Module):
        def forward(self, x):
            return hidden.forward(x)

    attention = other.model.model.language_model.layers[5].self_attn
    hidden = attention.q_proj
    monkeypatch.setattr("adatp.models.llava_onevision.LlavaOnevision.query_projection", lambda self, layer: hidden)
    monkeypatch.setitem(attention._modules, "q_proj", Around())
    with pytest.raises(RuntimeError, match="query projection of decoder layer"):
        visual_attention(other.model, make_inputs(other, ["Why?"], frames=4))


def test_a_prompt_without_a_video_is_refused(sdpa):
    inputs = sdpa.processor(text="What?", return_tensors="pt")
    with pytest.raises(ValueError, match="inputs must hold a prompt with a video"):
        visual_attention(sdpa.model, inputs)


def test_a_batch_is_refused(sdpa):
    with pytest.raises(ValueError, match="inputs must hold one prompt, got a batch of 2"):
        visual_attention(sdpa.model, make_inputs(sdpa, ["Why?", "Who?"], frames=4))


def test_padding_is_refused(sdpa):
    inputs = make_inputs(sdpa, ["Why?"], frames=4)
    inputs["attention_mask"][0, :2] = 0
    with pytest.raises(ValueError, match="inputs must have no padding, but 2 tokens are masked out"):
        visual_attention(sdpa.model, inputs)


def test_a_pruned_model_is_refused(other):
    with apply(other.model, other.processor, relevance=other.relevance):
        with pytest.raises(ValueError, match=r"model must be unpruned: call remove\(\)"):
            visual_attention(other.model, make_inputs(other, ["Why?"], frames=4))


def test_sliding_windows_are_refused(other, monkeypatch):
    monkeypatch.setattr(other.model.config.text_config, "layer_types", ["sliding_attention"] * 16)
    with pytest.raises(ValueError, match="sliding-window"):
        visual_attention(other.model, make_inputs(other, ["Why?"], frames=4))


def test_attention_that_overflows_is_refused():
    broken = load_untrained(image_size=84, layers=16)
    with torch.no_grad():
        broken.model.model.language_model.layers[4].self_attn.k_proj.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"attention of decoder layer 4 is not finite in torch\.float32"):
        visual_attention(broken.model, make_inputs(broken, ["Why?"], frames=4))


def test_half_precision():
    """The scores are accumulated in float32 whatever the model computes in."""
    other = load_untrained(image_size=84, layers=16)
    inputs = make_inputs(other, ["Why?"], frames=4)
    exact = visual_attention(other.model, inputs).scores
    model = other.model.to(torch.bfloat16)
    found = visual_attention(model, inputs.to(torch.bfloat16)).scores
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(2), exact.sum(2), atol=0.02, rtol=0.1)


def test_heads_split_over_ranks_are_averaged(sdpa, monkeypatch):
    monkeypatch.setattr("adatp.hf.attention_map.average_over_ranks", lambda model: lambda values: values / 2)
    inputs = make_inputs(sdpa, ["Why?"], frames=4)
    halved = visual_attention(sdpa.model, inputs).scores
    monkeypatch.undo()
    assert torch.equal(2 * halved, visual_attention(sdpa.model, inputs).scores)
