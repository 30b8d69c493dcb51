"""Every kernel for every chip, compiled on none of them: no loop spills, everything fits, wide operands load wide."""

import pytest

pytest.importorskip("triton")

import compile_matrix
from random_prefill import layout

from adatp_kernels.dispatch import interpreted

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(interpreted(), reason="the interpreter is on, and interpreted kernels do not compile"),
]

PROGRAMS = [
    pytest.param(kernel, name, target, id=f"{kernel}-{name}-{target}")
    for name, case in compile_matrix.CASES.items()
    for target in case.targets
    for kernel in case.kernels
]


FITS = "test_a_program_fits_its_chip"


@pytest.fixture(scope="module")
def compiled(request):
    """Results by case and target, of the tests that were asked for, while they are being compiled."""
    asked = [item.callspec.params for item in request.session.items if getattr(item, "originalname", None) == FITS]
    jobs = dict.fromkeys((params["case"], params["target"]) for params in asked)
    with compile_matrix.workers() as pool:
        yield {job: pool.submit(compile_matrix.compile_case, *job) for job in jobs}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("kernel", "case", "target"), PROGRAMS)
def test_a_program_fits_its_chip(compiled, kernel, case, target):
    found = compiled[case, target].result()[kernel]
    assert compile_matrix.problems(kernel, case, target, found) == []


@pytest.mark.parametrize("case", ["bf16-d64", "bf16-d64-padded", "bf16-d128", "bf16-d128-padded"])
def test_two_programs_of_each_score_kernel_fit_a_multiprocessor(case):
    """Of Hopper: while one waits for its products, the other takes its exponentials."""
    with compile_matrix.workers() as pool:
        found = pool.submit(compile_matrix.compile_case, case, "sm_90").result()
    assert sorted(found) == ["column", "normaliser"]
    for resources in found.values():
        assert compile_matrix.programs("sm_90", resources) >= 2
        assert resources.registers <= 128
        assert resources.spills == 0


def test_how_many_programs_fit():
    def programs(target, **changes):
        plain = compile_matrix.Resources(128, 0, 0, 0, frozenset(), 8, 0, 0)
        return compile_matrix.programs(target, plain._replace(**changes))

    assert programs("sm_90") == 2
    assert programs("sm_90", registers=129) == 1
    assert programs("sm_90", registers=32) == 8
    assert programs("sm_86", registers=32) == 6
    assert programs("sm_90", registers=32, warps=1) == 32
    assert programs("sm_90", registers=32, shared=75 << 10) == 3
    assert programs("sm_90", registers=32, shared=76 << 10) == 2
    assert programs("sm_100", registers=32, tensor_memory=256) == 2
    assert programs("gfx942", registers=129) == 1
    assert programs("gfx942", registers=128, shared=32 << 10) == 2


def test_the_hot_loop_is_the_shortest_of_those_that_multiply():
    lines = ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ", "MUFU.EX2 R1, R1", "@P0 BRA 0x00", "@!P1 BRA 0x30"]
    lines += ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ", "@P0 BRA 0x40", "NOP", "@P2 BRA 0x00"]
    code = "".join(f"        /*{16 * i:04x}*/                   {line} ;\n" for i, line in enumerate(lines))
    assert compile_matrix._hot_loop(code) == (2, 0)
    assert compile_matrix._hot_loop(code.replace("HGMMA", "IADD3").replace("NOP", "LDL R3, [R1]")) == (8, 1)
    assert compile_matrix._hot_loop(code.replace("BRA", "EXIT")) == (0, 0)


@pytest.mark.parametrize("videos", [1, 2], ids=["one video", "two videos"])
def test_prompts_of_other_lengths_compile_nothing_new(videos):
    prompts = [layout(frames, text, videos) for frames, text in ((8, 24), (9, 24), (8, 25), (11, 37))]
    with compile_matrix.workers() as pool:
        first, *others = pool.submit(compile_matrix.variants, prompts, "sm_90").result()
    assert others == [first] * len(others)
