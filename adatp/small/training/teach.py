"""Second stage: projector and decoder learn the answers, with SigLIP's tower as it is.

A clip's visual tokens stand before all of its questions, and no question attends to another: one forward pass reads the
clip once and answers them all, each exactly as if it were asked alone.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AttentionInterface

from adatp.small.training.architecture import TOKENS
from adatp.small.training.pixels import to_pixels
from adatp.world.clips import FRAMES, make_clip
from adatp.world.drawing import draw
from adatp.world.questions import KINDS, ask_all, ask_orders, choose
from adatp.world.things import Split

NO_TARGET = -100
CLOCKED = 1  # the layer behind which visual tokens tell the time: the last that the paper's schedule leaves whole


class Lessons(Dataset[dict[str, Tensor]]):
    """Batches of clips, each with questions and answers.

    A batch has `pixels [B, n, 3, 64, 64]`; `head [H]`, the tokens before a video; `tokens [B, Q, T]`, those behind it,
    answer included, a row for each question; `target [B, Q, T]`, the next token where it is of an answer, else
    `NO_TARGET`; and `kind [B, Q]`, each question's in `KINDS`, -1 where a clip has fewer.

    Args:
        split: to draw from.
        first: the first clip's number.
        batches: how many batches.
        clips: of a batch.
        frames: of a clip.
        questions: of a clip, at most.
        orders: more questions of a clip with several scenes, all of them of what is before or after what.
        processor: writes the prompts.
    """

    def __init__(
        self,
        split: Split,
        *,
        first: int,
        batches: int,
        clips: int,
        frames: int,
        questions: int,
        orders: int,
        processor: Any,
    ) -> None:
        self._split, self._first, self._batches, self._clips = split, first, batches, clips
        self._frames, self._questions, self._orders = frames, questions, orders
        self._tokenizer = processor.tokenizer
        turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "QUESTION"}]}]
        prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
        head, tail = prompt.split("<video>")
        self._head = torch.tensor(self._tokenizer.encode(head))
        self._before, self._after = tail.split("QUESTION")

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        begin = self._first + batch * self._clips
        lessons = [self._lesson(number) for number in range(begin, begin + self._clips)]
        width = max(len(row) for _, rows, _, _ in lessons for row in rows)

        def stack(rows: list[list[Tensor]], padding: int) -> Tensor:
            full = torch.full((self._clips, self._questions + self._orders, width), padding)
            for own, clip in zip(rows, full, strict=True):
                padded = pad_sequence(own, batch_first=True, padding_value=padding)
                clip[: padded.shape[0], : padded.shape[1]] = padded
            return full

        kinds = torch.full((self._clips, self._questions + self._orders), -1)
        for row, (_, _, _, own) in zip(kinds, lessons, strict=True):
            row[: len(own)] = torch.tensor(own)
        return {
            "pixels": torch.stack([pixels for pixels, _, _, _ in lessons]),
            "head": self._head,
            "tokens": stack([tokens for _, tokens, _, _ in lessons], 0),
            "target": stack([target for _, _, target, _ in lessons], NO_TARGET),
            "kind": kinds,
        }

    def _lesson(self, number: int) -> tuple[Tensor, list[Tensor], list[Tensor], list[int]]:
        world, rng = make_clip(self._split, number, self._frames), np.random.default_rng(number)
        asked = choose(ask_all(world, rng), self._questions, rng)
        asked += ask_orders(world, rng, self._orders)
        tokens, target = [], []
        for question in asked:
            prompt = self._tokenizer.encode(self._before + question.prompt + self._after)
            said = [*self._tokenizer.encode(question.said), self._tokenizer.eos_token_id]
            tokens.append(torch.tensor([*prompt, *said[:-1]]))
            target.append(torch.tensor([NO_TARGET] * (len(prompt) - 1) + said))
        return to_pixels(draw(world)), tokens, target, [KINDS.index(question.kind) for question in asked]


class Pupil(nn.Module):
    """The Video LLM, and its loss on lessons.

    A decoder that learns from answers alone finds what is in a frame, and not when: its visual tokens have to be asked.
    A linear `clock`, used in training only, reads their frame's number behind the second layer.

    Args:
        model: a `LlavaOnevisionForConditionalGeneration`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        model.model.vision_tower.requires_grad_(False)
        self.decoder = model.model.language_model
        with torch.no_grad():
            for layer in self.decoder.layers:
                # a deep and narrow stack learns from the start if its layers begin as the identity
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
        self.clock = nn.Linear(self.decoder.config.hidden_size, 1)
        self._is_clocked = False

    def use(self, depth: int, *, is_clocked: bool = False) -> None:
        """Run the first layers only; those behind them stay the identity that they began as.

        Args:
            depth: how many.
            is_clocked: whether visual tokens have to tell the time.
        """
        self.decoder.config.num_hidden_layers = depth
        self._is_clocked = is_clocked

    def visual(self, pixels: Tensor) -> Tensor:
        """Encode `[B, n, 3, 64, 64]` to the tokens that the decoder reads, newline included, `[B, 16 n + 1, D]`."""
        model = self.model.model
        clips = len(pixels)
        with torch.no_grad():
            tower = model.vision_tower
            states = tower.embeddings(pixels.flatten(0, 1))
            for layer in tower.encoder.layers:
                states = layer(states, None)
        pooled = model.apply_pooling(model.multi_modal_projector(states)).reshape(clips, -1, states.shape[-1])
        return torch.cat((pooled, model.image_newline.expand(clips, 1, -1)), 1)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return next-token logits of every token whose target is an answer's, `[A, V]`."""
        clips, _, width = batch["tokens"].shape
        embed = self.model.get_input_embeddings()
        visual = self.visual(batch["pixels"])
        tokens = embed(batch["tokens"].flatten(1))
        hidden = torch.cat((embed(batch["head"]).expand(clips, -1, -1), visual, tokens), 1)
        shared = hidden.shape[1] - tokens.shape[1]
        places = torch.arange(hidden.shape[1], device=hidden.device)
        places[shared:] = shared + (places[shared:] - shared) % width
        implementation, self.decoder.config._attn_implementation = (
            self.decoder.config._attn_implementation,
            "questions_apart",
        )
        try:
            states = self.decoder(
                inputs_embeds=hidden,
                attention_mask={"full_attention": None},  # `_attend` knows who sees whom
                position_ids=places[None],
                use_cache=False,
                shared=shared,
                width=width,
            ).last_hidden_state[:, shared:]
        finally:
            self.decoder.config._attn_implementation = implementation
        answers: Tensor = self.model.lm_head(states[batch["target"].flatten(1) != NO_TARGET])
        return answers

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Counter[str]]:
        """Return the cross-entropy of the answers, and how many questions of each kind were asked and answered rightly.

        Where visual tokens have to tell the time, the loss holds its squared error, in units of half a clip.
        """
        wanted = batch["target"] != NO_TARGET
        states: list[Tensor] = []
        hook = self.decoder.layers[CLOCKED].register_forward_hook(lambda _, __, output: states.append(output))
        try:
            logits, target = self.logits(batch), batch["target"][wanted]
        finally:
            hook.remove()
        loss = cross_entropy(logits, target)
        if self._is_clocked:
            loss = loss + self._clock_loss(states[0], len(batch["head"]), batch["pixels"].shape[1])
        wrong = torch.zeros_like(batch["kind"], dtype=torch.bool)
        clip, question, _ = wanted.nonzero().T
        missed = logits.argmax(-1) != target
        wrong[clip[missed], question[missed]] = True
        counts: Counter[str] = Counter()
        for kind, failed in zip(batch["kind"].flatten().tolist(), wrong.flatten().tolist(), strict=True):
            if kind >= 0:
                counts[f"asked {KINDS[kind]}"] += 1
                counts[f"right {KINDS[kind]}"] += not failed
        return loss, counts

    def _clock_loss(self, states: Tensor, head: int, frames: int) -> Tensor:
        visual = states[:, head : head + frames * TOKENS].unflatten(1, (frames, TOKENS))
        visual = visual * visual.square().mean(-1, keepdim=True).rsqrt()  # as the next layer's norm has them
        time = torch.arange(frames, device=states.device) * (2 / FRAMES) - 1
        told: Tensor = self.clock(visual).squeeze(-1).float()
        return (told - time[:, None]).square().mean()


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    shared: int,
    width: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention over the shared tokens, and for each question over the shared ones and its own.

    Args:
        module: the attention layer.
        query: `[B, H, L, d]`.
        key, value: `[B, G, L, d]`.
        attention_mask: none is needed.
        scaling: of the scores.
        shared: tokens before the questions, P.
        width: tokens of a question, T; L is P + Q T.

    Returns:
        `[B, L, H, d]`.
    """
    clips, heads, _length, size = query.shape
    key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
    first = scaled_dot_product_attention(
        query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], is_causal=True, scale=scaling
    )
    asked = query[:, :, shared:] * scaling
    own_query, own_key, own_value = (
        part[:, :, shared:].reshape(clips, heads, -1, width, size) for part in (query * scaling, key, value)
    )
    past = (asked @ key[:, :, :shared].mT).view(clips, heads, -1, width, shared)
    own = own_query @ own_key.mT
    later = torch.ones(width, width, dtype=torch.bool, device=query.device).triu(1)
    weights = torch.cat((past, own.masked_fill(later, float("-inf"))), -1).softmax(-1)
    seen = weights[..., :shared].flatten(2, 3) @ value[:, :, :shared]
    second = seen + (weights[..., shared:] @ own_value).flatten(2, 3)
    return torch.cat((first, second), 2).transpose(1, 2), None


AttentionInterface.register("questions_apart", _attend)
