"""The host's part of a launch, which is paid at every cut."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from adatp_kernels.dispatch import interpreted

INTERPRETED = interpreted()  # Triton decides when a kernel is defined, and no later
INTERPRETED_PROCESSORS = 4  # so that the interpreter, which has none, still splits work as a GPU does


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of a GPU. Asked for once: it is a driver call."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def cdiv(dividend: int, divisor: int) -> int:
    """Quotient of positive integers, rounded up. Triton's own takes 20 times as long: it looks for constants."""
    return -(-dividend // divisor)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a positive integer."""
    return 1 << (number - 1).bit_length()


class Remembered:
    """A Triton kernel that remembers its programs; it is launched as Triton's own, `kernel[grid](...)`.

    Triton looks for the program anew at each launch, by every argument and every option, which takes it 15 us; here it
    takes 7.

    Args:
        kernel: a function under `triton.jit`. Constants and options are passed by name, in one order.

    Attributes:
        kernel: the same.
        programs: by what a program is compiled for.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.programs: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
        self.__name__: str = kernel.__name__

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., Any]:
        launch: Callable[..., Any] = self.kernel[grid] if INTERPRETED else functools.partial(self._launch, grid)
        return launch

    def _launch(self, grid: tuple[int, int], *args: Any, **constants: Any) -> None:
        key = (torch.cuda.current_device(), *map(_kind, args), *constants.values())
        known = self.programs.get(key)
        if known is None:
            names = [parameter.name for parameter in self.kernel.params[len(args) :]]
            program = self.kernel[grid](*args, **constants)
            self.programs[key] = program, tuple(constants[name] for name in names)
            return
        program, others = known
        program[grid[0], grid[1], 1](*args, *others)


def _kind(argument: Any) -> Any:
    """All that Triton compiles for of an argument: its type, and whether its address or value is a multiple of 16."""
    kind = type(argument)
    if kind is int:
        if argument == 1:
            return "1"  # a constant
        if -(2**31) <= argument < 2**31:
            return "multiple" if argument % 16 == 0 else "any"
        return argument % 16 == 0, argument >= 2**63  # types of their own
    if kind is Tensor:
        return argument.dtype if argument.data_ptr() % 16 == 0 else (argument.dtype,)
    return tuple(map(_kind, argument)) if kind is tuple else kind


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register what launches kernels as an operator of PyTorch.

    It is called through PyTorch where someone has to see the operator: a compiler, a mode such as `FakeTensorMode`, a
    function transform, autograd (which refuses it). Else it is called at once, which saves the host a few calls.

    Args:
        name: of the operator, `"namespace::name"`.

    Returns:
        A decorator of a function whose first argument is a tensor. What it returns takes positional arguments, and has
        the operator's `register_fake`.
    """

    def register(launch: Callable[..., Any]) -> Any:
        registered: Any = torch.library.custom_op(name, mutates_args=())(launch)

        @functools.wraps(launch)
        def call(*args: Any) -> Any:
            return registered(*args) if _is_seen(args[0]) else launch(*args)

        call.register_fake = registered.register_fake  # type: ignore[attr-defined]
        return call

    return register


def _is_seen(tensor: Tensor) -> bool:
    """Whether an operator on the tensor is more than its launches."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(tensor) is not Tensor
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
