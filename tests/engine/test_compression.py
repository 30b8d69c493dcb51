"""Methods before the decoder on prompts whose frames have text between them."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import adatp
from adatp.engine.compression import Compression
from adatp.layout import Grid, PromptLayout, VideoSize
from adatp.methods.method import BeforeDecoder, Video


@dataclass(frozen=True)
class Chosen(BeforeDecoder):
    """Keeps given tokens of each video, in the given order, with their features doubled."""

    name: ClassVar[str] = "chosen"
    tokens: tuple[int, ...] = ()

    def count(self, frames, grid):
        return len(self.tokens)

    def compress(self, video: Video):
        index = torch.tensor(self.tokens)
        return index, 2 * video.tokens.flatten(0, 1)[index]


def left(layout, *tokens):
    """Indices in the prompt of what is left; checks that features travel with them."""
    hidden = 1 + torch.arange(layout.length)[None, :, None].expand(1, -1, 3).float()
    compression = Compression(Chosen(tokens), layout, None, None)
    after = compression.apply(hidden)
    visual = compression.visual()
    assert after.shape == (1, layout.length - layout.visual_tokens + compression.kept, 3)
    assert torch.equal(visual, torch.isin(compression.left, layout.visual))
    assert torch.equal(
        after[0], (hidden[0] * (1 + torch.isin(torch.arange(layout.length), layout.visual))[:, None])[compression.left]
    )
    return compression.left.tolist()


SIZE = VideoSize(3, Grid(1, 2))
TOGETHER = PromptLayout(9, (1, 3, 5), torch.tensor([8]), (SIZE,))
APART = PromptLayout(11, (1, 4, 8), torch.tensor([10]), (SIZE,))  # 0 v v 3 v v 6 7 v v 10


def test_neighbouring_frames_keep_the_order_of_the_method():
    assert left(TOGETHER, 5, 0, 3) == [0, 6, 1, 4, 7, 8]


def test_a_token_stays_between_the_text_around_its_frame():
    assert left(APART, 0, 3, 5) == [0, 1, 3, 5, 6, 7, 9, 10]
    assert left(APART, 5, 4, 1, 0) == [0, 2, 1, 3, 6, 7, 9, 8, 10]
    assert left(APART, 2) == [0, 3, 4, 6, 7, 10]


def test_several_videos_of_different_grids():
    layout = PromptLayout(14, (1, 4, 8, 11), torch.tensor([13]), (VideoSize(2, Grid(1, 3)), VideoSize(2, Grid(2, 1))))
    # 0 v v v v v v 7 v v 10 v v 13
    assert left(layout, 3, 0) == [0, 4, 1, 7, 8, 10, 12, 13]


@pytest.mark.parametrize("name", ["random", "uniform", "pool", "dycoke"])
def test_every_method_keeps_all_text_in_its_place(name):
    size = VideoSize(5, Grid(2, 3))
    layout = PromptLayout(42, (2, 9, 16, 23, 30), torch.arange(36, 42), (size,))
    compression = Compression(adatp.methods.method_of(name), layout, None, None)
    after = compression.apply(torch.randn(1, 42, 4))
    assert after.shape[1] == 12 + compression.kept
    text = [i for i in range(42) if i not in layout.visual.tolist()]
    assert [i for i in compression.left.tolist() if i in text] == text
    frame = {place: f for f, begin in enumerate(layout.begins) for place in range(begin, begin + 6)}
    kept = [frame[i] for i in compression.left.tolist() if i in frame]
    assert kept == sorted(kept)
