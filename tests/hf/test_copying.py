"""A pruned model is not copied: its hooks, and the methods put in their place, belong to the original."""

import copy
import io
import pickle

import pytest
import torch
from videollm import make_inputs

import adatp
from adatp.small.untrained import load_untrained

PARTS = {
    "model": lambda model: model,
    "body": lambda model: model.model,
    "decoder": lambda model: model.model.language_model,
    "first layer": lambda model: model.model.language_model.layers[0],
    "last layer": lambda model: model.model.language_model.layers[-1],
    "MLP": lambda model: model.model.language_model.layers[0].mlp,
}
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "save": lambda model: torch.save(model, io.BytesIO()),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_part_of_a_pruned_model_is_refused(sdpa, part, make):
    with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        with pytest.raises(TypeError, match=r"cannot be copied or pickled while it is pruned; call remove\(\) first"):
            make(part(sdpa.model))
        with pytest.raises(adatp.Unsupported, match="cannot be copied"):
            make(pruned)


def test_a_replica_for_data_parallelism_is_refused(sdpa):
    """`nn.DataParallel` copies a model without asking how."""
    with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance), pytest.raises(TypeError, match="copied"):
        sdpa.model._replicate_for_data_parallel()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_after_remove_a_copy_is_a_plain_model(make):
    untrained = load_untrained(image_size=84, layers=16)
    inputs = make_inputs(untrained, ["What is in the picture?"])
    with torch.no_grad():
        expected = untrained.model(**inputs).logits
        adatp.apply(untrained.model, untrained.processor, relevance=untrained.relevance).remove()
        other = make(untrained.model)
        assert torch.equal(other(**inputs).logits, expected)
        with adatp.apply(other, untrained.processor, relevance=untrained.relevance) as pruned:
            other(**inputs)
            assert pruned.report.pruned


def test_a_pruned_model_is_saved_without_its_method(sdpa, tmp_path):
    """Its weights are its own."""
    with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
        sdpa.model.save_pretrained(tmp_path)
        state = copy.deepcopy(sdpa.model.state_dict())
    loaded = type(sdpa.model).from_pretrained(tmp_path)
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())
