"""Work that the decoder's first layers need not wait for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """Work that runs beside the layers: on CUDA on a stream of its own, elsewhere at once.

    Args:
        device: of the work's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def queued(self, *given: Tensor) -> Iterator[None]:
        """Queue work that begins once all that was queued before it is done, and that reads the tensors given."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._hold(given, self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def join(self, *made: Tensor) -> None:
        """Let what is queued from here on wait for the work, and read the tensors that it has made."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        self._hold(made, current)

    @staticmethod
    def _hold(tensors: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
        """Keep the tensors' memory from other uses until the stream has read them; those on a CPU need nothing."""
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(stream)
