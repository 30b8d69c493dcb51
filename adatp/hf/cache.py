"""The KV cache of pruned layers: each holds what entered its decoder layer, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache, StaticLayer

from adatp.engine.sparse_decoding import SparseVisual
from adatp.errors import Unsupported
from adatp.tensors.masks import additive
from adatp.tensors.padding import stack_left
from adatp.tensors.transfer import send


@dataclass(frozen=True)
class Shift:
    """How many positions the tokens after a prompt move forward, because what is left of it was renumbered.

    Attributes:
        tokens: `[B]` int64.
        group: the same for all layers that shift alike, also once beams are reordered.
    """

    tokens: Tensor
    group: int

    def reorder(self, indices: Tensor) -> "Shift":
        """Take the samples at `[B']` indices."""
        return replace(self, tokens=self.tokens[indices.to(self.tokens.device)])


class _Masked:
    """A layer which, while it holds a pruned prompt, takes further tokens only with a mask of its own."""

    _pruned = False
    _mask_given = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
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
        prompt_length: tokens of the whole prompt, padding included: the columns the model's own mask has for it.
        kept_length: slots of the prompt in this layer.
        kept: `[B, kept_length]` bool, False in left padding; None where no sample is padded.
        shift: how far the tokens after the prompt are moved forward; None for not at all.
        sparse: what of the prompt deeper layers attend to in decoding, where this layer decides; else None.
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
        """Take over `[B, G, W, d]` keys and values, the last `draft` of which follow the prompt."""
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
        super().reset()
        self.prompt_length = self.kept_length = 0
        self.kept = self.shift = self.sparse = None
        self._pruned = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(self.keys.shape[0] // repeats).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        length = self.keys.shape[-2] if self.is_initialized else 0
        if tokens_to_remove > 0:  # up to transformers 5.17: the length of the whole sequence that is to remain
            tokens_to_remove = min(0, tokens_to_remove - self.prompt_length + self.kept_length - length)
        if length + tokens_to_remove < self.kept_length:
            raise Unsupported(
                f"cannot crop {-tokens_to_remove} tokens: that reaches into the pruned prompt, of which each layer "
                "holds other tokens"
            )
        if tokens_to_remove:  # 0 would once have meant to remove everything
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
        """The attention mask of this layer for tokens after the prompt.

        The model's mask is sized for layer 0, which holds the whole prompt. What it says of the tokens after the
        prompt holds here too; its columns of the prompt are replaced by this layer's.

        Args:
            own: the model's mask, `[..., K]`: additive or bool `[B, 1, new, K]`, or `[B, K]` for flash attention; None
                where everything is visible.
            new: tokens of this call, not yet in the cache.
            attention: name of the attention implementation.
            attended: `[B, kept_length]` bool: the slots of the prompt to attend to; None for all.
        """
        self._mask_given = True
        kept, device = self.kept, self.keys.device  # what the model and other layers hand over may be elsewhere
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
    """The first layer, where less than the whole prompt enters even that.

    The model takes its length for the position of the next token, so it is that of the whole sequence.
    """

    def get_seq_length(self) -> int:
        held = int(super().get_seq_length())
        return held and held - self.kept_length + self.prompt_length


class PrunedStaticLayer(_Masked, StaticLayer):
    """A cache layer of fixed size whose prompt has holes: slots as in an unpruned layer, some of them not to be seen.

    What a layer keeps of the prompt is moved against its end, so that the next token's slot is every layer's, and
    nothing that compiled decoding looks at changes from prompt to prompt. It saves no memory.

    Attributes:
        visible: `[B, max_cache_len]` bool: False for the slots of dropped tokens and of padding.
        shift: as of a `PrunedLayer`.
    """

    def __init__(self, layer: StaticLayer, visible: Tensor) -> None:
        """Take over a layer with its buffers, which compiled code may know by their address."""
        super().__init__(layer.max_cache_len)
        self.__dict__.update(layer.__dict__)
        self.visible = visible
        self.shift: Shift | None = None
        torch._dynamo.mark_static_address(visible)

    @classmethod
    def of(cls, layer: StaticLayer, batch: int, device: torch.device) -> "PrunedStaticLayer":
        """`layer` itself if it is one, else one in its place for a batch of B."""
        if isinstance(layer, cls):
            return layer
        return cls(layer, torch.ones(batch, layer.max_cache_len, dtype=torch.bool, device=device))

    def hold(self, keys: Tensor, values: Tensor, visible: Tensor, shift: Shift | None) -> None:
        """Take the prompt: `[B, G, L, d]` keys and values, `[B, L]` bool, where they are any, and the shift."""
        self.update(keys, values)
        self.visible[:, : visible.shape[1]] = visible
        if shift is not None and self.shift is not None:  # compiled code may know its tensor by the address
            shift = replace(shift, tokens=self.shift.tokens.copy_(shift.tokens))
        self.shift = shift
        self._pruned = True

    def reset(self) -> None:
        super().reset()
        self.visible.fill_(True)
        if self.shift is not None:
            self.shift.tokens.zero_()
        self._pruned = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.visible.copy_(self.visible[beam_idx.to(self.visible.device)])
        if self.shift is not None:
            self.shift.tokens.copy_(self.shift.reorder(beam_idx).tokens)

    def decode_mask(self, own: Tensor | None, new: int, attention: str) -> Tensor | None:
        """The attention mask of this layer for tokens after the prompt.

        Args:
            own: the model's mask `[B, 1, new, max_cache_len]`, bool or additive; None only while there is no prompt.
            new: tokens of this call.
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
    """Refuse a cache whose layers cannot each hold other tokens.

    Args:
        cache: the caller's, or None.
        attention: name of the attention implementation.
        sparse: whether decoding attends to some of the tokens it holds.

    Raises:
        TypeError: neither a `DynamicCache` nor a `StaticCache` of plain layers.
    """
    if cache is None:
        return
    kinds = {type(layer) for layer in getattr(cache, "layers", [])}
    dynamic = isinstance(cache, DynamicCache) and kinds <= {DynamicLayer, PrunedLayer, FirstPrunedLayer}
    static = isinstance(cache, StaticCache) and kinds <= {StaticLayer, PrunedStaticLayer}
    if static and "flash" in attention:
        raise TypeError(f"a StaticCache cannot be pruned under {attention}, which takes no mask of its slots; use sdpa")
    if static and sparse:
        raise TypeError(
            "a StaticCache cannot be used where decoding chooses what it attends to; use a DynamicCache, or DyCoke(p=0)"
        )
    if not (dynamic or static) or getattr(cache, "offloading", False):
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no layers"
        raise TypeError(
            "pruning needs a DynamicCache or a StaticCache of full-attention layers on the model's device, because "
            f"every layer keeps other tokens; got {type(cache).__name__} ({names}). Leave past_key_values unset, or "
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
    """Put the prompts of a batch into layer `index` of an empty cache.

    Args:
        cache: the caller's; layers are filled in order.
        index: of the layer.
        parts: keys and values of each prompt, `[1, G, W_b, d]`.
        length: L of the whole batch, padding included.
        draft: see `adatp.hf.batch.Batch`.
        pruned: whether the layer's W_b are other than the prompts' own lengths.
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
