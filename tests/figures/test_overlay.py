import numpy as np
import pytest
import torch
from videollm import make_inputs

import adatp
from adatp.figures.overlay import default_layers, veil


def test_dropped_tokens_are_veiled_and_kept_ones_untouched():
    frame = np.random.default_rng(0).integers(0, 200, (30, 60, 3)).astype(np.uint8)
    kept = np.array([[True, False, False], [False, True, False], [False, False, True]])
    veiled = veil(frame, kept)
    assert veiled.dtype == np.uint8
    for row in range(3):
        for column in range(3):
            cell = np.s_[10 * row : 10 * row + 10, 20 * column : 20 * column + 20]
            if kept[row, column]:
                assert np.array_equal(veiled[cell], frame[cell])
            else:
                assert (veiled[cell] >= 200).all()


def test_newlines_are_a_margin_on_the_right():
    """The last column of LLaVA-Video's grids."""
    frame = np.full((30, 60, 3), 9, np.uint8)
    kept = np.ones((3, 4), bool)
    kept[1, 3] = False
    drawn = veil(frame, kept, newlines=True)
    assert drawn.shape == (30, 80, 3)
    assert np.array_equal(drawn[:, :60], frame)
    assert (drawn[:10, 60:] < 100).all()
    assert (drawn[10:20, 60:] > 200).all()


@pytest.mark.parametrize(
    ("config", "layers"),
    [(adatp.AdaTP(), [2, 5]), (adatp.AdaTP(first=4, last=4, start_ratio=0.1, end_ratio=0.1), [4])],
)
def test_default_layers_are_the_first_and_the_last_cut(sdpa, config, layers):
    inputs = make_inputs(sdpa, ["What?"])
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, config, relevance=sdpa.relevance) as pruned:
        sdpa.model(**inputs)
    assert default_layers(pruned.report.samples[0]) == layers
