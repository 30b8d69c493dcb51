"""The KV cache of a pruned layer."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from adatp.masks import additive


class PrunedLayer(DynamicLayer):
    """A growing cache layer that holds only the prompt tokens which entered its decoder layer.

    Attributes:
        prompt_length: tokens of the whole prompt, padding included: the columns the model's own mask has for it.
        kept_length: slots of the prompt in this layer.
        kept: `[B, kept_length]` bool, False in left padding; None where no sample is padded.
    """

    def __init__(self, prompt_length: int, kept_length: int, kept: Tensor | None) -> None:
        super().__init__()
        self.prompt_length = prompt_length
        self.kept_length = kept_length
        self.kept = kept
        self._masked = True  # whether the next tokens come with a mask for this layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self._masked:
            raise RuntimeError(
                "a pruned cache can only be continued while AdaTP is applied to the model: every layer needs a mask of "
                "its own"
            )
        self._masked = False
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values

    def reset(self) -> None:
        super().reset()
        self.prompt_length = self.kept_length = 0
        self.kept = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.kept is not None:
            self.kept = self.kept.repeat_interleave(repeats, dim=0)

    def crop(self, tokens_to_remove: int) -> None:
        length = self.get_seq_length()
        if tokens_to_remove > 0:  # up to transformers 5.17: the length of the whole sequence that is to remain
            tokens_to_remove = min(0, tokens_to_remove - self.prompt_length + self.kept_length - length)
        if length + tokens_to_remove < self.kept_length:
            raise ValueError(
                f"cannot crop {-tokens_to_remove} tokens: that reaches into the pruned prompt. Assisted and "
                "prompt-lookup decoding, which do so, cannot run on a pruned prompt"
            )
        if tokens_to_remove:  # 0 would once have meant to remove everything
            super().crop(tokens_to_remove)

    def _select(self, indices: Tensor) -> None:
        if self.kept is not None:
            self.kept = self.kept[indices.to(self.kept.device)]

    def decode_mask(self, own: Tensor | None, new: int, attention: str) -> Tensor | None:
        """The attention mask of this layer for tokens after the prompt.

        The model's mask is sized for layer 0, which holds the whole prompt. What it says of the tokens after the
        prompt holds here too; its columns of the prompt are replaced by this layer's.

        Args:
            own: the model's mask, `[..., K]`: additive or bool `[B, 1, new, K]`, or `[B, K]` for flash attention; None
                where everything is visible.
            new: tokens of this call, not yet in the cache.
            attention: name of the attention implementation.
        """
        self._masked = True
        if own is None:
            if self.kept is None:
                return None
            since = self.get_seq_length() - self.kept_length + new
            mask = torch.cat([self.kept, self.kept.new_ones(self.kept.shape[0], since)], 1)
            return mask if "flash" in attention else mask[:, None, None, :]
        since_prompt = own[..., self.prompt_length :]
        shape = (*own.shape[:-1], self.kept_length)
        if self.kept is None:
            visible = torch.ones(1, dtype=torch.bool, device=own.device).expand(shape)
        else:
            visible = (self.kept if own.ndim == 2 else self.kept[:, None, None, :]).expand(shape)
        prompt = additive(visible, own.dtype) if own.is_floating_point() else visible.to(own.dtype)
        return torch.cat([prompt, since_prompt], -1)


def check_cache(cache: Any) -> None:
    """Refuse a cache whose layers cannot each have a length of their own.

    Raises:
        TypeError: not a `DynamicCache` of plain dynamic layers.
    """
    if cache is None:
        return
    own_length = (DynamicLayer, PrunedLayer)
    plain = isinstance(cache, DynamicCache) and all(type(layer) in own_length for layer in cache.layers)
    if not plain or getattr(cache, "offloading", False):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in getattr(cache, "layers", [])})) or "no layers"
        raise TypeError(
            f"pruning needs a DynamicCache of full-attention layers, because every layer keeps its own length; got "
            f"{type(cache).__name__} ({kinds}). Leave past_key_values unset or pass DynamicCache()"
        )


def put_layer(cache: Cache, index: int, layer: PrunedLayer) -> None:
    """Make `layer` the cache's layer `index`, before anything is written to it."""
    if index < len(cache.layers):
        cache.layers[index] = layer
    else:  # a cache made without a config grows as layers are written
        cache.layers.append(layer)
