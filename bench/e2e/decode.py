"""Decoding after a prefill: tokens a second, and the bytes of the cache."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adatp.evaluation.measure import applied
from adatp.evaluation.session import Loaded
from adatp.hf.stopwatch import now
from adatp.methods import Method


@torch.inference_mode()
def decode(
    loaded: Loaded, inputs: Mapping[str, Any], method: Method | None, batches: Sequence[int], steps: int
) -> dict[str, Any]:
    """Prefill once, then decode batches of copies of it.

    Args:
        loaded: the model.
        inputs: inputs of one prompt.
        method: the method to prune with; None for no pruning.
        batches: the numbers of copies to decode at a time.
        steps: number of timed tokens of each copy.

    Returns:
        `cache_bytes` of one sequence, and `tokens_per_second` by batch.
    """
    with applied(loaded, method):
        cache = loaded.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        rates = {}
        for batch in batches:
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(batch)
            token = torch.zeros(batch, 1, dtype=torch.int64, device=loaded.model.device)
            loaded.model(input_ids=token, past_key_values=own)  # warms up
            begin = now()
            for _ in range(steps):
                loaded.model(input_ids=token, past_key_values=own)
            rates[str(batch)] = batch * steps / (now() - begin)
            del own
    return {
        "cache_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        "tokens_per_second": rates,
    }
