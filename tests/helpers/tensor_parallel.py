"""One rank of a tensor-parallel run: does it keep, and generate, what the whole model does?

    torchrun --nproc-per-node 2 tests/helpers/tensor_parallel.py CHECKPOINT

Each rank prints a line of JSON for every method that scores in the decoder.
"""

import json
import sys

import torch
import torch.distributed
from small_llava_video import small_llava_video
from transformers import AutoModelForImageTextToText
from videollm import make_inputs

import adatp
from adatp.small.untrained import load_untrained

METHODS = ("adatp", "fastv", "pyramiddrop", "dycoke")


def main(checkpoint: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, tp_plan="auto", dtype=torch.float32).eval()
    make = small_llava_video if model.config.model_type == "llava_video" else load_untrained
    whole = make(image_size=84, layers=16)
    inputs = make_inputs(whole, ["What is in the picture?", "Why?"])
    for method in METHODS:
        results = []
        for each in (whole.model, model):
            with adatp.apply(each, whole.processor, method, relevance=whole.relevance) as pruned:
                tokens = each.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
                kept = [s.kept_mask(layer).flatten() for s in pruned.report.samples for layer in range(16)]
                results.append((tokens, torch.cat(kept), pruned.report.cache_bytes))
        (tokens, kept, size), (ours, ours_kept, ours_size) = results
        found = {
            "method": method,
            "rank": torch.distributed.get_rank(),
            "ranks": model.tp_size,
            "heads": model.model.language_model.layers[0].self_attn.k_proj(torch.zeros(1, 1, 128)).shape[-1] // 32,
            "dropped": int((~kept).sum()),
            "same tokens kept": torch.equal(ours_kept, kept),
            "same answer": torch.equal(ours, tokens),
            "same cache": ours_size == size,
        }
        print("\n" + json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
