import pytest
import torch
import triton

import adatp_kernels.dispatch as dispatch
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import interpreted, resolve
from adatp_kernels.score import score
from adatp_kernels.select import select

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))


@pytest.fixture
def compiled(monkeypatch):
    """As in a process without the interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "INSTALLED", False)


def calls(device):
    """The three operations, each on a few tensors of `device`."""
    score_of = torch.zeros(1, 3, device=device)
    ids = torch.zeros(1, 3, dtype=torch.int64, device=device)
    key = torch.zeros(1, 1, 3, 4, device=device)
    keep = torch.ones(1, 3, dtype=torch.bool, device=device)
    return {
        "score": lambda impl: score(key, key, ids, (0, 2), scale=1.0, impl=impl),
        "select": lambda impl: select(score_of, ids, ids[:, :2], ids[:, :2], positions=2, impl=impl)[0],
        "compact": lambda impl: compact(keep, [3], [score_of], impl=impl)[0],
    }


OPERATIONS = list(calls("cpu"))


@pytest.mark.parametrize("device", [CPU, CUDA, META])
def test_the_reference_runs_everywhere(device):
    assert resolve("reference", device) == "reference"


def test_auto_takes_triton_on_a_gpu_and_the_reference_elsewhere(compiled):
    assert resolve("auto", CUDA) == resolve("auto", torch.device("cuda:3")) == "triton"
    assert resolve("auto", CPU) == resolve("auto", META) == resolve("auto", torch.device("mps")) == "reference"


def test_auto_on_the_host_stays_the_reference_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("auto", CPU) == "reference"


def test_auto_without_triton_is_the_reference_on_a_gpu_too(without_triton):
    assert resolve("auto", CUDA) == "reference"


@pytest.mark.parametrize("device", [CUDA, torch.device("cuda:1"), META])
def test_triton_runs_on_a_gpu_and_on_shapes_alone(compiled, device):
    assert resolve("triton", device) == "triton"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_triton_elsewhere_says_what_to_do(compiled, device):
    with pytest.raises(RuntimeError, match=rf"(?s)'triton'.*'{device}'.*GPU.*impl='auto'.*TRITON_INTERPRET=1"):
        resolve("triton", torch.device(device))


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "on", "yes", "y", "0", "", "false", "no", "2"])
def test_the_interpreter_is_what_the_environment_says_to_triton(monkeypatch, value):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    on = triton.knobs.runtime.interpret
    assert interpreted() is on
    if on:
        assert resolve("triton", CPU) == "triton"
    else:
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
            resolve("triton", CPU)


@pytest.mark.parametrize("device", [CPU, CUDA, META])
def test_triton_that_is_not_installed_is_said_so(without_triton, monkeypatch, device):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="not installed"):
        resolve("triton", device)


@pytest.mark.parametrize("impl", ["nonsense", "Reference", "TRITON", "", None])
@pytest.mark.parametrize("device", [CPU, CUDA, META])
def test_unknown_names_are_refused(impl, device):
    with pytest.raises(ValueError, match=r"\bimpl\b.*'auto', 'reference' or 'triton'"):
        resolve(impl, device)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_refuses_an_unknown_name(operation):
    with pytest.raises(ValueError, match=r"\bimpl\b"):
        calls("cpu")[operation]("nonsense")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_never_becomes_the_reference(compiled, operation):
    with pytest.raises(RuntimeError, match="impl='triton' cannot run"):
        calls("cpu")[operation]("triton")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_that_is_missing_never_becomes_the_reference(without_triton, operation):
    with pytest.raises(RuntimeError, match="impl='triton' cannot run"):
        calls("meta")[operation]("triton")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
def test_shapes_alone_go_through_every_implementation(operation, impl):
    result = calls("meta")[operation](impl)
    assert result.device == META
    assert result.shape == (1, 2 if operation == "score" else 3)
