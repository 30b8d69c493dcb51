"""The layers behind a prompt's last cut as one: their width is the same, so a CUDA graph can replay them.

A graph knows tensors by their address and has one width. So the layers run on buffers that stay, a multiple of 64 wide,
and what is left over stands behind the prompt, where causal attention never looks: no mask is needed for it.
"""

import threading
from collections import OrderedDict
from math import ceil
from typing import Any

import torch
from torch import Tensor

from adatp.hf.compiled_layers import CompiledLayers
from adatp.tensors.masks import causal_mask

DEVICES = {"cuda"}  # where graphs are
MULTIPLE = 64  # of the widths
KEPT = 8  # recordings at most; each holds the memory of what is between its layers


class LastLayers:
    """The last layers of one model. Threads take turns.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: CompiledLayers) -> None:
        self._layers = layers
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()  # the last used at the end
        self._lock = threading.Lock()

    def takes(self, first: int, hidden: Tensor) -> bool:
        """Whether the layers from `first` on shall run as one on `[1, W, D]`.

        Not where someone looks between them: with hooks on a layer or in it.
        """
        layers = self._layers
        return hidden.device.type in DEVICES and all(
            layers.takes(index, hidden) and not layers.watched(index) for index in range(first, len(layers))
        )

    @torch.no_grad()
    def run(self, first: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """What the last layer puts out, with the keys and values of all in the cache.

        Args:
            first: of the layers.
            hidden: `[1, W, D]` what enters it, a whole prompt.
            kwargs: what the model calls it with besides; see `CompiledLayers.run`.

        Raises:
            RuntimeError: a layer could not be compiled.
        """
        tensors = (hidden, *kwargs["position_embeddings"])
        width = ceil(hidden.shape[1] / MULTIPLE) * MULTIPLE
        # all that a recording takes for granted
        key = (first, width, hidden.device, hidden.dtype, self._layers.attention, self._layers.addresses(first))
        # in inference mode the buffers would be such as cannot be written to outside of it
        with self._lock, torch.cuda.device_of(hidden), torch.inference_mode(False):
            if key not in self._recordings:
                self._recordings[key] = _Recording(self._layers, first, width, tensors)
            self._recordings.move_to_end(key)
            if len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
            output, keys, values = self._recordings[key].replay(tensors)
        cache = kwargs["past_key_values"]
        if cache is not None:
            for index in range(first, len(self._layers)):
                cache.update(keys[index - first], values[index - first], index)
        return output


class _Recording:
    """The layers from `first` on at one width. Where there is no CUDA they run anew each time, on the same buffers."""

    def __init__(self, layers: CompiledLayers, first: int, width: int, like: tuple[Tensor, ...]) -> None:
        self._layers = layers
        self._first = first
        self._inputs = [tensor.new_zeros(1, width, tensor.shape[2]) for tensor in like]
        self._mask = causal_mask(self._inputs[0], layers.attention)
        self._graph: Any = None
        if like[0].is_cuda:
            self._record()

    def _record(self) -> None:
        stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            self._run()  # compiles, and lets libraries set themselves up
        stream.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._copied = torch.cuda.Event()
        # other threads may go on meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = self._run()

    def _run(self) -> tuple[Tensor, Tensor, Tensor]:
        hidden, cos, sin = self._inputs
        keys, values = [], []
        for index in range(self._first, len(self._layers)):
            hidden, key, value = self._layers.layer(index, hidden, (cos, sin), self._mask)
            keys.append(key)
            values.append(value)
        return hidden, torch.stack(keys), torch.stack(values)

    def replay(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """`[1, W, D]` what the last layer puts out, and `[n, 1, G, W, d]` keys and values of all n layers.

        Args:
            tensors: `[1, W, D]` what enters the first, and its `[1, W, d]` rotary tables.
        """
        width = tensors[0].shape[1]
        if self._graph is not None:
            torch.cuda.current_stream().wait_event(self._copied)  # of another thread's stream, perhaps
        for buffer, tensor in zip(self._inputs, tensors, strict=True):
            buffer[:, :width] = tensor
            buffer[:, width:] = 0  # what is not a number would spread even where its weight is 0
        if self._graph is None:
            outputs = self._run()
        else:
            self._graph.replay()
            outputs = self._outputs
        hidden, keys, values = (output[..., :width, :].clone() for output in outputs)
        if self._graph is not None:
            self._copied.record()
        return hidden, keys, values
