"""Turns of threads that share a model, until its layers are compiled."""

import threading

import torch

from adatp.hf.compiled_layers import CompiledLayers


class _Held(threading.local):
    """Whether the thread holds the turn."""

    by_this_thread = False


class Turns:
    """Lets one thread at a time through the model, as long as its layers are not compiled.

    While one thread compiles, PyTorch tells every thread that it is being compiled. transformers then keeps the hidden
    states of all threads' vision towers in one place, and mixes them up.

    Args:
        compiled: the layers.
    """

    def __init__(self, compiled: CompiledLayers) -> None:
        self._compiled = compiled
        self._lock = threading.Lock()
        self._held = _Held()

    def take(self) -> None:
        """Wait for the turn. Does nothing if the thread holds it already, or if the layers are compiled."""
        if not torch.compiler.is_dynamo_compiling():
            self._take()

    @torch.compiler.disable
    def _take(self) -> None:
        if not (self._compiled.is_warm or self._held.by_this_thread):
            self._lock.acquire()
            self._held.by_this_thread = True

    def give_back(self) -> None:
        """Let the next thread through. Does nothing if the thread does not hold the turn."""
        if not torch.compiler.is_dynamo_compiling():
            self._give_back()

    @torch.compiler.disable
    def _give_back(self) -> None:
        if self._held.by_this_thread:
            self._held.by_this_thread = False
            self._lock.release()
