"""Time of a prefill and of a cut for growing numbers of frames, and of a prefill for growing numbers of prompts."""

import gc

import torch

from adatp.methods import AdaTP
from bench.e2e.models import Build, make
from bench.e2e.scale import cut, vary
from bench.gpu.prefill import BUILDS
from bench.inputs import DEVICE, DTYPE
from bench.record import Record

ON_GPU = DEVICE.type == "cuda"
# Frames and prompts of each model, short ones first. An unpruned prefill of 7B at 1,024 frames takes about 20 seconds.
SIZES = (
    [(8, 1), (16, 1), (32, 1), (64, 1), (128, 1), (256, 1), (512, 1), (1024, 1), (8, 8), (8, 32)]
    if ON_GPU
    else [(1, 1), (2, 1), (1, 2)]
)
LONGEST = {"onevision-0.5b": 1024, "onevision-7b": 256}  # frames
CUTS = (8, 32, 128, 512, 1024) if ON_GPU else (1, 2)
ROUNDS = 3 if ON_GPU else 1


def measure(record: Record) -> None:
    """Measure the cuts first, which are short; then prefills, unpruned and with AdaTP at p = 1."""
    for build in BUILDS:
        for frames in CUTS:
            record.add("cuts", {"model": build.name, **cut(build.name, frames)})
    for build in BUILDS:
        _vary(record, build)
        gc.collect()
        torch.cuda.empty_cache()


def _vary(record: Record, build: Build) -> None:
    loaded = make(build, DEVICE, DTYPE)
    method = AdaTP() if build.is_whole else AdaTP(first=1, last=1)
    for frames, batch in SIZES:
        case = {"frames": frames, "text_tokens": build.shape.text_tokens, "batch": batch}
        if frames > LONGEST[build.name]:
            record.add("rows", {"model": str(build), **case, "refused": "takes too long"})
            continue
        try:
            (row,) = vary(loaded, build, method, [case], rounds=ROUNDS, tell=print)
        except torch.OutOfMemoryError:
            row = {**case, "refused": "out of memory"}
            torch.cuda.empty_cache()
        record.add("rows", {"model": str(build), **row})
