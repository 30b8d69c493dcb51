"""What the pruned models have in common."""

from typing import Any

from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.transformers_utils.processor import cached_processor_from_config

from adatp.engine.scoring import Scoring
from adatp.methods.method import BetweenLayers
from adatp.models.aligned import load_aligned
from adatp.relevance import UNCALIBRATED
from adatp.vllm.plan import Plan
from adatp.vllm.prompts import family_of_config
from adatp.vllm.runtime.prefill import PrunedPrefill
from adatp.vllm.runtime.ranks import average_over_ranks
from adatp.vllm.runtime.reports import Reports
from adatp.vllm.runtime.requirements import check, check_attention
from adatp.vllm.runtime.riding import pack
from adatp.vllm.runtime.stages import Stages
from adatp.vllm.settings import Settings

logger = init_logger("vllm.adatp")


class PrunedModel:
    """A model of vLLM that prunes. It stands before vLLM's class in the bases of a model.

    Attributes:
        pruning: the pruning of this model. It is no module, so that vLLM looks for none of its weights.
    """

    language_model: Any
    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        settings = Settings.read(vllm_config)
        method = settings.method
        assert isinstance(method, BetweenLayers)
        family = family_of_config(vllm_config)
        decoder = self.language_model.model
        attentions = [layer.self_attn.attn for layer in decoder.layers]
        check_attention(attentions[0].attn_backend, vllm_config.compilation_config.cudagraph_mode)
        self._relevance = [self._load_relevance(settings, family, vllm_config)]  # in a list, it is no submodule
        if method.wants_question and self.relevance is not None:
            family.tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._wants_frames = method.wants_frames
        plan = Plan(method, len(decoder.layers))
        self.pruning = PrunedPrefill(
            family,
            plan,
            stages=Stages(plan, attentions),
            decoder=decoder,
            scoring=Scoring(average=average_over_ranks()),
            relevance=self.relevance,
            reports=Reports(method.name, is_first=get_tensor_model_parallel_rank() == 0),
        )

    # What a family may have in another way

    @property
    def encoded_width(self) -> int:
        """Number of channels of what the tower encodes, without those that ride."""
        return int(self.config.get_text_config().hidden_size)

    def added_features(self, tokens: int) -> list[Tensor]:
        """Return what the decoder adds to the output of each of its first layers, `[tokens, D]` each.

        Args:
            tokens: number of tokens of the step, with padding.
        """
        return []

    # What the models share

    @property
    def relevance(self) -> Any:
        """The SigLIP that compares frames with the question; None if there is none."""
        return self._relevance[0]

    def with_frames(self, embeddings: Tensor, seen: Tensor) -> Tensor:
        """Add the features of frames to their embeddings, if the method wants them.

        Args:
            embeddings: `[n, c, D]`, the tokens of each frame.
            seen: what the SigLIP sees: `[n, patches, D']`, the output of the vision tower, or for a whole SigLIP beside
                the model `[n, 3, H, W]`, pictures of the frames.
        """
        if not self._wants_frames:
            return embeddings
        relevance = self.relevance
        frames = seen.float().mean(1) if relevance is None else relevance(seen).float()
        self.pruning.width = frames.shape[1]
        return pack(embeddings, frames)

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Any = None, **kwargs: Any) -> Tensor:
        """Return the embeddings of a step's tokens; take the features that ride with its videos. See vLLM."""
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            width = self.encoded_width
            self.pruning.frames = [item[:, width:] if item.shape[1] > width else None for item in multimodal_embeddings]
            multimodal_embeddings = [item[:, :width] for item in multimodal_embeddings]
        embedded: Tensor = super().embed_input_ids(input_ids, multimodal_embeddings, **kwargs)  # type: ignore[misc]
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder for a step of the server; see vLLM."""

        def stock() -> Any:
            return super(PrunedModel, self).forward(  # type: ignore[misc]
                input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
            )

        if inputs_embeds is None:
            return stock()
        return self.pruning.run(
            get_forward_context(), stock, positions, inputs_embeds, self.added_features(len(inputs_embeds))
        )

    def _load_relevance(self, settings: Settings, family: Any, vllm_config: Any) -> Any:
        if not settings.method.wants_frames:
            return None
        device, dtype = vllm_config.device_config.device, vllm_config.model_config.dtype
        processor = cached_processor_from_config(vllm_config.model_config)
        loaded, missing = load_aligned(settings.relevance, family, processor, device=device, dtype=dtype)
        if missing and settings.method.wants_question:
            logger.warning(
                "%s: no segment is significant, all segments keep the same ratio (no global debiasing), and %s. Set "
                "relevance to the path of a SigLIP checkpoint",
                missing,
                UNCALIBRATED,
            )
        return loaded
