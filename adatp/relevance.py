"""How well frames match the question (AdaTP, eq. 3), through the SigLIP the vision tower was trained from."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from adatp.errors import InputError
from adatp.tensors.blocks import in_blocks
from adatp.tensors.transfer import send

# Patches that a GPU takes at once: in blocks as small as a CPU's, whose caches they fit, launching takes it longer than
# the work does. The vision tower has taken all frames at once.
PATCHES_ON_GPU = 16384


class NoRelevanceWarning(UserWarning):
    """Global debiasing is on, but nothing says which segments match the question."""


def similarity(frames: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every frame and its sample's question (eq. 3).

    Args:
        frames: `[B, n, D]` pooled frame features v_p, any floating dtype.
        text: `[B, D]` pooled text features t_p.

    Returns:
        `[B, n]` float32.
    """
    return cosine_similarity(frames.float(), text.float()[:, None, :], dim=-1)


class _Head(nn.Module):
    """SigLIP's pooling head, `[n, patches, D]` to `[n, D]`, without keys and values of the patches.

    Its attention has one query, the same for every frame. So the query goes through the keys' weights, and the patches
    are added up before they go through the values'.

    Args:
        head: of the `SiglipModel`; its weights are used, not copied.
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
        biases = attention.in_proj_bias.float().unflatten(0, parts)  # [3, H, d]; the keys' changes no softmax
        patches = states.float()
        query = weights[0] @ self.probe[0, 0].float() + biases[0]  # [H, d]
        query = torch.einsum("hd,hdD->hD", query, weights[1]) * attention.head_dim**-0.5
        received = (patches @ query.T).softmax(1)  # [n, patches, H]
        summed = received.mT @ patches  # [n, H, D]
        values = torch.einsum("nhD,hdD->nhd", summed, weights[2]) + biases[2]
        output = attention.out_proj(values.flatten(1).to(states.dtype))
        pooled: Tensor = output + self.mlp(self.layernorm(output))
        return pooled


class Relevance(nn.Module):
    """What it takes to compare frames with a question: SigLIP's last vision layers, pooling head and text tower.

    LLaVA checkpoints ship the vision tower without its last layer and its head. Only those are run here, on the
    hidden states the tower has already computed.

    Args:
        siglip: a `SiglipModel`. Its parts are used, not copied; the vision layers below `tower_layers` are let go.
        tokenizer: the tokenizer of that SigLIP.
        tower_layers: encoder layers that the model's own vision tower has already run.

    Raises:
        InputError: the SigLIP does not continue such a tower.
    """

    def __init__(self, siglip: Any, tokenizer: Any, tower_layers: int) -> None:
        super().__init__()
        vision, text = siglip.vision_model, siglip.text_model
        layers = vision.encoder.layers
        if not 0 <= tower_layers <= len(layers):
            raise InputError(f"tower_layers must be from 0 to the SigLIP's {len(layers)} layers, got {tower_layers}")
        if not vision.use_head:
            raise InputError("the SigLIP has no pooling head (vision_use_head=False), so its frames cannot be compared")
        self.layers = nn.ModuleList(layers[tower_layers:])
        self.post_layernorm = vision.post_layernorm
        self.head = _Head(vision.head)
        self.text_model = text
        self.tokenizer = tokenizer
        self.width: int = vision.config.hidden_size
        self.text_length: int = text.config.max_position_embeddings

    @classmethod
    def from_pretrained(
        cls, checkpoint: str, tower_layers: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> "Relevance":
        """Load a SigLIP checkpoint, by name or path, and keep what is needed of it."""
        from transformers import AutoTokenizer, SiglipModel

        siglip = SiglipModel.from_pretrained(checkpoint, dtype=dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return cls(siglip, tokenizer, tower_layers).to(device)

    def forward(self, states: Tensor) -> Tensor:
        """Pooled frame features v_p.

        Args:
            states: `[n, patches, D]`, what the tower's layer `tower_layers - 1` put out.

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

    def text(self, questions: Sequence[str]) -> Tensor:
        """Pooled text features t_p, `[B, D]`. Questions are padded, or cut, to the 64 tokens SigLIP was trained on."""
        tokens = self.tokenizer(
            list(questions), padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )
        ids = send(tokens["input_ids"], next(self.parameters()).device)
        pooled: Tensor = self.text_model(input_ids=ids).pooler_output
        return pooled


class Questions:
    """Text features t_p by question: what was asked before is not computed again. Safe with threads.

    Args:
        relevance: what computes them. Its weights must stay as they are.
    """

    LIMIT = 1024  # questions remembered

    def __init__(self, relevance: Relevance) -> None:
        self._relevance = relevance
        self._features: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def features(self, questions: Sequence[str]) -> Tensor:
        """`[B, D]`, see `Relevance.text`."""
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
