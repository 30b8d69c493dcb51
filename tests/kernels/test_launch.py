"""The host's part of a launch."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

pytest.importorskip("triton")

from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

from adatp_kernels import launch
from adatp_kernels.launch import Remembered, cdiv, next_power_of_2, operator


def test_integers_are_those_of_exact_arithmetic():
    for number in range(1, 300):
        assert next_power_of_2(number) == 2 ** math.ceil(math.log2(number))
        assert [cdiv(number, divisor) for divisor in range(1, 40)] == [math.ceil(number / d) for d in range(1, 40)]


@operator("adatp_test::twice")
def twice(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


@twice.register_fake
def _(tensor):
    return torch.empty_like(tensor)


class TestOperator:
    @pytest.fixture
    def through(self, monkeypatch):
        """What is called through PyTorch."""
        seen = []
        call = torch._ops.OpOverload.__call__

        def noted(self, *args, **kwargs):
            if self.namespace == "adatp_test":
                seen.append(self.name())
            return call(self, *args, **kwargs)

        monkeypatch.setattr(torch._ops.OpOverload, "__call__", noted)
        return seen

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_nothing_is_in_between_where_nobody_looks(self, through, mode):
        with mode():
            assert twice(torch.ones(3)).tolist() == [2, 2, 2]
        assert through == []

    def test_autograd_sees_it_and_refuses(self, through):
        result = twice(torch.ones(3, requires_grad=True))
        assert through == ["adatp_test::twice"]
        with pytest.raises(RuntimeError, match="autograd"):
            result.sum().backward()

    @torch.no_grad()
    def test_modes_and_meta_tensors_see_it(self, through):
        with FakeTensorMode():
            assert twice(torch.ones(3)).shape == (3,)
        assert twice(torch.ones(3, device="meta")).shape == (3,)
        assert through == ["adatp_test::twice"] * 2

    @torch.no_grad()
    def test_transforms_see_it(self, through):
        assert torch.vmap(twice)(torch.ones(3, 2)).tolist() == [[2, 2]] * 3
        assert through == ["adatp_test::twice"]

    @torch.no_grad()
    def test_a_compiler_sees_it(self):
        graphs = []

        def backend(graph, inputs):
            graphs.append(str(graph.code))
            return graph

        torch._dynamo.reset()
        compiled = torch.compile(lambda tensor: twice(tensor), backend=backend, fullgraph=True)
        assert compiled(torch.ones(3)).tolist() == [2, 2, 2]
        assert "adatp_test.twice" in graphs[0]


TENSOR = torch.zeros(64)
ARGUMENTS = [
    *(
        0,
        1,
        2,
        16,
        17,
        32,
        -1,
        -16,
        2**31 - 1,
        2**31 - 16,
        2**31,
        2**31 + 1,
        -(2**31),
        -(2**31) - 16,
        2**62,
        2**63,
        2**63 + 1,
    ),
    *(True, False, 0.5, 1.0, None),
    *(TENSOR.to(dtype)[begin:] for dtype in (torch.float32, torch.bfloat16, torch.int64) for begin in (0, 1, 16)),
    *((), (TENSOR, 1), (TENSOR[1:], 1), (TENSOR, 16), (TENSOR.half(), 1), (TENSOR, TENSOR)),
]


def test_what_triton_tells_apart_is_told_apart():
    """Else a program would be launched that was compiled for something else."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    found = []
    for argument in ARGUMENTS:
        specialised = native_specialize_impl(type(backend), argument, False, True, True)
        found.append((str(specialised), launch._kind(argument)))
    different = 0
    for (one, our_one), (other, our_other) in product(found, repeat=2):
        if one != other:
            assert our_one != our_other, f"{one} and {other}"
            different += 1
    assert different > len(ARGUMENTS)


class TestRemembered:
    class Kernel:
        """Compiles, and says what is launched by whom."""

        __name__ = "kernel"
        params = tuple(SimpleNamespace(name=name) for name in ("pointer", "count", "BLOCK", "FLAG"))

        def __init__(self):
            self.launches = []

        def __getitem__(self, grid):
            def run(*args, **constants):
                self.launches.append(("compiles", grid, args, constants))
                return self.Program(self)

            return run

        class Program:
            def __init__(self, kernel):
                self.kernel = kernel

            def __getitem__(self, grid):
                return lambda *args: self.kernel.launches.append(("knows", grid, args))

    @pytest.fixture
    def kernel(self, monkeypatch):
        monkeypatch.setattr(launch, "INTERPRETED", False)
        self.device = 0
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.device)
        return self.Kernel()

    def test_the_second_launch_asks_no_more(self, kernel):
        remembered = Remembered(kernel)
        for count in (3, 5):
            # named in another order than they are declared
            remembered[7, 2](TENSOR, count, FLAG=True, BLOCK=64, num_warps=4)
        assert kernel.launches == [
            ("compiles", (7, 2), (TENSOR, 3), {"FLAG": True, "BLOCK": 64, "num_warps": 4}),
            ("knows", (7, 2, 1), (TENSOR, 5, 64, True)),
        ]

    def test_another_kind_or_constant_or_device_compiles(self, kernel):
        remembered = Remembered(kernel)
        remembered[1, 1](TENSOR, 3, BLOCK=64, FLAG=True)
        remembered[1, 1](TENSOR, 16, BLOCK=64, FLAG=True)
        remembered[1, 1](TENSOR[1:], 3, BLOCK=64, FLAG=True)
        remembered[1, 1](TENSOR, 3, BLOCK=32, FLAG=True)
        remembered[1, 1](TENSOR, 3, BLOCK=64, FLAG=True, num_warps=8)
        self.device = 1
        remembered[1, 1](TENSOR, 3, BLOCK=64, FLAG=True)
        assert [launched[0] for launched in kernel.launches] == ["compiles"] * 6

    def test_the_interpreter_is_left_alone(self, kernel, monkeypatch):
        monkeypatch.setattr(launch, "INTERPRETED", True)
        remembered = Remembered(kernel)
        for _ in range(2):
            remembered[1, 1](TENSOR, 3, BLOCK=64, FLAG=True)
        assert [launched[0] for launched in kernel.launches] == ["compiles"] * 2
