"""The metadata of the layers that see fewer tokens."""

import pytest
import torch
from vllm_models import QUESTIONS, TEXT, asked, generate, make_llm, model_runner

from adatp.methods import AdaTP


@pytest.fixture(scope="module")
def llm(onevision):
    return make_llm(onevision, AdaTP())


@pytest.fixture
def builders(llm):
    found = model_runner(llm).get_model().pruning._stages.builders
    return list(dict.fromkeys(builder for builder in found if builder is not None))


def test_layers_share_a_builder_where_they_share_tokens_and_blocks(llm, builders):
    """18 layers in 3 groups, cuts before layers 2 to 7."""
    assert [len(builder.layer_names) for builder in builders] == [1, 1, 1, 1, 1, 5, 6]


def test_buffers_stay_where_they_are(llm, builders, monkeypatch):
    """CUDA graphs read the same addresses in every step."""
    seen = {builder: set() for builder in builders}
    for builder in builders:
        build = type(builder).build

        def spy(self, *args, build=build, **kwargs):
            metadata = build(self, *args, **kwargs)
            seen[self].add((metadata.seq_lens.data_ptr(), metadata.slot_mapping.data_ptr(), self.slots.data_ptr()))
            return metadata

        monkeypatch.setattr(type(builder), "build", spy)
    generate(llm, [asked(number) for number in range(len(QUESTIONS))], 20)
    generate(llm, [TEXT, asked(0)], 20)
    assert all(len(addresses) == 1 for addresses in seen.values())


def test_slots(builders):
    """The place of each token among its request's blocks, as a loop computes it; -1 for padding."""
    builder = builders[0]
    size = builder.kv_cache_spec.block_size
    table = torch.tensor([[7, 3, 9], [2, 5, 1], [8, 6, 4]], dtype=torch.int32)
    lengths, arriving, padding = [size + 3, 5, 2 * size + 1], [2, 5, 1], 3
    builder.common = type("Common", (), {"block_table_tensor": table})()
    started = torch.tensor([0, *arriving]).cumsum(0).int()
    expected = []
    for request, (length, new) in enumerate(zip(lengths, arriving, strict=True)):
        for place in range(length - new, length):
            expected.append(int(table[request, place // size]) * size + place % size)
    slots = builder._place(started, torch.tensor(lengths).int(), sum(arriving) + padding)
    assert slots.tolist() == [*expected, *[-1] * padding]


def test_a_step_reads_nothing_from_the_device(builders):
    """Metadata of a decode step is built from tensors on the meta device, which hold no values to read."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    builder = builders[0]
    base = type(builder).__mro__[1]
    meta = {"device": "meta"}
    common = CommonAttentionMetadata(
        query_start_loc=torch.zeros(4, dtype=torch.int32, **meta),
        query_start_loc_cpu=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.zeros(3, dtype=torch.int32, **meta),
        num_reqs=3,
        num_actual_tokens=3,
        max_query_len=1,
        max_seq_len=9,
        block_table_tensor=torch.zeros(3, 4, dtype=torch.int32, **meta),
        slot_mapping=torch.zeros(3, dtype=torch.int64, **meta),
    )
    buffers = ("_lengths", "_slots", "dropped")
    kept = {name: getattr(builder, name) for name in (*buffers, "slots", "common")}
    try:
        for name in buffers:
            setattr(builder, name, torch.empty_like(kept[name] if len(kept[name]) else torch.zeros(9), **meta))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "build", lambda self, prefix, common, fast=False: common)
            assert builder.build(0, common).seq_lens.is_meta
    finally:
        for name, value in kept.items():
            setattr(builder, name, value)
