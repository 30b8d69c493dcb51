"""A second copy of a model that shares the weights and their memory."""

import copy
from dataclasses import replace
from itertools import chain

from adatp.evaluation.session import Loaded


def twin(loaded: Loaded) -> Loaded:
    """Copy the model, so that a method or a compiler can be applied to one copy only.

    Args:
        loaded: the model, with given states of the tower. The copy shares its weights, buffers and states. The model
            itself does not change.
    """
    model = loaded.model
    tensors = chain(model.parameters(), model.buffers(), [model.model.vision_tower.states])
    return replace(loaded, model=copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}))
