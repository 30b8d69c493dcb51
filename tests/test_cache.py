import pytest
import torch
from transformers import DynamicCache, StaticCache

from adatp.cache import PrunedLayer, check_cache, put_layer

KEPT = torch.tensor([[True, True, True], [False, True, True]])


def filled(kept=KEPT, new=0):
    """A layer with 3 of a prompt's 5 tokens and `new` more."""
    layer = PrunedLayer(prompt_length=5, kept_length=3, kept=kept)
    keys = torch.arange(2.0 * (3 + new)).view(2, 1, 3 + new, 1)
    layer.update(keys, keys)
    return layer


def test_tokens_without_a_mask_of_this_layer_are_refused():
    layer, new = filled(), torch.zeros(2, 1, 1, 1)
    with pytest.raises(RuntimeError, match="only be continued while AdaTP is applied"):
        layer.update(new, new)
    layer.decode_mask(None, 1, "sdpa")
    layer.update(new, new)
    assert layer.get_seq_length() == 4
    with pytest.raises(RuntimeError, match="only be continued"):
        layer.update(new, new)


def test_reordering_moves_the_padding_with_the_keys():
    layer = filled()
    layer.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(layer.kept, KEPT[[1, 1]])
    assert layer.keys[:, 0, 0, 0].tolist() == [3.0, 3.0]


def test_selecting_and_repeating_move_the_padding_with_the_keys():
    layer = filled()
    layer.batch_select_indices(torch.tensor([1]))
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.kept, KEPT[[1, 1]])
    assert layer.keys.shape[0] == 2


def test_without_padding_there_is_nothing_to_move():
    layer = filled(kept=None)
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.batch_repeat_interleave(2)
    assert layer.kept is None


@pytest.mark.parametrize("argument", [-2, 6])  # tokens to remove; or, before transformers 5.18, the length to keep
def test_crop_counts_generated_tokens(argument):
    layer = filled(new=3)
    layer.crop(argument)
    assert layer.get_seq_length() == 4


def test_crop_of_nothing():
    layer = filled(new=1)
    layer.crop(0)
    layer.crop(9)
    assert layer.get_seq_length() == 4


def test_crop_stops_at_the_prompt():
    with pytest.raises(ValueError, match="reaches into the pruned prompt"):
        filled(new=1).crop(-2)


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("form", ["bool", "additive", "flash"])
def test_decode_mask_replaces_the_columns_of_the_prompt(form):
    layer = filled(new=1)
    own = torch.ones(2, 1, 2, 8, dtype=torch.bool)  # 5 prompt tokens, 1 generated, 2 new
    own[:, :, 0, 7] = False  # causal
    own[1, :, :, 0] = False  # left padding of the prompt
    expected = torch.ones(2, 1, 2, 6, dtype=torch.bool)
    expected[:, :, 0, 5] = False
    expected[1, :, :, 0] = False
    if form == "bool":
        assert torch.equal(layer.decode_mask(own, 2, "sdpa"), expected)
    elif form == "additive":
        assert torch.equal(layer.decode_mask(additive(own), 2, "eager"), additive(expected))
    else:
        own2, expected2 = own[:, 0, 1], expected[:, 0, 1]
        assert torch.equal(layer.decode_mask(own2, 2, "flash_attention_2"), expected2)


def test_decode_mask_where_the_model_has_none():
    assert filled(kept=None, new=1).decode_mask(None, 1, "sdpa") is None
    mask = filled(new=1).decode_mask(None, 1, "sdpa")
    assert mask.shape == (2, 1, 1, 5)
    assert mask[:, 0, 0].tolist() == [[True] * 5, [False] + [True] * 4]
    assert filled(new=1).decode_mask(None, 1, "flash_attention_2").shape == (2, 5)


def test_decode_mask_of_an_unpadded_layer_ignores_the_prompts_padding():
    own = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    own[1, ..., :2] = False  # padding that the first cut has dropped
    assert filled(kept=None).decode_mask(own, 1, "sdpa").all()


@pytest.mark.parametrize("cache", [None, DynamicCache()])
def test_a_dynamic_cache_is_accepted(cache):
    check_cache(cache)


def test_other_caches_are_refused(sdpa):
    with pytest.raises(TypeError, match="needs a DynamicCache"):
        check_cache(StaticCache(config=sdpa.model.config.text_config, max_cache_len=8))
    with pytest.raises(TypeError, match="needs a DynamicCache"):
        check_cache(DynamicCache(config=sdpa.model.config.text_config, offloading=True))


def test_put_layer_grows_a_cache_made_without_a_config(sdpa):
    lazy, eager = DynamicCache(), DynamicCache(config=sdpa.model.config.text_config)
    for cache in (lazy, eager):
        layer = PrunedLayer(5, 3, None)
        put_layer(cache, 0, layer)
        assert cache.layers[0] is layer
    assert len(eager.layers) == 16
