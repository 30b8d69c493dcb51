"""Text relevance of frames (AdaTP, eq. 3): how well they match the question, by the vision tower's SigLIP."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from adatp.checks.checkpoints import load_weights, loading
from adatp.checks.values import cut, integer, name_or_path, require, shown, text
from adatp.errors import CheckpointError, InputError, InputTypeError
from adatp.tensors.blocks import in_blocks
from adatp.tensors.transfer import send

# Patches in a block on a GPU. The blocks of a CPU are small, to fit its caches; on a GPU such blocks would take less
# time to compute than to launch. Memory is no problem: the vision tower has run all frames at once.
PATCHES_ON_GPU = 16384

# How frames are grouped where no SigLIP is at hand. The paper's tau_s is one for SigLIP's pooled features.
UNCALIBRATED = (
    "frames are grouped by the mean of their patch features, for which tau_s is not calibrated "
    "(`adatp calibrate VIDEO...` suggests one)"
)


class NoRelevanceWarning(UserWarning):
    """Global debiasing is on, but the text relevance of the segments is not known."""


def similarity(frames: Tensor, text: Tensor) -> Tensor:
    """Compute the cosine similarity of every frame and its sample's question (eq. 3).

    Args:
        frames: `[B, n, D]` pooled frame features v_p, any floating dtype.
        text: `[B, D]` pooled text features t_p.

    Returns:
        `[B, n]` float32.
    """
    return cosine_similarity(frames.float(), text.float()[:, None, :], dim=-1)


class _Head(nn.Module):
    """SigLIP's pooling head, `[n, patches, D]` to `[n, D]`, computed without keys and values of the patches.

    The attention has one query, the same for every frame. So the query is multiplied by the key weights once, and the
    weighted sum over the patches is taken before the value weights.

    Args:
        head: the head of the `SiglipModel`; its weights are used, not copied.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.probe = head.probe
        self.attention = head.attention
        self.layernorm = head.layernorm
        self.mlp = head.mlp

    def forward(self, states: Tensor) -> Tensor:
        attention = self.attention
        parts = (3, attention.num_heads, attention.head_dim)
        weights = attention.in_proj_weight.float().unflatten(0, parts)  # [3, H, d, D]
        biases = attention.in_proj_bias.float().unflatten(0, parts)  # [3, H, d]; the key bias cancels in the softmax
        patches = states.float()
        query = weights[0] @ self.probe[0, 0].float() + biases[0]  # [H, d]
        query = torch.einsum("hd,hdD->hD", query, weights[1]) * attention.head_dim**-0.5
        received = (patches @ query.T).softmax(1)  # [n, patches, H]
        summed = received.mT @ patches  # [n, H, D]
        values = torch.einsum("nhD,hdD->nhd", summed, weights[2]) + biases[2]
        output = attention.out_proj(values.flatten(1).to(states.dtype))
        pooled: Tensor = output + self.mlp(self.layernorm(output))
        return pooled


class Aligned(nn.Module):
    """The text tower of a SigLIP whose vision tower sees the frames.

    Args:
        siglip: a `SiglipModel`. Its parts are used, not copied.
        tokenizer: the tokenizer of that SigLIP.

    Raises:
        InputError: an argument has the wrong type, or the SigLIP has no pooling head.
    """

    def __init__(self, siglip: Any, tokenizer: Any) -> None:
        from transformers import SiglipModel

        super().__init__()
        require(isinstance(siglip, SiglipModel), "siglip", siglip, "a SiglipModel", InputTypeError)
        require(callable(tokenizer), "tokenizer", tokenizer, "the tokenizer of the SigLIP", InputTypeError)
        if not siglip.vision_model.use_head:
            raise InputError("the SigLIP has no pooling head (vision_use_head=False), so its frames cannot be compared")
        self.text_model = siglip.text_model
        self.tokenizer = tokenizer
        self.text_length: int = siglip.text_model.config.max_position_embeddings

    def text(self, questions: Sequence[str]) -> Tensor:
        """Compute pooled text features t_p, `[B, D]`.

        Questions are padded or truncated to the 64 tokens that SigLIP was trained on.

        Raises:
            InputError: `questions` is not a list or a tuple of strings, or it is empty.
        """
        listed = isinstance(questions, list | tuple) and len(questions) > 0
        require(listed, "questions", questions, "a list of at least one string", InputTypeError)
        for question in questions:
            text("questions", question)
        tokens = self.tokenizer(
            list(questions), padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        ids = send(tokens["input_ids"], next(self.parameters()).device)
        pooled: Tensor = self.text_model(input_ids=ids).pooler_output
        return pooled


class Relevance(Aligned):
    """The parts of SigLIP that compare frames with a question: last vision layers, pooling head and text tower.

    LLaVA checkpoints contain the vision tower without its last layer and its head. This class runs only these missing
    parts, on the hidden states that the tower has already computed.

    Args:
        siglip: a `SiglipModel`. Its parts are used, not copied; its vision layers below `tower_layers` are not kept.
        tokenizer: the tokenizer of that SigLIP.
        tower_layers: number of encoder layers that the model's own vision tower has already run.

    Raises:
        InputError: an argument has the wrong type, or the SigLIP cannot continue such a tower.
    """

    def __init__(self, siglip: Any, tokenizer: Any, tower_layers: int) -> None:
        super().__init__(siglip, tokenizer)
        tower_layers = integer("tower_layers", tower_layers)
        vision = siglip.vision_model
        layers = vision.encoder.layers
        fits = 0 <= tower_layers <= len(layers)
        require(fits, "tower_layers", tower_layers, f"from 0 to the SigLIP's {len(layers)} layers")
        self.layers = nn.ModuleList(layers[tower_layers:])
        self.post_layernorm = vision.post_layernorm
        self.head = _Head(vision.head)
        self.width: int = vision.config.hidden_size

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike[str], tower_layers: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> "Relevance":
        """Load a SigLIP checkpoint, by name or path, and keep the parts that are needed.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            InputError: another argument cannot be used, as for `Relevance`.
        """
        device = _device(device)
        siglip, tokenizer = _load(checkpoint, dtype)
        return cls(siglip, tokenizer, tower_layers).to(device)

    def forward(self, states: Tensor) -> Tensor:
        """Compute pooled frame features v_p.

        Args:
            states: `[n, patches, D]`, the output of the tower's layer `tower_layers - 1`.

        Returns:
            `[n, D]`.
        """
        most = PATCHES_ON_GPU if states.is_cuda else None
        return in_blocks(self._frames, states.to(self.head.probe.dtype), 0, tokens=states.shape[1], most=most)

    def _frames(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states, None)
        pooled: Tensor = self.head(self.post_layernorm(states))
        return pooled


class SecondTower(Aligned):
    """A whole SigLIP beside a model whose own vision tower is no SigLIP. It sees the frames a second time.

    A SigLIP2 of one resolution has the same classes, and can be used too.

    Args:
        siglip: a `SiglipModel`. Its parts are used, not copied.
        tokenizer: the tokenizer of that SigLIP.
        mean, std: 3 numbers each, by which the model's own processor normalises pixels: (pixel - mean) / std.

    Raises:
        InputError: an argument has the wrong type, or the SigLIP has no pooling head.
    """

    def __init__(self, siglip: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(siglip, tokenizer)
        self.vision_model = siglip.vision_model
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike[str], processor: Any, *, device: torch.device | str, dtype: torch.dtype
    ) -> "SecondTower":
        """Load a SigLIP checkpoint, by name or path, for a model with this processor.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            InputError: the processor does not say how it normalises pixels.
        """
        parts: list[Any] = [getattr(processor, name, None) for name in ("video_processor", "image_processor")]
        known = [part for part in parts if getattr(part, "image_mean", None) and getattr(part, "image_std", None)]
        wanted = "the model's processor, whose image_mean and image_std tell the pixels of its frames"
        require(len(known) > 0, "processor", processor, wanted)
        device = _device(device)
        siglip, tokenizer = _load(checkpoint, dtype)
        return cls(siglip, tokenizer, known[0].image_mean, known[0].image_std).to(device)

    def forward(self, frames: Tensor) -> Tensor:
        """Compute pooled frame features v_p.

        Args:
            frames: `[n, 3, H, W]`, pixels as the model's own processor normalises them.

        Returns:
            `[n, D]`.
        """
        config = self.vision_model.config
        patches = (config.image_size // config.patch_size) ** 2
        return in_blocks(self._pooled, frames, 0, tokens=patches, most=PATCHES_ON_GPU if frames.is_cuda else None)

    def _pooled(self, frames: Tensor) -> Tensor:
        side = self.vision_model.config.image_size
        pixels = frames.float() * self._std.to(frames.device) + self._mean.to(frames.device)
        resized = interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        pooled: Tensor = self.vision_model(pixel_values=(resized - 0.5) / 0.5).pooler_output  # as SigLIP was trained
        return pooled


def _load(checkpoint: str | os.PathLike[str], dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a SigLIP checkpoint, by name or path: the model in evaluation mode, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, SiglipModel

    checkpoint = name_or_path("checkpoint", checkpoint)
    is_floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    require(is_floating, "dtype", dtype, "a torch.dtype of floating-point numbers")
    with loading("SigLIP", checkpoint):
        kind = AutoConfig.from_pretrained(checkpoint).model_type
    if kind != "siglip":
        wanted = f"its model_type must be 'siglip', got {kind!r}"
        raise CheckpointError(f"SigLIP {cut(checkpoint)} cannot be loaded: {wanted}")
    siglip = load_weights(SiglipModel, "SigLIP", checkpoint, dtype=dtype)
    with loading("tokenizer of SigLIP", checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return siglip.eval(), tokenizer


def _device(given: Any) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device must be cpu, cuda, cuda:1, ..., got {shown(given)}") from error


class Questions:
    """Cache of the text features t_p of questions; threads may share it.

    Args:
        relevance: computes the features. Its weights must not change.
    """

    LIMIT = 1024  # questions remembered

    def __init__(self, relevance: Aligned) -> None:
        self._relevance = relevance
        self._features: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def features(self, questions: Sequence[str]) -> Tensor:
        """Return the `[B, D]` text features, see `Relevance.text`."""
        with self._lock:
            known = {question: self._features[question] for question in questions if question in self._features}
        new = [question for question in dict.fromkeys(questions) if question not in known]
        if new:
            known.update(zip(new, self._relevance.text(new), strict=True))
            with self._lock:
                self._features.update((question, known[question]) for question in new)
                while len(self._features) > self.LIMIT:
                    del self._features[next(iter(self._features))]
        return torch.stack([known[question] for question in questions])
