"""A model a second time, with the same weights in the same memory."""

import copy
from dataclasses import replace
from itertools import chain

from adatp.evaluation.session import Loaded


def twin(loaded: Loaded) -> Loaded:
    """The model once more, so that a method or a compiler can be in one and not in the other.

    Args:
        loaded: the model, its tower given; its weights, buffers and given states are shared, nothing of it changes.
    """
    model = loaded.model
    tensors = chain(model.parameters(), model.buffers(), [model.model.vision_tower.states])
    return replace(loaded, model=copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))
