"""Watch the tensors that operations put out."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Outputs(TorchDispatchMode):
    """Elements of every tensor put out while it is active: `all`, and those of tensors that hold memory."""

    def __init__(self):
        super().__init__()
        self.all, self.in_memory = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.all.append(value.numel())
                if not value.is_meta:
                    self.in_memory.append(value.numel())
        return result
