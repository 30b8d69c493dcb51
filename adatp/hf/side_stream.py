"""A stream for work that the decoder's first layers do not wait for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """Runs work while the decoder's layers run: on CUDA in a second stream; on other devices at once.

    Args:
        device: device of the work's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def queued(self, *given: Tensor) -> Iterator[None]:
        """Queue the work of the `with` block. It starts after all earlier work, and it reads the `given` tensors."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._hold(given, self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def join(self, *made: Tensor) -> None:
        """Let all later work in the current stream wait for the queued work, and read the tensors that it `made`."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        self._hold(made, current)

    @staticmethod
    def _hold(tensors: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
        """Keep the memory of CUDA tensors from being reused before the stream has read them."""
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(stream)
