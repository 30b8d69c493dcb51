"""The KV cache of pruned layers: each cache layer holds only the tokens that entered its decoder layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache, StaticLayer

from adatp.engine.sparse_decoding import SparseVisual
from adatp.errors import Unsupported, UnsupportedType
from adatp.tensors.masks import additive
from adatp.tensors.padding import stack_left
from adatp.tensors.transfer import send


@dataclass(frozen=True)
class Shift:
    """How far the tokens after a prompt move forward, because the kept tokens of the prompt were renumbered.

    Attributes:
        tokens: `[B]` int64, number of positions.
        group: a number that is equal for all layers with equal shifts, also after beams are reordered.
    """

    tokens: Tensor
    group: int

    def reorder(self, indices: Tensor) -> "Shift":
        """Return the shift of the samples at `[B']` indices."""
        return replace(self, tokens=self.tokens[indices.to(self.tokens.device)])


class _Masked:
    """A cache layer that, while it holds a pruned prompt, accepts more tokens only with a mask of its own."""

    _pruned = False
    _mask_given = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; raise a RuntimeError if there is no mask for them."""
        if self._pruned and not self._mask_given:
            raise RuntimeError(
                "a pruned cache can only be continued while the method is applied to the model: every layer needs a "
                "mask of its own"
            )
        self._mask_given = False
        keys, values = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        return keys, values


class PrunedLayer(_Masked, DynamicLayer):
    """A growing cache layer that holds only the prompt tokens which entered its decoder layer.

    Attributes:
        prompt_length: number of tokens of the whole prompt, including padding; the model's own mask has as many columns
            for it.
        kept_length: number of slots of the prompt in this layer.
        kept: `[B, kept_length]` bool, False in left padding; None if no sample is padded.
        shift: how far the tokens after the prompt are moved forward; None if they are not moved.
        sparse: the choice of the prompt's tokens that deeper layers attend to in decoding, if this layer makes it; else
            None.
    """

    def __init__(
        self,
        prompt_length: int,
        keys: Tensor,
        values: Tensor,
        kept: Tensor | None,
        draft: int = 0,
        shift: Shift | None = None,
    ) -> None:
        """Take over `[B, G, W, d]` keys and values; the last `draft` tokens follow the prompt."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.prompt_length = prompt_length
        self.kept_length = keys.shape[2] - draft
        self.kept = kept
        self.shift = shift
        self.sparse: SparseVisual | None = None
        self._pruned = True

    def reset(self) -> None:
        """Forget all tokens, and the prompt."""
        super().reset()
        self.prompt_length = self.kept_length = 0
        self.kept = self.shift = self.sparse = None
        self._pruned = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the samples for beam search."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the samples at `indices`."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sample, with the copies side by side."""
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(self.keys.shape[0] // repeats).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove tokens from the end, as `DynamicLayer.crop` does.

        Raises:
            Unsupported: tokens of the prompt would be removed.
        """
        length = self.keys.shape[-2] if self.is_initialized else 0
        if tokens_to_remove > 0:  # up to transformers 5.17: the length that the whole sequence shall have
            tokens_to_remove = min(0, tokens_to_remove - self.prompt_length + self.kept_length - length)
        if length + tokens_to_remove < self.kept_length:
            raise Unsupported(
                f"cannot crop {-tokens_to_remove} tokens: that reaches into the pruned prompt, and each layer holds "
                "different tokens of it"
            )
        if tokens_to_remove:  # in older versions of transformers 0 means to remove everything
            super().crop(tokens_to_remove)

    def _select(self, indices: Tensor) -> None:
        if self.kept is not None:
            self.kept = self.kept[indices.to(self.kept.device)]
        if self.shift is not None:
            self.shift = self.shift.reorder(indices)
        if self.sparse is not None:
            self.sparse.reorder(indices)

    def decode_mask(
        self, own: Tensor | None, new: int, attention: str, attended: Tensor | None = None
    ) -> Tensor | None:
        """Build the attention mask of this layer for tokens after the prompt.

        The model's mask has the size of layer 0, which holds the whole prompt. Its columns for the tokens after the
        prompt are used here too. Its columns for the prompt are replaced by those of this layer.

        Args:
            own: the model's mask, `[..., K]`: additive or bool `[B, 1, new, K]`, or `[B, K]` for flash attention; None
                if everything is visible.
            new: number of tokens of this call, which are not yet in the cache.
            attention: name of the attention implementation.
            attended: `[B, kept_length]` bool: the slots of the prompt to attend to; None for all.
        """
        self._mask_given = True
        kept, device = self.kept, self.keys.device  # tensors from the model and other layers may be on other devices
        if attended is not None:
            attended = attended.to(device)
            kept = attended if kept is None else kept & attended
        if own is None:
            if kept is None:
                return None
            since = self.keys.shape[-2] - self.kept_length + new
            mask = torch.cat([kept, kept.new_ones(kept.shape[0], since)], 1)
            return mask if "flash" in attention else mask[:, None, None, :]
        own = own.to(device)
        since_prompt = own[..., self.prompt_length :]
        shape = (*own.shape[:-1], self.kept_length)
        if kept is None:
            visible = torch.ones(1, dtype=torch.bool, device=own.device).expand(shape)
        else:
            visible = (kept if own.ndim == 2 else kept[:, None, None, :]).expand(shape)
        prompt = additive(visible, own.dtype) if own.is_floating_point() else visible.to(own.dtype)
        return torch.cat([prompt, since_prompt], -1)


class FirstPrunedLayer(PrunedLayer):
    """The first layer, for methods that prune before the decoder.

    The model uses the length of the first layer as the position of the next token. So this length is that of the whole
    sequence.
    """

    def get_seq_length(self) -> int:
        """Return the length of the whole sequence, including the tokens that were pruned."""
        held = int(super().get_seq_length())
        return held and held - self.kept_length + self.prompt_length


class PrunedStaticLayer(_Masked, StaticLayer):
    """A cache layer of fixed size. It has the slots of an unpruned layer, and a mask hides some of them.

    The kept tokens of the prompt are in the last slots of the prompt. So the next token has the same slot in every
    layer, and all sizes that compiled decoding depends on are the same for all prompts. This layer saves no memory.

    Attributes:
        visible: `[B, max_cache_len]` bool: False for the slots of dropped tokens and of padding.
        shift: as in `PrunedLayer`.
    """

    def __init__(self, layer: StaticLayer, visible: Tensor) -> None:
        """Take over a layer with its buffers; compiled code may use their addresses."""
        super().__init__(layer.max_cache_len)
        self.__dict__.update(layer.__dict__)
        self.visible = visible
        self.shift: Shift | None = None
        torch._dynamo.mark_static_address(visible)

    @classmethod
    def of(cls, layer: StaticLayer, batch: int, device: torch.device) -> "PrunedStaticLayer":
        """Return `layer` if it is a `PrunedStaticLayer`, else a new one with its buffers, for a batch of B."""
        if isinstance(layer, cls):
            return layer
        return cls(layer, torch.ones(batch, layer.max_cache_len, dtype=torch.bool, device=device))

    def hold(self, keys: Tensor, values: Tensor, visible: Tensor, shift: Shift | None) -> None:
        """Store the prompt: `[B, G, L, d]` keys and values, `[B, L]` bool, True in used slots, and the shift."""
        self.update(keys, values)
        self.visible[:, : visible.shape[1]] = visible
        if shift is not None and self.shift is not None:  # compiled code may use the address of its tensor
            shift = replace(shift, tokens=self.shift.tokens.copy_(shift.tokens))
        self.shift = shift
        self._pruned = True

    def reset(self) -> None:
        """Forget all tokens, and the prompt; buffers keep their addresses."""
        super().reset()
        self.visible.fill_(True)
        if self.shift is not None:
            self.shift.tokens.zero_()
        self._pruned = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the samples for beam search; buffers keep their addresses."""
        super().reorder_cache(beam_idx)
        self.visible.copy_(self.visible[beam_idx.to(self.visible.device)])
        if self.shift is not None:
            self.shift.tokens.copy_(self.shift.reorder(beam_idx).tokens)

    def decode_mask(self, own: Tensor | None, new: int, attention: str) -> Tensor | None:
        """Build the attention mask of this layer for tokens after the prompt.

        Args:
            own: the model's mask `[B, 1, new, max_cache_len]`, bool or additive; None only while there is no prompt.
            new: number of tokens of this call.
            attention: name of the attention implementation.
        """
        self._mask_given = True
        if not self._pruned:
            return own
        assert own is not None, "a cache of fixed size always comes with a mask"
        own, visible = own.to(self.visible.device), self.visible[:, None, None, :]
        if own.is_floating_point():
            return own.masked_fill(~visible, torch.finfo(own.dtype).min)
        return own & visible


def check_cache(cache: Any, attention: str, *, sparse: bool = False) -> None:
    """Refuse a cache whose layers cannot hold different tokens.

    Args:
        cache: the caller's cache, or None.
        attention: name of the attention implementation.
        sparse: whether decoding attends to only some of the visual tokens.

    Raises:
        UnsupportedType: the cache is neither a `DynamicCache` nor a `StaticCache` of plain layers.
    """
    if cache is None:
        return
    kinds = {type(layer) for layer in getattr(cache, "layers", [])}
    dynamic = isinstance(cache, DynamicCache) and kinds <= {DynamicLayer, PrunedLayer, FirstPrunedLayer}
    static = isinstance(cache, StaticCache) and kinds <= {StaticLayer, PrunedStaticLayer}
    if static and "flash" in attention:
        raise UnsupportedType(
            f"a StaticCache cannot be pruned under {attention}, which takes no mask of its slots; use sdpa"
        )
    if static and sparse:
        raise UnsupportedType("a StaticCache cannot be used with sparse decoding; use a DynamicCache, or DyCoke(p=0)")
    if not (dynamic or static) or getattr(cache, "offloading", False):
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no layers"
        raise UnsupportedType(
            "pruning needs a DynamicCache or a StaticCache of full-attention layers on the model's device, because "
            f"layers keep different tokens; got {type(cache).__name__} ({names}). Leave past_key_values unset, or "
            "pass DynamicCache()"
        )


def fill_layer(
    cache: Cache,
    index: int,
    parts: Sequence[tuple[Tensor, Tensor]],
    length: int,
    draft: int,
    *,
    pruned: bool,
    shift: Shift | None = None,
) -> None:
    """Store the prompts of a batch in layer `index` of an empty cache.

    Args:
        cache: the caller's cache; its layers are filled in order.
        index: index of the layer.
        parts: keys and values of each prompt, `[1, G, W_b, d]`.
        length: L of the whole batch, including padding.
        draft: see `adatp.hf.batch.Batch`.
        pruned: whether the W_b of this layer differ from the lengths of the prompts.
        shift: see `PrunedLayer`.
    """
    counts = [keys.shape[2] for keys, _ in parts]
    layer = cache.layers[index] if index < len(cache.layers) else None
    static = isinstance(layer, StaticLayer)
    width = length if static or not pruned else max(counts)
    keys, values = (stack_left(tensors, width) for tensors in zip(*parts, strict=True))
    if not pruned:
        cache.update(keys, values, index)
        return
    kept = None
    if static or min(counts) < width:
        padding = send(width - torch.tensor(counts), keys.device)
        kept = torch.arange(width, device=keys.device) >= padding[:, None]
    if static:
        assert kept is not None
        held = PrunedStaticLayer.of(layer, keys.shape[0], keys.device)
        held.hold(keys, values, kept, shift)
        cache.layers[index] = held
        return
    kept = None if kept is None else kept[:, : width - draft]
    kind = PrunedLayer if index else FirstPrunedLayer
    cache.layers[index : index + 1] = [kind(length - draft, keys, values, kept, draft, shift)]
