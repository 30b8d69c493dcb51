"""The biases' numbers, on maps made by hand."""

import pytest
import torch

from adatp.evaluation.bias import (
    Bias,
    classify,
    frames_at_ends,
    peak,
    per_frame,
    per_position,
    share_in_last,
    top_tokens,
)
from adatp.layout import Grid


def test_attention_per_frame_is_the_sum_over_its_tokens():
    scores = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.5]], [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    assert per_frame(scores).tolist() == [[3.0, 7.0, 0.5], [0.0, 1.0, 2.0]]


def test_attention_per_position_is_over_the_mean_and_in_raster_order():
    scores = torch.zeros(2, 3, 6)
    scores[0, :, 4] = torch.tensor([1.0, 2.0, 3.0])
    scores[1] = 0.25
    position = per_position(scores, Grid(2, 3))
    assert position[0].tolist() == [[0.0, 0.0, 0.0], [0.0, 6.0, 0.0]]
    assert position[1].tolist() == [[1.0] * 3] * 2


def test_the_peak_says_where_it_is():
    """Row and column differ, so that neither can be the other, and rows are not as long as columns."""
    scores = torch.ones(2, 4, 12)
    scores[0, :, 1 * 4 + 3] = 12.0
    factor, row, column = peak(scores, Grid(3, 4))
    assert factor[0].item() == pytest.approx(12 * 12 / 23)
    assert (row[0].item(), column[0].item()) == (1, 3)
    assert (row[1].item(), column[1].item()) == (0, 0), "the earlier one of equals"


@pytest.mark.parametrize(
    ("tokens", "share", "count"),
    [(3, 0.1, 1), (40, 0.1, 4), (44, 0.1, 4), (45, 0.1, 5), (6272, 0.1, 627), (50, 0.29, 15), (10, 1.0, 10)],
)
def test_half_a_token_counts_as_one(tokens, share, count):
    assert int(top_tokens(torch.rand(1, 1, tokens), share).sum()) == count


def test_the_top_tokens_are_the_highest_of_their_layer_and_ties_go_to_the_earlier():
    scores = torch.tensor([[[5.0, 1.0], [5.0, 9.0], [5.0, 0.0]], [[0.0, 7.0], [0.0, 0.0], [0.0, 0.0]]])
    top = top_tokens(scores, 0.5)
    assert top[0].tolist() == [[True, False], [True, True], [False, False]]
    assert top[1].tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize("share", [0.0, 1.01])
def test_another_share_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        top_tokens(torch.ones(1, 1, 4), share)


def test_the_share_in_the_last_frames():
    top = torch.zeros(2, 6, 4, dtype=torch.bool)
    top[0, 1, :2] = top[0, 2, 0] = top[0, 5, 3] = True
    top[1, 0] = True
    assert share_in_last(top).tolist() == [0.5, 0.0]
    assert share_in_last(top, 1).tolist() == [0.25, 0.0]
    assert share_in_last(top, 9).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        share_in_last(top, 0)


@pytest.mark.parametrize(
    ("frames", "ends"), [(1, {0}), (2, {0, 1}), (8, {0, 7}), (9, {0, 1, 7, 8}), (32, {*range(4), *range(28, 32)})]
)
def test_the_ends_are_an_eighth_each(frames, ends):
    assert set(frames_at_ends(frames).nonzero().flatten().tolist()) == ends


def test_a_top_token_is_classified_by_where_it_is():
    """8 frames of 4: position 2 is at the top in 4 frames, position 0 in 3."""
    top = torch.zeros(2, 8, 4, dtype=torch.bool)
    for frame, position in [(0, 2), (3, 2), (4, 2), (5, 2), (7, 0), (2, 0), (6, 0)]:
        top[0, frame, position] = True
    kinds = classify(top)
    assert kinds.dtype == torch.uint8
    found = {(int(i), int(p)): Bias(int(kinds[0, i, p])) for i, p in kinds[0].nonzero()}
    assert found == {
        (0, 2): Bias.BOTH,
        (3, 2): Bias.POSITION,
        (4, 2): Bias.POSITION,
        (5, 2): Bias.POSITION,
        (7, 0): Bias.ENDS,
        (2, 0): Bias.NEITHER,
        (6, 0): Bias.NEITHER,
    }
    assert not kinds[1].any(), "the layers are apart"
