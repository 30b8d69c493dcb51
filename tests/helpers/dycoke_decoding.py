"""DyCoke's decoding once more, step by step in plain loops, with caches of its own."""

import torch
from recompute import attend, project
from torch import Tensor


@torch.no_grad()
def decode(model, prompt: Tensor, visual: Tensor, tokens: Tensor, *, layer: int, p: float) -> tuple[Tensor, list[bool]]:
    """Logits of the prompt's end and of every generated token, and whether each step chose what to attend to.

    From the published code: layer L - 1's attention of the new token to the visual tokens (all but the last), the mean
    over heads, says at each step which of them the layers from L on attend to; where it is like that of the step
    before (cosine 0.9), they attend to everything.

    Args:
        model: the plain model.
        prompt: `[W, D]` what the decoder is given, compressed.
        visual: `[n]` where in it the visual tokens are.
        tokens: `[t]` generated.
        layer: L.
        p: P, the share of the visual tokens that is left out.
    """
    decoder = model.model.language_model
    embeds = torch.cat([prompt, model.get_input_embeddings()(tokens)])
    cos, sin = decoder.rotary_emb(embeds, torch.arange(len(embeds))[None])
    candidates = visual[:-1].tolist()
    keys, values, logits, chose = {}, {}, [], []
    last = None
    for begin, end in [(0, len(prompt)), *((t, t + 1) for t in range(len(prompt), len(embeds)))]:
        hidden, hide = embeds[begin:end], torch.ones(end - begin, end, dtype=torch.bool).triu(begin + 1)
        for index, block in enumerate(decoder.layers):
            query, key, value = project(block, hidden, cos[0, begin:end], sin[0, begin:end])
            keys[index] = torch.cat([keys[index], key], 1) if begin else key
            values[index] = torch.cat([values[index], value], 1) if begin else value
            hidden, weights = attend(block, hidden, query, keys[index], values[index], hide)
            if begin and index == layer - 1:
                attention = [float(weights[:, 0, token].mean()) for token in candidates]
                steady = last is not None and cosine(attention, last) >= 0.9
                chose.append(not steady)
                last = attention
                if not steady:
                    number = int(len(candidates) * (1 - p))
                    best = sorted(range(len(candidates)), key=lambda i: (-attention[i], i))[:number]
                    for i in set(range(len(candidates))) - set(best):
                        hide[:, candidates[i]] = True
        logits.append(model.lm_head(decoder.norm(hidden[-1])))
    return torch.stack(logits), chose


def cosine(u: list[float], v: list[float]) -> float:
    """Of two vectors."""
    dot = sum(a * b for a, b in zip(u, v, strict=True))
    return dot / (sum(a * a for a in u) * sum(b * b for b in v)) ** 0.5
