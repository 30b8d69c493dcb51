"""Sizes and positions of videos, also of several grids in one prompt."""

import pytest
import torch

from adatp.errors import InputError
from adatp.layout import Grid, PromptLayout, VideoSize

PROMPT = PromptLayout(
    length=30,
    begins=(2, 8, 14, 17),
    rows=torch.arange(22, 30),
    videos=(VideoSize(2, Grid(2, 3)), VideoSize(2, Grid(1, 3), temporal_patch=2)),
)


def test_a_grid_counts_patches_without_newlines():
    grid = Grid(3, 5, newlines=True)
    assert (grid.tokens, grid.patches, grid.patch_columns, str(grid)) == (15, 12, 4, "3 x 5")
    assert (Grid(3, 5).tokens, Grid(3, 5).patches) == (15, 15)


def test_the_own_frames_of_a_frame():
    assert VideoSize(3, Grid(2, 3)).own_frames(3) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert VideoSize(2, Grid(2, 3), temporal_patch=2).own_frames(4) == [slice(0, 2), slice(2, 4)]
    assert VideoSize(2, Grid(2, 3), temporal_patch=2).own_frames(3) == [slice(0, 2), slice(2, 3)]
    assert VideoSize(1, Grid(2, 3), temporal_patch=4).own_frames(1) == [slice(0, 1)]


@pytest.mark.parametrize("total", [0, 2, 5])
def test_frames_that_a_video_cannot_have(total):
    with pytest.raises(InputError, match=rf"{total} frames of a video make \d frames of 2 each, but the prompt has 2"):
        VideoSize(2, Grid(2, 3), temporal_patch=2).own_frames(total)


def test_sizes_of_videos_with_different_grids():
    assert (PROMPT.frames, PROMPT.visual_tokens, PROMPT.unit) == (4, 18, 3)
    assert PROMPT.frame_tokens == [6, 6, 3, 3]
    assert PROMPT.tokens_before == [0, 6, 12, 15]


def test_places_of_videos_with_different_grids():
    first, second = PROMPT.visual_of_videos()
    assert first.tolist() == [[2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13]]
    assert second.tolist() == [[14, 15, 16], [17, 18, 19]]
    assert PROMPT.visual.tolist() == list(range(2, 20))
    assert PROMPT.end == 20


def test_different_grids_have_no_common_one():
    with pytest.raises(InputError, match="the videos must have one grid, got 2 x 3, 1 x 3"):
        _ = PROMPT.grid
    with pytest.raises(InputError, match="got no video"):
        _ = PromptLayout(3, (), torch.arange(3), ()).tokens_per_frame
