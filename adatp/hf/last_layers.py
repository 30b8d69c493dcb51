"""The layers after a prompt's last cut as one CUDA graph. It can replay them because they all have the same width.

A graph uses fixed addresses of tensors and has a fixed width. So the layers run on fixed buffers whose width is a
multiple of 64. The unused end of a buffer lies after the prompt. Causal attention never sees it, so it needs no mask.
"""

import threading
from collections import OrderedDict
from math import ceil
from typing import Any

import torch
from torch import Tensor

from adatp.hf.compiled_layers import CompiledLayers
from adatp.tensors.masks import causal_mask

DEVICES = {"cuda"}  # devices with graphs
MULTIPLE = 64  # widths are multiples of it
KEPT = 8  # most recordings; each holds the memory of the tensors between its layers


class LastLayers:
    """The last layers of one model. Only one thread at a time runs them.

    Args:
        layers: the compiled layers of the model.
    """

    def __init__(self, layers: CompiledLayers) -> None:
        self._layers = layers
        self._recordings: OrderedDict[Any, _Recording] = OrderedDict()  # the most recently used at the end
        self._lock = threading.Lock()

    def takes(self, first: int, hidden: Tensor) -> bool:
        """Tell whether the layers from `first` on shall run as one graph on `[1, W, D]`.

        They shall not if there are hooks on a layer or inside it, which need the tensors between the layers.
        """
        layers = self._layers
        return hidden.device.type in DEVICES and all(
            layers.takes(index, hidden) and not layers.watched(index) for index in range(first, len(layers))
        )

    @torch.no_grad()
    def run(self, first: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Run the layers, store their keys and values in the cache, and return the output of the last layer.

        Args:
            first: index of the first of these layers.
            hidden: `[1, W, D]` input of the first layer, a whole prompt.
            kwargs: the other arguments from the model; see `CompiledLayers.run`.

        Raises:
            RuntimeError: a layer could not be compiled.
        """
        tensors = (hidden, *kwargs["position_embeddings"])
        width = ceil(hidden.shape[1] / MULTIPLE) * MULTIPLE
        # everything that a recording depends on
        key = (first, width, hidden.device, hidden.dtype, self._layers.attention, self._layers.addresses(first))
        # buffers made in inference mode could not be written to outside of it
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
    """A recording of the layers from `first` on at one width. Without CUDA the layers run again in each replay."""

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
            self._run()  # compiles the layers and initialises libraries
        stream.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._copied = torch.cuda.Event()
        # other threads may use CUDA meanwhile
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
        """Return the `[1, W, D]` output of the last layer, and `[n, 1, G, W, d]` keys and values of all n layers.

        Args:
            tensors: `[1, W, D]` input of the first layer, and its `[1, W, d]` rotary tables.
        """
        width = tensors[0].shape[1]
        if self._graph is not None:
            torch.cuda.current_stream().wait_event(self._copied)  # the last replay may have run on another stream
        for buffer, tensor in zip(self._inputs, tensors, strict=True):
            buffer[:, :width] = tensor
            buffer[:, width:] = 0  # a NaN there would spread, because 0 * NaN is NaN
        if self._graph is None:
            outputs = self._run()
        else:
            self._graph.replay()
            outputs = self._outputs
        hidden, keys, values = (output[..., :width, :].clone() for output in outputs)
        if self._graph is not None:
            self._copied.record()
        return hidden, keys, values
