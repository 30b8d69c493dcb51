"""First stage: SigLIP's vision and text tower learn to tell which texts are true of which frames.

SigLIP's loss (arXiv 2303.15343), but that every pair of a frame and a text is labelled by whether the text is true of
the frame, not by whether they came together: in a world with known content that is known. Beside it, patches learn to
name what they show, from the layer that the decoder will see, as towers trained on far more pictures do by themselves.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from torch.utils.data import Dataset

from adatp.small.training.architecture import PATCH, TEXT_LENGTH, TOWER_LAYERS, WIDTH
from adatp.small.training.pixels import to_pixels
from adatp.world.captions import SIZES, covered, describe, fits, seen, vocabulary
from adatp.world.clips import SIDE, make_clip
from adatp.world.drawing import draw_scene
from adatp.world.things import Split

BATCH = 64  # frames
_CLIP = 4  # frames of the clips that one frame each is taken of: a single scene
_NAMED = SIZES[:-1]  # the place is everywhere, the frame's loss is enough for it
_IGNORED = -100


class Frames(Dataset[dict[str, Tensor]]):
    """Batches of frames and texts.

    A batch has `pixels [F, 3, 64, 64]`; `tokens [T, 32]`, of a text about each frame and of the vocabulary; `true
    [F, T]` bool; and `names [F, P, 5]`, what each patch shows by its noun, colour, texture, digit and corner, -100
    where that is nothing.

    Args:
        split: to draw from.
        first: the first clip's number.
        batches: how many there are.
        tokenizer: of the texts.
    """

    def __init__(self, split: Split, *, first: int, batches: int, tokenizer: Any) -> None:
        self._split, self._first, self._batches, self._tokenizer = split, first, batches, tokenizer

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, batch: int) -> dict[str, Tensor]:
        frames, rows, names, captions = [], [], [], vocabulary()
        begin = self._first + batch * BATCH
        for number in range(begin, begin + BATCH):
            world, rng = make_clip(self._split, number, _CLIP), np.random.default_rng(number)
            (scene,) = world.scenes
            frame = int(rng.integers(0, _CLIP))
            frames.append(draw_scene(scene, self._split, [frame]))
            rows.append(seen(scene, frame))
            named = np.full(((SIDE // PATCH) ** 2, len(_NAMED)), _IGNORED)
            for row, patches in zip(rows[-1][:-1], covered(scene, frame, PATCH), strict=False):
                named[patches] = np.where(row[:-1] < 0, _IGNORED, row[:-1])
            names.append(named)
            captions.append(describe(world, rng))
        tokens = self._tokenizer(
            [caption.text for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            padding_side="right",
        )["input_ids"]
        says = np.array([caption.says for caption in captions])
        return {
            "pixels": to_pixels(np.concatenate(frames)),
            "tokens": torch.tensor(tokens),
            "true": torch.from_numpy(fits(says, np.stack(rows)).any(1)),
            "names": torch.from_numpy(np.stack(names)),
        }


class Aligner(nn.Module):
    """SigLIP and what only its training needs.

    Args:
        siglip: a `SiglipModel`.
    """

    def __init__(self, siglip: Any) -> None:
        super().__init__()
        self.siglip = siglip
        self.namer = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(_NAMED)))
        # sharper than SigLIP begins, since this training is short: a frame has a share in many texts
        self.scale = nn.Parameter(torch.tensor(30.0).log())
        self.bias = nn.Parameter(torch.tensor(-8.0))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[F, T]` of a text's being true of a frame, and `[F, P, 34]` of what patches show."""
        vision = self.siglip.vision_model
        states = vision.embeddings(pixels)
        for i, layer in enumerate(vision.encoder.layers, 1):
            states = layer(states, None)
            if i == TOWER_LAYERS:
                named = self.namer(states)
        frames = normalize(vision.head(vision.post_layernorm(states)), dim=-1)
        texts = normalize(self.siglip.text_model(input_ids=tokens).pooler_output, dim=-1)
        return self.scale.exp() * frames @ texts.T + self.bias, named

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of both losses, and what to log."""
        logits, named = self(batch["pixels"], batch["tokens"])
        of_frames = binary_cross_entropy_with_logits(logits, batch["true"].float())
        parts = list(zip(named.split(_NAMED, -1), batch["names"].unbind(-1), strict=True))
        of_patches = sum(cross_entropy(own.flatten(0, 1), true.flatten(), ignore_index=_IGNORED) for own, true in parts)
        right = [(own.argmax(-1) == true)[true != _IGNORED].float().mean().item() for own, true in parts]
        names = ("noun", "colour", "pattern", "digit", "corner")
        return of_frames + 0.2 * of_patches, {
            "loss_frames": of_frames.item(),
            "f1_frames": _f1(logits > 0, batch["true"]),
            **{f"patch_{name}": value for name, value in zip(names, right, strict=True)},
        }


def _f1(said: Tensor, true: Tensor) -> float:
    hits = (said & true).sum().item()
    return 2 * hits / max(1, (said.sum() + true.sum()).item())
