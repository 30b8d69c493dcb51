import math

import pytest
import torch
from torch.nn.functional import kl_div

from adatp.evaluation.agreement import agreement

NEVER = float("-inf")


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).double().log()


def test_by_hand():
    own = agreement(logits(0.5, 0.5), logits(0.25, 0.75))
    assert own.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert own.total_variation == pytest.approx(0.25)
    assert not own.same_top, "the reference's first of two equals is not the other's"
    back = agreement(logits(0.25, 0.75), logits(0.5, 0.5))
    assert back.kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert agreement(logits(0.2, 0.8), logits(0.4, 0.6)).same_top


def test_is_what_torch_computes():
    p, q = (torch.randn(500, generator=torch.Generator().manual_seed(i)).double() * 5 for i in range(2))
    own = agreement(p, q)
    assert own.kl == pytest.approx(float(kl_div(q.log_softmax(0), p.softmax(0), reduction="sum")))
    assert own.total_variation == pytest.approx(float((p.softmax(0) - q.softmax(0)).abs().sum() / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_a_distribution_with_itself_moved_or_not(dtype):
    p = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(9).round().to(dtype)
    for q in (p, p + 16):
        own = agreement(p, q)
        assert own.kl == pytest.approx(0, abs=1e-13)
        assert own.kl >= 0
        assert own.total_variation == pytest.approx(0, abs=1e-13)
        assert own.same_top


def test_differences_that_fp32_would_lose():
    p = torch.zeros(2).double()
    q = torch.tensor([0, 1e-6]).double()
    assert agreement(p, q).kl == pytest.approx(1e-12 / 8, rel=1e-3)


class TestSuppressed:
    def test_in_both_it_is_not_there(self):
        own = agreement(torch.tensor([1.0, NEVER, 2.0]), torch.tensor([3.0, NEVER, 1.0]))
        assert own == agreement(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))

    def test_in_the_reference_alone(self):
        own = agreement(torch.tensor([NEVER, 0.0]), torch.tensor([0.0, 0.0]))
        assert own.kl == pytest.approx(math.log(2))
        assert own.total_variation == pytest.approx(0.5)

    def test_in_the_other_alone(self):
        own = agreement(torch.tensor([0.0, 0.0]), torch.tensor([NEVER, 0.0]))
        assert own.kl == math.inf
        assert own.total_variation == pytest.approx(0.5)

    def test_what_rounds_to_nothing_is_nothing(self):
        assert agreement(torch.tensor([0.0, -1e5]), torch.tensor([0.0, NEVER])).kl == 0


@pytest.mark.parametrize(
    ("reference", "other", "message"),
    [
        (torch.zeros(3), torch.zeros(4), r"of one vocabulary, got \(3,\) and \(4,\)"),
        (torch.zeros(1, 3), torch.zeros(1, 3), r"must be \[V\] logits"),
        (torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0]), "other must hold no NaN"),
        (torch.tensor([0.0, float("inf")]), torch.zeros(2), r"reference must hold no NaN and no \+inf"),
        (torch.full((2,), NEVER), torch.zeros(2), "reference must have at least one finite logit"),
    ],
)
def test_what_is_no_distribution_is_refused(reference, other, message):
    with pytest.raises(ValueError, match=message):
        agreement(reference, other)
