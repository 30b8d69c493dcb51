"""The three kernels as registered operators of PyTorch, and the harness that runs them."""

import operators as harness
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import adatp_kernels.compact_triton
import adatp_kernels.score_triton
import adatp_kernels.select_triton  # noqa: F401
from adatp_kernels.score import score
from adatp_kernels.select import select

pytestmark = pytest.mark.interpreter

OPS = torch.ops.adatp


def score_inputs(batch=2, heads=4, groups=2, count=3, length=20, dim=16, dtype=torch.float32, padded=True):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, count, dim, generator=generator).to(dtype)
    key = torch.randn(batch, groups, length, dim, generator=generator).to(dtype)
    rows = torch.arange(length - count, length).repeat(batch, 1)
    first_key = torch.zeros(batch, dtype=torch.int64) if padded else None
    return query, key, rows, min(2, length), max(min(2, length), length - 3), 0.3, first_key


def select_inputs(batch=2, length=12, start=2, deduplicate=True, dtype=torch.float32, frames=True):
    score = torch.rand(batch, max(0, length - 2 * start), generator=torch.Generator().manual_seed(0)).to(dtype)
    position = torch.arange(length).remainder(3).repeat(batch, 1)
    position[:, :start] = position[:, start + score.shape[1] :] = -1
    begin = (start + torch.tensor([[0, 3, 4] if frames else [0, 4]])).repeat(batch, 1)
    segment = torch.tensor([[0, 0, 1]]).repeat(batch, 1) if frames else None
    quota = torch.tensor([[2, 1]]).repeat(batch, 1)
    return score, position, begin, quota, segment, start, 3, deduplicate


def compact_inputs(padded=True, length=9, empty=False):
    keep = torch.zeros(2, length, dtype=torch.bool)
    if not empty:
        keep[0, ::2], keep[1, 1::3] = True, True
        if not padded:
            keep[1] = keep[0]
    hidden = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(0))
    shared = torch.arange(length).expand(2, -1)
    return keep, keep.sum(1).tolist(), [hidden, shared, hidden.half()[..., 0], shared.clone()]


INPUTS = {
    "score": ("score", score_inputs()),
    "score, unpadded": ("score", score_inputs(padded=False)),
    "score, fp16": ("score", score_inputs(dtype=torch.float16, batch=1, count=20)),
    "score, bf16": ("score", score_inputs(dtype=torch.bfloat16)),
    "score, no rows": ("score", score_inputs(count=0)),
    "score, no columns": ("score", score_inputs(length=2, count=2)),
    "select": ("select", select_inputs()),
    "select, duplicates": ("select", select_inputs(deduplicate=False)),
    "select, a segment a stretch": ("select", select_inputs(frames=False)),
    "select, a long segment": ("select", select_inputs(length=8200, deduplicate=False)),
    "select, one sample in fp16": ("select", select_inputs(batch=1, start=0, dtype=torch.float16)),
    "select, no scores": ("select", select_inputs(length=4)),
    "select, no tokens": ("select", select_inputs(length=0, start=0)),
    "compact": ("compact", compact_inputs()),
    "compact, unpadded": ("compact", compact_inputs(padded=False)),
    "compact, nothing kept": ("compact", compact_inputs(empty=True)),
    "compact, no tokens": ("compact", compact_inputs(length=0)),
    "compact, no tensors": ("compact", (*compact_inputs()[:2], [])),
}
named = pytest.mark.parametrize(("name", "inputs"), INPUTS.values(), ids=INPUTS)


def layout(results):
    results = [results] if isinstance(results, torch.Tensor) else results
    return [(tuple(r.shape), r.stride(), r.dtype) for r in results]


def promised(name, inputs):
    """Layout of what an operator returns, from what it is documented to return; always contiguous."""
    if name == "score":
        shapes = [((len(inputs[0]), inputs[4] - inputs[3]), torch.float32)]
    elif name == "select":
        shapes = [(tuple(inputs[1].shape), torch.bool), (tuple(inputs[3].shape), torch.int64)]
    else:
        shapes = [((2, max(inputs[1]), *t.shape[2:]), t.dtype) for t in inputs[2]]
    return [(shape, torch.empty(shape, device="meta").stride(), dtype) for shape, dtype in shapes]


@named
def test_registration_passes_every_check_of_pytorch(kernels, name, inputs):
    inputs = kernels.move(inputs)
    torch.library.opcheck(getattr(OPS, name).default, inputs)
    assert layout(getattr(OPS, name)(*inputs)) == promised(name, inputs)


@named
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_shapes_go_through_without_values(name, inputs, device):
    """On the meta device, and on a GPU that is only made up."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device), inputs
        )
        results = getattr(OPS, name)(*fake)
    assert layout(results) == promised(name, inputs)
    assert all(r.device.type == device for r in tree_leaves(results))


def test_the_result_of_select_is_contiguous_whatever_the_inputs_are():
    inputs = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in select_inputs()]
    inputs[1], inputs[3] = (inputs[i].T.contiguous().T for i in (1, 3))
    assert all(result.is_contiguous() for result in OPS.select(*inputs))


def kept(query, key, rows, position, begin, quota):
    scores = score(query, key, rows, (2, 18), scale=0.3, impl="triton")
    return scores, *select(scores, position, begin, quota, positions=3, start=2, impl="triton")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(kernels, dynamic):
    query, key, rows = score_inputs()[:3]
    position = torch.arange(20).remainder(3).repeat(2, 1)
    position[:, :2] = position[:, 18:] = -1
    begin = torch.tensor([[2, 11], [2, 11]])
    inputs = kernels.move((query, key, rows, position, begin, torch.tensor([[2, 1], [1, 3]])))
    torch._dynamo.reset()
    got = torch.compile(kept, fullgraph=True, backend="aot_eager", dynamic=dynamic)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, kept(*inputs), strict=True))


@pytest.mark.parametrize("padded", [False, True])
def test_multiply_adds_are_counted(padded):
    inputs = score_inputs(3, 8, 2, 5, 40, 16, padded=padded)
    inputs = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in inputs]
    columns = inputs[4] - inputs[3]
    with FlopCounterMode(display=False) as counter:
        OPS.score(*inputs)
    assert counter.get_total_flops() == 2 * 3 * 8 * 5 * 16 * (columns + 40)


@torch.library.custom_op("adatp_tests::allocate", mutates_args=())
def allocate(like: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty(3, dtype=like.dtype), like.new_empty(3), torch.empty_like(like)]


@pytest.mark.parametrize(
    ("dtype", "poison"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.int32, 2**31 - 1), (torch.int8, 127), (torch.bool, True)],
)
def test_what_an_operator_allocates_is_poisoned(dtype, poison):
    state = torch.are_deterministic_algorithms_enabled()
    with harness.poisoned():
        memories = allocate(torch.zeros(3, dtype=dtype))
    for memory in memories:
        assert memory.isnan().all() if poison is None else memory.tolist() == [poison] * 3
    assert torch.are_deterministic_algorithms_enabled() is state


def test_writing_to_an_input_is_noticed(operators, monkeypatch):
    def spoil(tensor, impl):
        return tensor.fill_(7)

    with pytest.raises(AssertionError, match="written to"):
        operators._run(spoil, (torch.full((2, 2), float("nan")),), {})
    assert operators._run(lambda tensor, impl: tensor + 1, (torch.ones(2),), {}).tolist() == [2, 2]


def test_tensors_keep_their_strides_on_the_way_to_a_device():
    elsewhere = harness.Operators("triton", "meta")
    base = torch.zeros(4, 30)
    for tensor in (base[1:, 3:27:4], base.T, base[:1].expand(5, -1), base.view(4, 5, 6)[:, 2]):
        moved = elsewhere.move(tensor)
        assert moved.device.type == "meta"
        assert (moved.shape, moved.stride()) == (tensor.shape, tensor.stride())
