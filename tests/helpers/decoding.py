"""Greedy decoding in the two ways that give Qwen-VL's new tokens different positions."""

import torch
from torch import Tensor


def by_generate(model, inputs: dict[str, Tensor], steps: int, **settings) -> tuple[Tensor, Tensor]:
    """`[B, steps]` tokens that `generate` puts after the prompts, and their `[B, steps, V]` logits."""
    output = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    return output.sequences[:, -steps:], torch.stack(output.logits, 1)


@torch.no_grad()
def by_loop(model, inputs: dict[str, Tensor], steps: int, **settings) -> tuple[Tensor, Tensor]:
    """The same by a hand-written loop with a cache, which leaves new positions to the model.

    A padded batch needs its mask. With a mask, Qwen-VL's models make positions of the whole sequence for one token and
    fail, so the loop then gives the last of those positions itself.
    """
    mask, logits, tokens = inputs["attention_mask"], [], []
    padded = not mask.all()
    output = model(**inputs, use_cache=True, **settings)
    while True:
        logits.append(output.logits[:, -1])
        tokens.append(logits[-1].argmax(-1))
        if len(tokens) == steps:
            return torch.stack(tokens, 1), torch.stack(logits, 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        more = {"attention_mask": mask} if padded else {}
        if padded and hasattr(model.model, "rope_deltas"):
            more["position_ids"] = (mask.sum(1, keepdim=True) - 1 + model.model.rope_deltas).expand(3, -1, -1)
        output = model(input_ids=tokens[-1][:, None], past_key_values=output.past_key_values, use_cache=True, **more)
