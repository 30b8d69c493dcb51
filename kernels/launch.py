"""The host's part of a kernel launch. It costs time at every cut."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from adatp_kernels.dispatch import interpreted

INTERPRETED = interpreted()  # read once: Triton, too, decides this when a kernel is defined
INTERPRETED_PROCESSORS = 4  # for the interpreter, so that it splits work as a GPU does


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of streaming multiprocessors (compute units) of a GPU. The slow driver call runs only once."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def cdiv(dividend: int, divisor: int) -> int:
    """Divide positive integers and round up. Triton's own `cdiv` takes 20 times as long, as it looks for constants."""
    return -(-dividend // divisor)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least a positive integer."""
    return 1 << (number - 1).bit_length()


class Remembered:
    """A Triton kernel that remembers its compiled programs. It is launched like Triton's own, `kernel[grid](...)`.

    At each launch, Triton searches for the program by every argument and every option. This takes 15 us; here a launch
    takes 7 us.

    Args:
        kernel: a function under `triton.jit`. Constants and options are passed by name, always in the same order.

    Attributes:
        kernel: the function.
        programs: compiled programs, by the properties of the arguments that they were compiled for.
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
    """Return what Triton compiles for: an argument's type, and whether its address or value is a multiple of 16."""
    kind = type(argument)
    if kind is int:
        if argument == 1:
            return "1"  # a constant
        if -(2**31) <= argument < 2**31:
            return "multiple" if argument % 16 == 0 else "any"
        return argument % 16 == 0, argument >= 2**63  # int64 and uint64
    if kind is Tensor:
        return argument.dtype if argument.data_ptr() % 16 == 0 else (argument.dtype,)
    return tuple(map(_kind, argument)) if kind is tuple else kind


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that launches kernels as an operator of PyTorch.

    The call goes through PyTorch if something must see the operator: a compiler, a mode such as `FakeTensorMode`, a
    function transform, or autograd (which refuses it). Otherwise the function is called directly, which saves time on
    the host.

    Args:
        name: name of the operator, `"namespace::name"`.

    Returns:
        A decorator for a function whose first argument is a tensor. The decorated function takes positional arguments
        and has the operator's `register_fake`.
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
    """Tell whether a compiler, a mode, a transform or autograd must see an operator on the tensor."""
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(tensor) is not Tensor
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
