"""`score`, `select` and `compact` as the tests call them: on tensors of the host, whichever implementation runs."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.utils import deterministic
from torch.utils._pytree import tree_leaves, tree_map_only

from adatp_kernels.compact import compact
from adatp_kernels.dispatch import interpreted
from adatp_kernels.score import score
from adatp_kernels.select import select


class Operators:
    """The three operations under one `impl` on one device.

    Memory holds NaN, or its type's largest integer, when an operation allocates it, and what an operation is given must
    be the same afterwards.
    """

    def __init__(self, impl: str, device: str):
        self.impl, self.device = impl, torch.device(device)

    def score(self, *args, **options):
        return self._run(score, args, options)

    def select(self, *args, **options):
        return self._run(select, args, options)

    def compact(self, *args, **options):
        return self._run(compact, args, options)

    def move(self, value):
        """Every tensor in `value` on the device, with the strides it has."""
        return tree_map_only(Tensor, self._move, value)

    def _move(self, tensor):
        if tensor.device == self.device:
            return tensor
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return memory.to(self.device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _run(self, operation, args, options):
        args, options = self.move((args, options))
        given = [value for value in tree_leaves((args, options)) if isinstance(value, Tensor)]
        before = [_bits(tensor) for tensor in given]
        with poisoned():
            result = operation(*args, **options, impl=self.impl)
        assert all(torch.equal(_bits(a), b) for a, b in zip(given, before, strict=True)), "an input was written to"
        return tree_map_only(Tensor, Tensor.cpu, result)


def runnable() -> list:
    """Parameters `(impl, device)` of all that can run in this process."""
    triton = pytest.param(("triton", "cpu"), id="triton")
    if interpreted():
        return [triton]
    reference = pytest.param(("reference", "cpu"), id="reference")
    triton = pytest.param(("triton", "cuda"), id="triton", marks=pytest.mark.cuda)
    return [reference, triton] if torch.cuda.is_available() else [reference]


def cases(many: int, interpreter: int) -> settings:
    """How many examples a property is tried on; the interpreter takes a tenth of a second for each."""
    return settings(deadline=None, max_examples=interpreter if interpreted() else many)


@contextmanager
def poisoned():
    """Memory that is allocated in here is filled: floats with NaN, integers with their maximum, booleans with True."""
    fill = deterministic.fill_uninitialized_memory
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)
        deterministic.fill_uninitialized_memory = fill


def _bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
