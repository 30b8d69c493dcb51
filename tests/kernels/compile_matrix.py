"""What every kernel takes of every chip. No GPU is needed: the launchers themselves run, but compile where they launch.

`python tests/kernels/compile_matrix.py` prints the table; test_compile_matrix.py holds it to its limits.
"""

import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import torch
import triton
from random_prefill import prefill
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import adatp.engine.cuts
from adatp.layout import PromptLayout
from adatp_kernels import compact, score, select
from adatp_kernels.compact_triton import MAX_PROGRAMS, compact_triton, token_block
from adatp_kernels.dispatch import interpreted
from adatp_kernels.launch import Remembered
from adatp_kernels.score_triton import score_triton
from adatp_kernels.select_triton import LARGE, select_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ALL, SOME = tuple(TARGETS), ("sm_80", "sm_90", "gfx942")
# Bytes of shared memory that one program may have: CUDA programming guide, compute capabilities; CDNA3 ISA, LDS.
SHARED_MEMORY = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10,
    "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10,
}  # fmt: skip
TENSOR_MEMORY = 512  # columns of it on sm_100


class Processor(NamedTuple):
    """What the programs of one multiprocessor share: CUDA programming guide, compute capabilities; CDNA3 ISA.

    Registers are given to a warp in steps of 8 a thread. A program takes `reserved` bytes of shared memory more.
    """

    registers: int  # of 32 bits, of a quarter
    warps: int  # of a quarter
    programs: int
    shared: int  # bytes
    reserved: int = 1 << 10


# On gfx942 a quarter is a SIMD unit, and a warp a wavefront of 64 threads.
PROCESSORS = {
    "sm_80": Processor(16384, 16, 32, 164 << 10),
    "sm_86": Processor(16384, 12, 16, 100 << 10),
    "sm_89": Processor(16384, 12, 24, 100 << 10),
    "sm_90": Processor(16384, 16, 32, 228 << 10),
    "sm_100": Processor(16384, 16, 32, 228 << 10),
    "gfx942": Processor(32768, 8, 32, 64 << 10, 0),
}
# Bytes that one load of a thread may have. Queries, keys and rows of tensors come in 16; 8 is an id, 4 its lower half
# or a row's maximum or sum, 1 the mask. Half-precision rows in pieces of one element (2) fail, and so does none of 16.
LOADS = {"normaliser": {4, 8, 16}, "column": {4, 8, 16}, "compact": {1, 8, 16}}

# Bytes that a thread may spill outside of its hot loop: a few values put aside before the loops and read after them,
# so that `score` keeps to 128 registers, with which two programs fit a multiprocessor.
SPILLS = {
    ("column", "bf16-d128-padded", "sm_86"): 16,
    ("column", "bf16-d128-padded", "sm_89"): 16,
    ("column", "bf16-d72-padded", "sm_80"): 8,
    ("column", "bf16-d80-padded", "sm_80"): 8,
    ("normaliser", "bf16-d72-padded", "sm_80"): 8,
}

LENGTH, TEXT, FRAMES, PER_FRAME = 6402, 64, 32, 196  # LLaVA-OneVision: 32 frames, a question of 64 tokens
BEFORE = 14
HEADS = {32: (8, 2), 64: (14, 2), 72: (16, 16), 80: (32, 8), 128: (28, 4), 256: (8, 4)}  # by head dimension: (H, G)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Case(NamedTuple):
    """A launch: the kernels that it starts, the targets it is compiled for, and whether it is aligned to load wide."""

    kernels: tuple[str, ...]
    launch: Callable[[], object]
    targets: tuple[str, ...] = ALL
    aligned: bool = True


class Resources(NamedTuple):
    """What a program takes: registers and spilled bytes of a thread, bytes of shared memory; and how wide it loads.

    `loop`: instructions of the loop that it spends its time in, 0 where they are not counted; `loop_spills`: how many
    of them write or read what is spilled.
    """

    registers: int
    shared: int
    tensor_memory: int
    spills: int
    loads: frozenset[int]
    warps: int
    loop: int
    loop_spills: int


def score_case(dtype: str, dim: int, *, text=TEXT, padded=False, targets=ALL) -> Case:
    heads, groups = HEADS[dim]

    def launch():
        score_triton(
            torch.empty(2, heads, text, dim, dtype=DTYPES[dtype]),
            torch.empty(2, groups, LENGTH, dim, dtype=DTYPES[dtype]),
            torch.empty(2, text, dtype=torch.int64),
            BEFORE, BEFORE + FRAMES * PER_FRAME, dim**-0.5,
            torch.empty(2, dtype=torch.int64) if padded else None,
        )  # fmt: skip

    # Triton knows of a stride whether it is a multiple of 16 elements
    return Case(("normaliser", "column"), launch, targets, aligned=dim % 16 == 0)


def select_case(deduplicate: bool, *, columns=FRAMES * PER_FRAME) -> Case:
    """As the first cut has it with `deduplicate`, of frames that form segments; later ones know segments' begins."""

    def launch():
        position = torch.empty(1, columns + LENGTH - FRAMES * PER_FRAME, dtype=torch.int64)
        begin, quota, segment = torch.empty(3, 1, FRAMES, dtype=torch.int64)
        frames = segment if deduplicate else None
        select_triton(torch.empty(1, columns), position, begin, quota, frames, BEFORE, PER_FRAME, deduplicate)

    return Case(("select",) if columns <= LARGE else ("select", "long_segment"), launch)


def compact_case(width: int, dim: int, *, length=LENGTH, batch=1, first=True, dtype="bf16", targets=ALL) -> Case:
    """As the cuts move them; before the first, all samples share one rotary table."""

    def launch():
        hidden = torch.empty(batch, length, width, dtype=DTYPES[dtype])
        table = torch.empty(1 if first else batch, length, dim, dtype=DTYPES[dtype]).expand(batch, -1, -1)
        ids = torch.empty(batch, length, dtype=torch.int64)
        counts = list(range(length // 2, length // 2 + batch))
        compact_triton(torch.empty(batch, length, dtype=torch.bool), counts, [hidden, *[table] * 2, *[ids] * 3])

    return Case(("compact",), launch, targets)


def cases() -> dict[str, Case]:
    """Every chip gets what checkpoints run; other head dimensions, types and flags are compiled for some."""
    result = {}
    for dim in (64, 128):
        result[f"bf16-d{dim}-padded"] = score_case("bf16", dim, padded=True)
        result[f"fp32-d{dim}-padded"] = score_case("fp32", dim, padded=True)
        result[f"bf16-d{dim}"] = score_case("bf16", dim, targets=SOME)
    result["bf16-d64-one-row"] = score_case("bf16", 64, text=1, targets=SOME)
    result["bf16-d128-one-row"] = score_case("bf16", 128, text=1)
    for dim in (32, 72, 80, 256):
        result[f"bf16-d{dim}-padded"] = score_case("bf16", dim, padded=True, targets=SOME)
    result["fp32-d256-padded"] = score_case("fp32", 256, padded=True, targets=(*SOME, "sm_100"))
    result["fp16-d128-padded"] = score_case("fp16", 128, padded=True, targets=("sm_90",))
    result["deduplicate"] = select_case(True)
    result["top-k-only"] = select_case(False)
    for name, deduplicate in (("deduplicate-long", True), ("top-k-only-long", False)):
        result[name] = select_case(deduplicate, columns=LARGE + 1)
    for name, width, dim in (("0.5B", 896, 64), ("7B", 3584, 128)):
        result[name] = compact_case(width, dim)
        result[f"{name}-padded"] = compact_case(width, dim, batch=2)
    result["7B-padded-later"] = compact_case(3584, 128, batch=2, first=False, targets=SOME)
    result["7B-fp32-padded"] = compact_case(3584, 128, dtype="fp32", batch=2, targets=SOME)
    # from where on programs take more tokens each
    for length in (16 * MAX_PROGRAMS + 1, 64 * MAX_PROGRAMS + 1):
        name = f"0.5B-padded-{token_block(length)}-tokens"
        result[name] = compact_case(896, 64, length=length, batch=2, targets=("sm_90", "gfx942"))
    return result


CASES = cases()


class Driver:
    """Stands in for a GPU of each target: their places in `TARGETS` are the device numbers."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return ALL.index(self.target)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]


@contextmanager
def compiling_for(target: str) -> Iterator[list]:
    """Inside, launches compile for `target` and are done; what they have compiled. The tensors are the host's."""
    if interpreted():
        raise RuntimeError("interpreted kernels do not compile")
    compiled = []
    run = JITFunction.run

    def warm_up(self, *args, warmup, **kwargs):
        compiled.append(run(self, *args, warmup=True, **kwargs))
        return compiled[-1]

    triton.runtime.driver.set_active(Driver(target))
    rocm = mock.patch.object(torch.version, "hip", "any" if TARGETS[target].backend == "hip" else None)
    anew = mock.patch.object(Remembered, "__getitem__", lambda self, grid: self.kernel[grid])
    with mock.patch.object(JITFunction, "run", warm_up), anew, rocm, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
        try:
            yield compiled
        except Exception as error:  # Triton's own do not all travel between processes
            raise RuntimeError(f"{target}: {type(error).__name__}: {error}") from None


def compile_case(case: str, target: str) -> dict[str, Resources]:
    """By kernel. What Triton has in its cache is not compiled again, but read again."""
    with compiling_for(target) as compiled:
        CASES[case].launch()
    return {kernel.metadata.name.removesuffix("_kernel"): resources(kernel) for kernel in compiled}


def variants(prompts: list[PromptLayout], target: str) -> list[dict[str, int]]:
    """After a prefill of each of the prompts in turn: how often every kernel has been compiled until then.

    What the kernels leave behind is what memory holds at first, and that is the same in every run; but for the numbers
    of kept tokens, which sizes follow from: they are the quotas.
    """

    def select_all(score, position, begin, quota, **options):
        return select.select(score, position, begin, quota, **options)[0], quota.clone()

    compiled, counts = {}, []
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with ExitStack() as stack:
            launched = stack.enter_context(compiling_for(target))
            for module in (score, select, compact):
                stack.enter_context(mock.patch.object(module, "resolve", return_value="triton"))
            stack.enter_context(mock.patch.object(adatp.engine.cuts, "select", select_all))
            for prompt in prompts:
                prefill(prompt, "cpu")
                for kernel in launched:
                    compiled.setdefault(kernel.metadata.name, set()).add(id(kernel))
                counts.append({name: len(found) for name, found in compiled.items()})
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return counts


def resources(kernel) -> Resources:
    memory = kernel.metadata.shared, getattr(kernel.metadata, "tmem_size", None) or 0
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        # Memory of a thread. A scalar register that is spilled goes into a lane of a vector register, not to memory.
        spills = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1])
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        return Resources(registers, *memory, spills, _amd_loads(text), kernel.metadata.num_warps, 0, 0)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        report = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", report).groups())
    loads = _nvidia_loads(kernel.asm["ptx"])
    return Resources(registers, *memory, stack + local, loads, kernel.metadata.num_warps, *_hot_loop(report))


def programs(target: str, found: Resources) -> int:
    """How many fit a multiprocessor at a time."""
    has = PROCESSORS[target]
    lanes = TARGETS[target].warp_size
    warps = min(has.warps, has.registers // (lanes * 8 * math.ceil(found.registers / 8)))
    memory = found.shared + has.reserved
    limits = [4 * warps // found.warps, has.programs, has.shared // memory if memory else has.programs]
    if found.tensor_memory:
        limits.append(TENSOR_MEMORY // found.tensor_memory)
    return min(limits)


def _hot_loop(sass: str) -> tuple[int, int]:
    """(instructions, those for spills) of the innermost loop that multiplies matrices, the shortest if several do.

    Of the largest loop where none does.
    """
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass)]
    loops = []
    for end, text in code:
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < end:
            loops.append([(at, text) for at, text in code if int(jump[1], 16) <= at <= end])
    products = [_count(r"HGMMA|HMMA|UTC\w*MMA|FFMA", loop) for loop in loops]
    most = max(products, default=0)
    # a third, since two such loops may lie in one, and addresses and exponentials take some multiply-adds as well
    multiplying = [loop for loop, n in zip(loops, products, strict=True) if n * 3 >= most > 0]
    inner = [a for a in multiplying if not any(a != b and a[0] <= b[0] and b[-1] <= a[-1] for b in multiplying)]
    hot = min(inner, key=len) if inner else max(loops, key=len, default=[])
    return len(hot), _count("STL|LDL", hot)


def _count(names: str, code: list[tuple[int, str]]) -> int:
    return sum(bool(re.search(rf"\b({names})", text)) for _, text in code)


def _nvidia_loads(ptx: str) -> frozenset[int]:
    plain = re.findall(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    copied = re.findall(r"\bcp\.async[\w.]*\.shared\.global[\w.:]* \[.*?\], \[.*?\], (0x\w+|\d+)", ptx)
    return frozenset(int(n or 1) * int(bits) // 8 for n, bits in plain) | {int(n, 0) for n in copied}


def _amd_loads(text: str) -> frozenset[int]:
    sizes = {"byte": 1, "short": 2, "dword": 4}
    loads = re.findall(r"\b(?:global|buffer|flat)_load_(?:lds_)?[us]?(byte|short|dword)(?:x(\d))?", text)
    return frozenset(sizes[kind] * int(n or 1) for kind, n in loads)


def problems(kernel: str, case: str, target: str, found: Resources) -> list[str]:
    """What is wrong with it, in words."""
    result = []
    if found.spills > SPILLS.get((kernel, case, target), 0) or found.loop_spills:
        result.append(f"spills {found.spills} bytes a thread, {found.loop_spills} times in its loop")
    if found.shared > SHARED_MEMORY[target]:
        result.append(f"takes {found.shared} bytes of shared memory, of {SHARED_MEMORY[target]}")
    if found.tensor_memory > TENSOR_MEMORY:
        result.append(f"takes {found.tensor_memory} columns of tensor memory, of {TENSOR_MEMORY}")
    allowed = LOADS.get(kernel)
    if allowed and CASES[case].aligned and (16 not in found.loads or not found.loads <= allowed):
        result.append(f"loads in pieces of {sorted(found.loads)} bytes, not of {sorted(allowed)}")
    return result


def workers() -> ProcessPoolExecutor:
    """One a core: Triton compiles on one."""
    return ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn"))


def main() -> int:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    with workers() as pool:
        futures = {(c, t): pool.submit(compile_case, c, t) for c, case in CASES.items() for t in case.targets}
        done = {
            at: future.result()
            for at, future in track(futures.items(), "compiling", console=Console(stderr=True), transient=True)
        }
    rows = [(kernel, *at, found) for at, kernels in done.items() for kernel, found in kernels.items()]
    table = Table("kernel", "case", "target", title=f"Triton {triton.__version__}")
    for name in ("registers", "shared KiB", "spills", "programs", "loop"):
        table.add_column(name, justify="right")
    table.add_column("problems", style="red")
    rows.sort(key=lambda row: row[0])  # stable: cases and targets in their own order
    wrong = 0
    for i, (kernel, case, target, found) in enumerate(rows):
        bad = problems(kernel, case, target, found)
        wrong += bool(bad)
        numbers = [found.registers, math.ceil(found.shared / 1024), found.spills, programs(target, found), found.loop]
        last = i + 1 == len(rows) or rows[i + 1][:2] != (kernel, case)
        table.add_row(kernel, case, target, *map(str, numbers), "; ".join(bad), end_section=last)
    console.print(table)
    console.print(f"{len(rows)} programs, {wrong} with problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
