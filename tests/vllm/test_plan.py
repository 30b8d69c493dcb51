"""Which layers see the same tokens, and which share blocks of the cache."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from adatp.layout import Grid, Videos, VideoSize
from adatp.methods import AdaTP, FastV, PyramidDrop
from adatp.vllm.plan import MOST_GROUPS, Plan


class OneVideo(Videos):
    def __init__(self, frames, grid):
        self.videos = (VideoSize(frames, grid),)


@pytest.mark.parametrize(
    ("method", "layers", "stages", "groups"),
    [
        (FastV(), 6, [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2]),
        (AdaTP(last=3), 8, [0, 0, 1, 2, 3, 3, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
        (PyramidDrop(stages=2), 7, [0, 0, 0, 1, 1, 1, 1], [0] * 7),  # a prime number of layers stays in one group
    ],
)
def test_examples(method, layers, stages, groups):
    plan = Plan(method, layers)
    assert plan.stage_of == stages
    assert plan.group_of == groups


@given(
    st.one_of(
        st.builds(FastV, layer=st.integers(1, 8)),
        st.builds(PyramidDrop, stages=st.integers(2, 6)),
        st.builds(AdaTP, first=st.integers(1, 4), last=st.integers(4, 8), p=st.sampled_from([0.3, 1.0, 2.5])),
    ),
    st.integers(9, 40),
    st.integers(1, 64),
)
def test_no_layer_sees_more_than_its_group_has_room_for(method, layers, frames):
    plan, videos = Plan(method, layers), OneVideo(frames, Grid(3, 4))
    counts = method.counts(videos, layers)
    sizes = [plan.group_of.count(group) for group in set(plan.group_of)]
    assert len(set(sizes)) == 1, "vLLM wants groups of equal size"
    assert len(sizes) <= MOST_GROUPS
    for layer in range(layers):
        assert counts[layer] <= counts[plan.first_of_group(layer)]
        if plan.shares_whole_prompts(layer):
            assert counts[plan.first_of_group(layer)] == videos.visual_tokens
