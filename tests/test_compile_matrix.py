"""Every kernel for every chip, compiled on none of them: nothing spills, everything fits, wide operands load wide."""

import pytest

pytest.importorskip("triton")

import compile_matrix
from random_prefill import layout

from adatp_kernels.dispatch import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter is on, and interpreted kernels do not compile")

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


@pytest.mark.parametrize("videos", [1, 2], ids=["one video", "two videos"])
def test_prompts_of_other_lengths_compile_nothing_new(videos):
    prompts = [layout(frames, text, videos) for frames, text in ((8, 24), (9, 24), (8, 25), (11, 37))]
    with compile_matrix.workers() as pool:
        first, *others = pool.submit(compile_matrix.variants, prompts, "sm_90").result()
    assert others == [first] * len(others)
