import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from adatp.hf.cache import PrunedLayer, PrunedStaticLayer, Shift, check_cache, fill_layer

KEPT = torch.tensor([[True, True, True], [False, True, True]])


def filled(kept=KEPT, new=0):
    """A layer with 3 of a prompt's 5 tokens and `new` more."""
    keys = torch.arange(2.0 * (3 + new)).view(2, 1, 3 + new, 1)
    return PrunedLayer(5, keys, keys, kept, draft=new)


def test_tokens_without_a_mask_of_this_layer_are_refused():
    layer, new = filled(), torch.zeros(2, 1, 1, 1)
    with pytest.raises(RuntimeError, match="only be continued while the method is applied"):
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


class Quantised(DynamicLayer):
    """A growing layer whose keys cannot be moved as they are, like Hugging Face's quantised ones."""


def config(sdpa):
    return sdpa.model.config.text_config


def test_caches_that_hold_a_length_a_layer_are_accepted(sdpa):
    for cache in (None, DynamicCache(), DynamicCache(config=config(sdpa)), StaticCache(config(sdpa), 8)):
        check_cache(cache, "sdpa")


def test_other_caches_are_refused(sdpa):
    with pytest.raises(TypeError, match="needs a DynamicCache"):
        check_cache(DynamicCache(config=config(sdpa), offloading=True), "sdpa")
    with pytest.raises(TypeError, match="needs a DynamicCache"):
        check_cache(object(), "sdpa")
    quantised = DynamicCache()
    quantised.layers.append(Quantised())
    with pytest.raises(TypeError, match="Quantised"):
        check_cache(quantised, "sdpa")
    with pytest.raises(TypeError, match="use sdpa"):
        check_cache(StaticCache(config(sdpa), 8), "flash_attention_2")


def part(length, value):
    keys = torch.full((1, 2, length, 4), float(value))
    return keys, -keys


def test_filling_moves_a_single_prompt_without_a_copy():
    cache, (keys, values) = DynamicCache(), part(3, 1)
    fill_layer(cache, 0, [part(5, 1)], 5, 0, pruned=False)
    fill_layer(cache, 1, [(keys, values)], 5, 0, pruned=True)
    assert cache.layers[1].keys is keys
    assert cache.layers[1].values is values
    assert cache.layers[1].kept is None
    assert [layer.get_seq_length() for layer in cache.layers] == [5, 3]


@pytest.mark.parametrize("static", [False, True])
def test_filling_with_prompts_of_other_lengths(sdpa, static):
    """Prompts of 5 and 4 tokens of which 3 and 1 are left."""
    cache = StaticCache(config(sdpa), 8) if static else DynamicCache()
    fill_layer(cache, 0, [part(5, 1), part(4, 2)], 5, 0, pruned=False)
    fill_layer(cache, 1, [part(3, 1), part(1, 2)], 5, 0, pruned=True)
    whole, pruned = cache.layers[:2]
    assert whole.keys[:, 0, :5, 0].tolist() == [[1, 1, 1, 1, 1], [0, 2, 2, 2, 2]]
    assert whole.get_seq_length() == 5
    own = torch.ones(2, 1, 1, 8 if static else 6, dtype=torch.bool)
    own[1, ..., 0] = False
    if static:
        own[..., 6:] = False
        assert pruned.keys[:, 0, :6, 0].tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 2, 0]]
        assert pruned.get_seq_length() == 5, "slots as in an unpruned layer"
        expected = [[0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0]]
    else:
        assert pruned.keys[:, 0, :, 0].tolist() == [[1, 1, 1], [0, 0, 2]]
        expected = [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert pruned.decode_mask(own, 1, "sdpa")[:, 0, 0].int().tolist() == expected
    assert (pruned.decode_mask(additive(own), 1, "eager")[:, 0, 0] == 0).int().tolist() == expected


def test_a_static_layer_keeps_its_buffers(sdpa):
    """Compiled code knows them by their address."""
    cache = StaticCache(config(sdpa), 8)
    fill_layer(cache, 0, [part(5, 1)], 5, 0, pruned=True)
    layer = cache.layers[0]
    assert type(layer) is PrunedStaticLayer
    before = [t.data_ptr() for t in (layer.keys, layer.values, layer.visible, layer.cumulative_length)]
    cache.reset()
    assert layer.visible.all()
    fill_layer(cache, 0, [part(2, 3)], 4, 0, pruned=True)
    assert cache.layers[0] is layer
    assert [t.data_ptr() for t in (layer.keys, layer.values, layer.visible, layer.cumulative_length)] == before
    assert layer.visible.int().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]
    assert layer.keys[0, 0, :, 0].tolist() == [0, 0, 3, 3, 0, 0, 0, 0]


def test_a_static_layer_takes_the_next_prompts_shift(sdpa):
    """Into the tensor it has, but with the group that the next prompt puts the layer into."""
    cache = StaticCache(config(sdpa), 8)
    fill_layer(cache, 0, [part(5, 1)], 5, 0, pruned=True, shift=Shift(torch.tensor([3]), 0))
    layer = cache.layers[0]
    address = layer.shift.tokens.data_ptr()
    cache.reset()
    assert layer.shift.tokens.tolist() == [0], "a prompt without a video moves nothing"
    fill_layer(cache, 0, [part(2, 3)], 4, 0, pruned=True, shift=Shift(torch.tensor([7]), 2))
    assert layer.shift.tokens.tolist() == [7]
    assert layer.shift.tokens.data_ptr() == address
    assert layer.shift.group == 2


def test_reordering_and_repeating_move_the_shift():
    layer = filled()
    layer.shift = Shift(torch.tensor([4, 5]), 1)
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.batch_repeat_interleave(2)
    assert layer.shift.tokens.tolist() == [5, 5, 4, 4]
    assert layer.shift.group == 1


def test_the_mask_is_made_where_the_layer_is():
    """What the model and the layer that chooses hand over may be on other devices; meta tensors meet no others."""
    layer = filled()
    layer.keys, layer.kept = layer.keys.to("meta"), layer.kept.to("meta")
    attended = torch.ones(2, 3, dtype=torch.bool)
    own = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    for given in (own, None):
        assert layer.decode_mask(given, 1, "sdpa", attended).device.type == "meta"


def test_a_static_layer_without_a_mask_of_its_own_is_refused(sdpa):
    cache = StaticCache(config(sdpa), 8)
    fill_layer(cache, 0, [part(5, 1)], 5, 0, pruned=True)
    with pytest.raises(RuntimeError, match="only be continued while the method is applied"):
        cache.update(*part(1, 1), 0)
    cache.reset()
    cache.update(*part(1, 1), 0)


def test_reordering_a_static_layer_moves_what_can_be_seen(sdpa):
    cache = StaticCache(config(sdpa), 8)
    fill_layer(cache, 0, [part(5, 1), part(2, 2)], 5, 0, pruned=True)
    layer, address = cache.layers[0], cache.layers[0].visible.data_ptr()
    layer.reorder_cache(torch.tensor([1, 0]))
    assert layer.visible[:, :5].int().tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert layer.visible.data_ptr() == address
    assert layer.keys[:, 0, 4, 0].tolist() == [2, 1]
