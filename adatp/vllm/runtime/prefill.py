"""The step of a server in which prompts with videos begin: their layers run one by one, with cuts between them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from adatp.engine.cuts import Cuts
from adatp.engine.scoring import Scoring
from adatp.engine.tokens import Tokens
from adatp.layout import PromptLayout
from adatp.models.family import Family
from adatp.relevance import Aligned, Questions, similarity
from adatp.vllm.plan import Plan
from adatp.vllm.prompts import layout_of
from adatp.vllm.runtime.layers import asking, project
from adatp.vllm.runtime.reports import Reports
from adatp.vllm.runtime.riding import unpack
from adatp.vllm.runtime.stages import Stages


@dataclass
class _Prompt:
    """A prompt that is pruned in this step.

    Attributes:
        request: id of its request.
        layout: its layout; it includes the tokens that were generated before a preemption.
        length: number of tokens of the prompt itself.
        cuts: its cuts.
        tokens: the tokens that enter the current layer, as indices.
        question: the question that its frames are compared with; None if they are not.
    """

    request: str
    layout: PromptLayout
    length: int
    cuts: Cuts
    tokens: Tokens
    question: str | None


class PrunedPrefill:
    """Pruning of one model inside vLLM.

    Args:
        family: the family of the model, with its tokenizer.
        plan: which layers see the same tokens.
        stages: the metadata builders of the layers.
        decoder: the decoder, with `layers` and `norm`.
        scoring: how scores are computed.
        relevance: the aligned SigLIP, or None.
        reports: takes what was pruned.

    Attributes:
        frames: the features of the frames that arrive in this step, as they ride, `[tokens, e]` for each video, in the
            order of the requests; None for an image. Set when vLLM gathers the embeddings.
        width: the width F of a frame's features. Set when a video is encoded.
    """

    def __init__(
        self,
        family: Family,
        plan: Plan,
        *,
        stages: Stages,
        decoder: Any,
        scoring: Scoring,
        relevance: Aligned | None,
        reports: Reports,
    ) -> None:
        self.frames: list[Tensor | None] = []
        self.width = 0
        self.family = family
        self._plan = plan
        self._stages = stages
        self._decoder = decoder
        self._scoring = scoring
        self._questions = None if relevance is None else Questions(relevance)
        self._reports = reports
        self._runner: Any = None  # while a step of real requests runs

    @contextmanager
    def step(self, runner: Any) -> Iterator[None]:
        """Run a step of the requests that vLLM's runner holds; outside of it, vLLM only warms up."""
        self._runner = runner
        try:
            yield
        finally:
            self._runner, self.frames = None, []

    def run(
        self,
        context: Any,
        stock: Callable[[], Tensor],
        positions: Tensor,
        embeds: Tensor,
        added: Sequence[Tensor] = (),
    ) -> Tensor:
        """Run the decoder for a step.

        Args:
            context: vLLM's forward context.
            stock: runs the decoder as vLLM does.
            positions: `[tokens]` positions of the step's tokens, with padding; or `[3, tokens]`.
            embeds: `[tokens, D]` their embeddings.
            added: `[tokens, D]` each, what the decoder adds to the output of its first layers.

        Returns:
            `[tokens, D]`; 0 for dropped tokens.
        """
        if not isinstance(context.attn_metadata, dict):
            return stock()
        self._stages.place(context)
        prompts, lengths = ({}, []) if self._runner is None else self._begun()
        return self._run_layers(context, prompts, lengths, positions, embeds, added) if prompts else stock()

    # Which prompts begin in this step

    def _begun(self) -> tuple[dict[int, _Prompt], list[int]]:
        """Return the prompts with videos that begin in this step, by the place of their request, and all lengths."""
        runner, batch = self._runner, self._runner.input_batch
        begins = runner.query_start_loc.cpu[: batch.num_reqs + 1].tolist()
        lengths = [stop - begin for begin, stop in pairwise(begins)]
        prompts, arrived = {}, iter(self.frames)
        for row, length in enumerate(lengths):
            state = runner.requests[batch.req_ids[row]]
            begin = int(batch.num_computed_tokens_cpu[row])
            if (length > 1 and begin) or length < state.num_prompt_tokens - begin:
                raise RuntimeError(
                    f"vLLM computed {length} tokens of request {state.req_id} from token {begin} on, but a prompt that "
                    "may be pruned must be computed in one step. Please report this as a bug of adatp"
                )
            if begin or not state.mm_features:
                continue
            ridden = [own for own in (next(arrived, None) for _ in state.mm_features) if own is not None]
            prompt = self._prompt(state, length, ridden)
            if prompt is not None:
                prompts[row] = prompt
        return prompts, lengths

    def _prompt(self, state: Any, length: int, ridden: list[Tensor]) -> _Prompt | None:
        """Return a request's prompt; None if it has no video.

        Args:
            state: vLLM's state of the request.
            length: number of tokens, with those that were generated before a preemption.
            ridden: what rides with each video; empty if the method wants no features of frames.
        """
        ids = state.prompt_token_ids
        layout = layout_of(self.family, state)
        if layout is None:
            return None
        question = similar = None
        features = None
        if ridden:
            features = torch.cat(
                [
                    unpack(own[: video.tokens].unflatten(0, (video.frames, -1)), self.width)
                    for own, video in zip(ridden, layout.videos, strict=True)
                ]
            )
        if self._questions is not None and features is not None and self._plan.method.wants_question:
            question = self.family.question(torch.tensor(ids), layout, self.family.tokenizer)
        if question and self._questions is not None and features is not None:
            text = self._questions.features([question]).to(features.device)
            similar = similarity(features[None], text)[0]
        layout = replace(layout, length=length)
        cuts = Cuts(
            self._plan.method,
            self._plan.layers,
            layout,
            frames=features,
            similarity=similar,
            scoring=self._scoring,
            draft=length - len(ids),
            may_renumber=False,  # all layers of a step have the same positions
        )
        device = self._stages.builders[self._plan.cuts[0]].device
        tokens = cuts.tokens(torch.arange(length, device=device)[None])
        return _Prompt(state.req_id, layout, len(ids), cuts, tokens, question if similar is not None else None)

    # The layers

    def _run_layers(
        self,
        context: Any,
        prompts: dict[int, _Prompt],
        lengths: list[int],
        positions: Tensor,
        embeds: Tensor,
        added: Sequence[Tensor],
    ) -> Tensor:
        plan, hidden, residual = self._plan, embeds, None
        origin = torch.arange(sum(lengths), device=embeds.device)
        asked: list[Tensor] = []
        builder = None
        for index, layer in enumerate(self._decoder.layers):
            if index in plan.cuts:
                assert residual is not None  # the first layer has no cut before it
                if plan.method.scores_itself:
                    asked = project(layer, positions, hidden, residual)
                kept, lengths = self._cut(index, prompts, lengths, asked, layer.self_attn)
                hidden, residual, origin = hidden[kept], residual[kept], origin[kept]
                positions = positions[..., kept]
            if self._stages.builders[index] is not builder:
                builder = self._stages.builders[index]
                self._enter(index, builder, prompts, lengths, context)
            scores = index + 1 in plan.cuts and not plan.method.scores_itself
            with asking(layer.self_attn.attn) if scores else nullcontext(asked) as asked:
                hidden, residual = layer(positions, hidden, residual)
            if index < len(added):
                hidden = hidden + added[index][origin]
        normed, _ = self._decoder.norm(hidden, residual)
        for prompt in prompts.values():
            self._reports.add(prompt.request, prompt.cuts, prompt.length, prompt.question)
        whole = torch.zeros_like(embeds)
        whole[origin] = normed[: len(origin)]
        return whole

    def _cut(
        self, index: int, prompts: dict[int, _Prompt], lengths: list[int], asked: list[Tensor], attention: Any
    ) -> tuple[Tensor, list[int]]:
        """Make the cut of every prompt before layer `index`.

        Args:
            index: index of the layer.
            prompts: the prompts that are pruned.
            lengths: number of tokens of each request.
            asked: `[tokens, heads * d]` queries and keys of the layer that scores.
            attention: the attention of layer `index`; its sizes are those of all layers.

        Returns:
            `[tokens]` int64 indices of the tokens that stay, and the numbers of tokens of each request.
        """
        query, key = asked[0].unflatten(-1, (-1, attention.head_dim)), asked[1].unflatten(-1, (-1, attention.head_dim))
        parts, left, begin = [], [], 0
        for row, length in enumerate(lengths):
            own = torch.arange(length, device=query.device)
            if row in prompts:
                prompt = prompts[row]
                tokens = prompt.tokens.follow(own[None])
                rows = begin + tokens.places.rows[0]
                prompt.tokens = prompt.cuts.cut(
                    index,
                    tokens,
                    query[rows].transpose(0, 1)[None],
                    key[begin : begin + length].transpose(0, 1)[None],
                    attention.scaling,
                )
                own = prompt.tokens.hidden[0]
            parts.append(begin + own)
            left.append(len(own))
            begin += length
        return torch.cat(parts), left

    def _enter(self, index: int, builder: Any, prompts: dict[int, _Prompt], lengths: list[int], context: Any) -> None:
        """Give the layers from `index` on that share a builder the metadata of the tokens that are left."""
        if builder is None:
            return
        room = self._plan.first_of_group(index)
        for row, prompt in prompts.items():
            most = self._plan.method.counts(prompt.layout, self._plan.layers)[room]
            kept = lengths[row] - (prompt.layout.length - prompt.layout.visual_tokens)
            if kept > most:
                raise RuntimeError(
                    f"request {prompt.request} keeps {kept} visual tokens in layer {index}, more than the {most} that "
                    "its blocks of the cache have room for. Please report this as a bug of adatp"
                )
        metadata = builder.build_pruned(lengths, {row: prompt.layout.length for row, prompt in prompts.items()})
        for name in builder.layer_names:
            context.attn_metadata[name] = metadata
            context.slot_mapping[name] = builder.slots
