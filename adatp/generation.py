"""What is settled before `generate` computes anything: where the prompt ends, and what cannot work."""

import copy
from typing import Any

from adatp.models.family import Family

# what serves requests from pages of one cache, in which every layer holds the same tokens
CONTINUOUS_BATCHING = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
_CACHES = ("dynamic", "static")


def prepare(model: Any, family: Family, given: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """The length of the prompts, and what to change in the arguments of `generate`.

    Args:
        model: whose generate it is.
        family: of the model.
        given: its arguments by name.

    Raises:
        ValueError: a prompt with a video, and a setting under which it cannot be pruned.
    """
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    ids = given.get("inputs") if ids is None else ids
    if embeds is not None:
        length, ids = embeds.shape[1], family.ids_of(embeds)
    elif ids is not None:
        length = ids.shape[1]
    else:
        return None, {}
    if not family.has_video(ids.cpu()):
        return length, {}
    _refuse(model, given)
    encoded = given.get("mm_encoder_outputs")
    if encoded is None:
        return length, {}
    # beam search repeats the features in place, and the caller may want to use them again
    return length, {"mm_encoder_outputs": {name: copy.copy(value) for name, value in encoded.items()}}


def _refuse(model: Any, given: dict[str, Any]) -> None:
    def setting(name: str) -> Any:
        sources = (
            given.get(name),
            *(getattr(c, name, None) for c in (given.get("generation_config"), model.generation_config)),
        )
        return next((value for value in sources if value is not None), None)

    if setting("prefill_chunk_size") is not None:
        raise ValueError(
            "prefill_chunk_size cannot be set for a prompt with a video: chunked prefill would have to cut tokens "
            "before it has read the question that scores them"
        )
    cache = setting("cache_implementation")
    if cache is not None and cache not in _CACHES:
        raise ValueError(
            f"cache_implementation={cache!r} cannot be pruned: every layer keeps other tokens, on the model's device, "
            f"which only {' and '.join(map(repr, _CACHES))} caches can hold"
        )
    if setting("assistant_early_exit") is not None or given.get("assistant_model") is model:
        raise ValueError("a model cannot assist itself while it is pruned: pass another model as assistant_model")
