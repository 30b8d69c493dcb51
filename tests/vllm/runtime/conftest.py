"""The tests of serving need vLLM, in an environment of its own: `make test-vllm` sets it up."""

import os
from pathlib import Path

import pytest

from adatp.vllm.version import installed

STUB = Path(__file__).with_name("stub")

if installed() is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_CPU_KVCACHE_SPACE="1",  # GiB
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the tests look into the engine; those of processes set it back
        VLLM_LOGGING_LEVEL="WARNING",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join(filter(None, [str(STUB), os.environ.get("PYTHONPATH")])),
    )


@pytest.fixture(scope="session")
def onevision(tmp_path_factory) -> Path:
    """A small LLaVA-OneVision of 18 layers."""
    from vllm_models import save_onevision

    return save_onevision(tmp_path_factory.mktemp("onevision"))
