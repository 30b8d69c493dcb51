"""The attention metadata of the layers that see fewer tokens.

vLLM builds metadata for groups of layers with one attention backend. Each run of layers with the same tokens and the
same block table gets a subclass of the platform's backend, and so a metadata builder of its own. This builder shortens
the sequences by the tokens that its layers lack, and computes where the cache stores the new tokens.

How many tokens are missing is stored by the request's first block in the layers' cache. This number lives exactly as
long as the keys and values that it describes: a request keeps its first block, and whoever gets the block next writes
the number again in its first step. So reordered batches, preemption and aborts need no care.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adatp.vllm.plan import Plan
from adatp.vllm.runtime.cache import PrunedSpec

BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")  # they read the lengths of sequences from the device only


class Stages:
    """The metadata builders of a model's pruned layers.

    Args:
        plan: which layers see the same tokens, and which share a block table.
        attentions: the `Attention` modules of the decoder layers, in order; their backends are replaced.

    Attributes:
        builders: for each decoder layer its builder; None for a layer that sees all tokens, and before vLLM has made
            the builders.
    """

    def __init__(self, plan: Plan, attentions: list[Any]) -> None:
        self.builders: list[Any] = [None] * plan.layers
        self._attentions = attentions
        backends: dict[tuple[int, int], Any] = {}
        for layer, attention in enumerate(attentions):
            unit = plan.stage_of[layer], plan.group_of[layer]
            if unit[0]:
                if unit not in backends:
                    backends[unit] = self._backend(attention.attn_backend, plan, layer)
                attention.attn_backend = backends[unit]

    def place(self, context: Any) -> None:
        """Tell the layers in vLLM's forward context where the cache stores this step's tokens."""
        for attention, builder in zip(self._attentions, self.builders, strict=True):
            if builder is not None:
                context.slot_mapping[attention.layer_name] = builder.slots

    def _backend(self, base: Any, plan: Plan, layer: int) -> Any:
        """Return the backend of the layers that see the same tokens as `layer` and share its block table."""
        name = f"AdaTPStage{plan.stage_of[layer]}Group{plan.group_of[layer]}{base.__name__}"
        own = [
            other
            for other in range(plan.layers)
            if plan.stage_of[other] == plan.stage_of[layer] and plan.group_of[other] == plan.group_of[layer]
        ]

        def made(builder: Any) -> None:
            for other in own:
                self.builders[other] = builder

        builder_class = _builder_class(base.get_builder_cls(), made)

        class Backend(base):  # type: ignore[misc]
            @staticmethod
            def get_builder_cls() -> Any:
                return builder_class

            @classmethod
            def customize_spec(cls, spec: Any) -> Any:
                spec = super().customize_spec(spec)
                if plan.shares_whole_prompts(layer):
                    return spec
                return PrunedSpec.like(spec, plan.method, plan.layers, plan.first_of_group(layer))

        Backend.__name__ = Backend.__qualname__ = name  # vLLM tells backends apart by their names
        return Backend


def _builder_class(base: Any, made: Callable[[Any], None]) -> Any:
    """Return a class of metadata builders for layers that lack some tokens.

    Args:
        base: the platform's class.
        made: called with every new builder.
    """

    class StageBuilder(base):  # type: ignore[misc]
        """Builds the metadata of the layers.

        Attributes:
            common: the metadata of all requests, as vLLM gave it for this step.
            slots: `[tokens]` int64: where the cache stores this step's tokens; -1 for padding. A view of one buffer.
            dropped: `[blocks]` int32: how many tokens the layers lack of the request with this first block.
        """

        supports_update_block_table = False  # the lengths differ as well

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            scheduler = self.vllm_config.scheduler_config
            self.common: Any = None
            self._lengths = torch.zeros(scheduler.max_num_seqs, dtype=torch.int32, device=self.device)
            self._slots = torch.full((scheduler.max_num_batched_tokens,), -1, dtype=torch.int64, device=self.device)
            self.slots = self._slots[:0]
            self.dropped = torch.zeros(0, dtype=torch.int32, device=self.device)
            made(self)

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            """Build the metadata of a step in which nothing is pruned; see vLLM. Reads nothing from the device."""
            self.common = common_attn_metadata
            first = self.first_blocks()
            started = common_attn_metadata.query_start_loc
            arriving = started[1:] - started[:-1]
            total = common_attn_metadata.seq_lens
            missing = torch.where(total > arriving, self.dropped[first], 0)  # a first step: nothing is missing yet
            self.dropped[first] = missing
            lengths = self._lengths[: len(total)]
            torch.sub(total, missing, out=lengths)
            self.slots = self._slots[: len(common_attn_metadata.slot_mapping)]
            self.slots.copy_(self._place(started, lengths, len(self.slots)))
            return super().build(0, self._replaced(seq_lens=lengths, slot_mapping=self.slots), fast_build)

        def build_pruned(self, lengths: list[int], kept: dict[int, int]) -> Any:
            """Build the metadata for the rest of a step, after a cut.

            Args:
                lengths: for each request the number of its tokens that enter the layers in this step.
                kept: for each request that is pruned in this step, by its place: the number of tokens before the cut.
            """
            device = self.device
            started = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            rows = torch.tensor(list(kept))
            widths = torch.tensor([lengths[row] for row in kept], dtype=torch.int32)
            gone = torch.tensor(list(kept.values()), dtype=torch.int32) - widths
            rows, widths, gone, begins = (part.to(device, non_blocking=True) for part in (rows, widths, gone, started))
            self.dropped[self.first_blocks()[rows]] = gone
            totals = self._lengths[: len(lengths)]
            totals[rows] = widths
            self.slots = self._slots[: sum(lengths)]
            self.slots.copy_(self._place(begins, totals, len(self.slots)))
            return super().build(
                0,
                self._replaced(
                    query_start_loc=begins,
                    query_start_loc_cpu=started,
                    seq_lens=totals,
                    num_actual_tokens=sum(lengths),
                    max_query_len=max(lengths),
                    slot_mapping=self.slots,
                    positions=None,
                ),
            )

        def first_blocks(self) -> Tensor:
            """Return the first block of each request, `[requests]` int64; make room for the number of any block."""
            if not len(self.dropped):  # the number of blocks is known after vLLM has measured its memory
                cache = self.vllm_config.cache_config
                blocks = (cache.num_gpu_blocks or 1) * max(1, cache.block_size // self.kv_cache_spec.block_size)
                self.dropped = torch.zeros(blocks + 1, dtype=torch.int32, device=self.device)
            first: Tensor = self.common.block_table_tensor[:, 0].long()
            return first

        def _replaced(self, **changes: Any) -> Any:
            return self.common.replace(**changes, _num_computed_tokens_cache=None, _token_to_req_indices_cache=None)

        def _place(self, started: Tensor, lengths: Tensor, tokens: int) -> Tensor:
            """Compute the slot of each of a step's tokens, `[tokens]` int64; -1 for padding.

            Args:
                started: `[requests + 1]` int32, where the tokens of each request begin.
                lengths: `[requests]` int32, tokens of each request in the cache, including those of this step.
                tokens: number of tokens, with padding.
            """
            token = torch.arange(tokens, device=lengths.device)
            request = torch.bucketize(token, started[1:], right=True).clamp(max=len(lengths) - 1)
            place = (lengths - started[1:])[request] + token  # in its sequence
            size = self.kv_cache_spec.block_size
            table = self.common.block_table_tensor
            block = table[request, (place // size).clamp(0, table.shape[1] - 1)]
            return torch.where(token < started[-1], block.long() * size + place % size, -1)

    return StageBuilder
