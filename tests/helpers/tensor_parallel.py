"""One rank of a tensor-parallel run: does it keep, and generate, what the whole model does?

    torchrun --nproc-per-node 2 tests/helpers/tensor_parallel.py CHECKPOINT

Each rank prints a line of JSON for every method that scores in the decoder.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed
from small_llava_video import small_llava_video
from small_models import make_model
from small_prompts import Video, make_tokenizer, user_turn
from small_prompts import make_inputs as make_prompts
from transformers import AutoModelForImageTextToText
from videollm import make_inputs

import adatp
from adatp.small.untrained import load_untrained

METHODS = ("adatp", "fastv", "pyramiddrop", "dycoke")


def main(checkpoint: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, tp_plan="auto", dtype=torch.float32).eval()
    whole, processor, relevance, inputs = setting(model.config)
    width, head = whole.config.text_config.hidden_size, whole.model.language_model.layers[0].self_attn.head_dim
    for method in METHODS:
        results = []
        for each in (whole, model):
            if method == "adatp" and relevance is None:
                method = adatp.AdaTP(global_debias=False)
            with adatp.apply(each, processor, method, relevance=relevance) as pruned:
                tokens = each.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
                layers = [s.kept_masks(layer) for s in pruned.report.samples for layer in range(16)]
                kept = [mask.flatten() for masks in layers for mask in masks]
                results.append((tokens, torch.cat(kept), pruned.report.cache_bytes))
        (tokens, kept, size), (ours, ours_kept, ours_size) = results
        found = {
            "method": pruned.method.name,
            "rank": torch.distributed.get_rank(),
            "ranks": model.tp_size,
            "heads": model.model.language_model.layers[0].self_attn.k_proj(torch.zeros(1, 1, width)).shape[-1] // head,
            "dropped": int((~kept).sum()),
            "same tokens kept": torch.equal(ours_kept, kept),
            "same answer": torch.equal(ours, tokens),
            "same cache": ours_size == size,
        }
        print("\n" + json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


def setting(config: Any) -> tuple[Any, Any, Any, Any]:
    """The whole model, its processor, its SigLIP and prompts."""
    model_type = config.model_type
    if model_type.startswith("llava"):
        whole = (small_llava_video if model_type == "llava_video" else load_untrained)(image_size=84, layers=16)
        return *whole, make_inputs(whole, ["What is in the picture?", "Why?"])
    kind = "internvl-qwen3" if model_type == "internvl" else model_type
    model, tokenizer = make_model(kind), make_tokenizer(kind)
    wide = Video(4) if model_type == "internvl" else Video(5, 8, 12)
    prompts = [user_turn(Video(7), "What is it?"), user_turn(wide, "Why?")]
    return model, tokenizer, None, make_prompts(kind, model, tokenizer, prompts)


if __name__ == "__main__":
    main(sys.argv[1])
