"""What is sent to a GPU, held on a machine without one: the copies themselves are stand-ins."""

import pytest
import torch

from adatp.tensors.transfer import PAGEABLE, send

GPU = torch.device("cuda", 0)


@pytest.fixture
def copies(monkeypatch):
    """The steps of every transfer."""
    steps = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: steps.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *to, **how: steps.append((*to, how)) or self)
    return steps


@pytest.mark.parametrize(("values", "pinned"), [(PAGEABLE // 8, False), (PAGEABLE // 8 + 1, True)])
def test_what_cuda_does_not_copy_aside_at_once_is_pinned(copies, values, pinned):
    send(torch.zeros(values, dtype=torch.int64), GPU)
    assert copies == [*(["pin"] if pinned else []), (GPU, {"non_blocking": True})]


def test_only_host_tensors_on_their_way_to_cuda_are_pinned(copies):
    send(torch.zeros(PAGEABLE), torch.device("cpu"))
    send(torch.zeros(PAGEABLE, device="meta"), GPU)
    assert "pin" not in copies


def test_values_arrive():
    assert torch.equal(send(torch.arange(9), torch.device("cpu")), torch.arange(9))
