"""The LLaVA-Video family: LLaVA-OneVision with a newline token after every row, and the frames' times in the prompt.

transformers has no class for this model. Importing this module registers the classes here with its Auto classes. A
video is `frames * side * (side + 1)` tokens in raster order, with a newline at the end of every row. All of these
tokens are prunable.
"""

import functools
import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    ProcessorMixin,
)
from transformers.utils import can_return_tuple, is_torchvision_available
from transformers.video_utils import VideoMetadata, make_batched_videos

from adatp.errors import InputError
from adatp.layout import Grid
from adatp.models.llava_onevision import LlavaOnevision
from adatp.models.processor import TorchOnlyProcessor, load_parts

# exactly as in training: even the space before "Please" is missing there
TIME_INSTRUCTION = (
    "The video lasts for {duration} seconds, and {frames} frames are uniformly sampled from it. These frames are "
    "located at {times}.Please answer the following questions related to this video."
)
_TIME_INSTRUCTION = re.compile(".+?".join(re.escape(part) for part in re.split(r"\{\w+\}", TIME_INSTRUCTION)))
_HINT = (
    "pass a file, from which they are read, or "
    "video_metadata=[{'fps': ..., 'frames_indices': [...], 'total_num_frames': ...}, ...], one entry per video, or set "
    "processor.add_time_instruction = False"
)


def pooled_side(patches: int, mode: str) -> int:
    """Compute the side of a frame of `patches` x `patches` after 2 x 2 pooling, without newlines.

    The mode "average" drops an odd last row and column, "bilinear" keeps them.

    Raises:
        InputError: `mode` is neither "average" nor "bilinear".
    """
    if mode not in ("average", "bilinear"):
        raise InputError(f"spatial_pool_mode must be 'average' or 'bilinear', got {mode!r}")
    return patches // 2 if mode == "average" else math.ceil(patches / 2)


class LlavaVideoConfig(LlavaOnevisionConfig):
    """LLaVA-OneVision's configuration with the pooling of frames.

    Args:
        spatial_pool_mode: "average", as in the authors' evaluation, or "bilinear".

    Raises:
        InputError: `spatial_pool_mode` is neither of them.
    """

    model_type = "llava_video"

    spatial_pool_mode: str = "average"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        pooled_side(1, self.spatial_pool_mode)


class Pooling:
    """How the model pools frames. It stands before a class of LLaVA-OneVision, of transformers or of vLLM.

    Attributes:
        config: the configuration of the model.
        image_newline: the newline token, `[D]`.
    """

    config: LlavaVideoConfig
    image_newline: Tensor

    def apply_pooling(self, image_features: Tensor) -> Tensor:
        """Pool features `[F, patches, D]` of F frames to `[F, side * (side + 1), D]`, a newline after every row."""
        pooled = self.pool(image_features)
        newline = self.image_newline.to(pooled).expand(*pooled.shape[:2], 1, -1)
        return torch.cat((pooled, newline), 2).flatten(1, 2)

    def pool(self, maps: Tensor) -> Tensor:
        """Pool `[F, patches, D]` values of F frames' patches to `[F, side, side, D]`."""
        vision, mode = self.config.vision_config, self.config.spatial_pool_mode
        patches = vision.image_size // vision.patch_size
        side = pooled_side(patches, mode)
        if mode == "average":
            return avg_pool2d(maps.transpose(1, 2).unflatten(2, (patches, patches)), 2).permute(0, 2, 3, 1)
        pooled: Tensor = super().apply_pooling(maps).unflatten(1, (side, side))  # type: ignore[misc]
        return pooled


class LlavaVideoModel(Pooling, LlavaOnevisionModel):
    """The vision tower, the projector and the decoder without its head; images are handled as in LLaVA-OneVision."""

    config: LlavaVideoConfig

    @can_return_tuple
    @functools.wraps(LlavaOnevisionModel.get_video_features, assigned=())  # `generate` goes by the parameters' names
    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Compute video features as LLaVA-OneVision does, with `pooler_output` `[V, n * side * (side + 1), D]`.

        The arguments, `hidden_states` and `return_dict` are those of `LlavaOnevisionModel`. In versions of transformers
        that add the newline at a video's end in `forward`, the last token is missing here, as in `LlavaOnevisionModel`.
        """
        outputs = super().get_video_features(*args, **kwargs, return_dict=True)
        # OneVision adds a newline at the end of every video, here or in `forward`: it serves as the last row's newline
        outputs.pooler_output = outputs.pooler_output[:, :-1]
        return outputs


class LlavaVideoForConditionalGeneration(LlavaOnevisionForConditionalGeneration):
    """`LlavaVideoModel` with a language-modelling head."""

    config: LlavaVideoConfig

    def __init__(self, config: LlavaVideoConfig) -> None:
        # skips OneVision's constructor, which would build its own body
        super(LlavaOnevisionForConditionalGeneration, self).__init__(config)
        self.model = LlavaVideoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


class LlavaVideoProcessor(TorchOnlyProcessor):
    """LLaVA-OneVision's processor with this model's placeholders and its time instruction.

    All frames of a decoded video are used, unless `do_sample_frames` is set. The published models were trained with up
    to 64 uniformly sampled frames; other numbers work too.

    Args:
        spatial_pool_mode: as in the model's configuration.
        add_time_instruction: whether to write the length of a video and the times of its frames right after the video,
            as the published models were trained. `video_metadata` must then be given with decoded videos.

    The other arguments are those of `LlavaOnevisionProcessor`.

    Raises:
        InputError: `spatial_pool_mode` is neither "average" nor "bilinear".
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        spatial_pool_mode: str = "average",
        add_time_instruction: bool = True,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            video_processor,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            video_token=video_token,
            vision_aspect_ratio=vision_aspect_ratio,
        )
        pooled_side(1, spatial_pool_mode)
        self.spatial_pool_mode = spatial_pool_mode
        self.add_time_instruction = add_time_instruction

    @classmethod
    def from_pretrained(cls, checkpoint: Any, **kwargs: Any) -> Any:
        """Load the processor of a checkpoint, by name or path, with or without torchvision."""
        if is_torchvision_available():
            return super().from_pretrained(checkpoint, **kwargs)
        settings, changes = cls.get_processor_dict(checkpoint, **kwargs)
        return cls.from_args_and_dict(list(load_parts(checkpoint, **kwargs)), settings, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings."""
        return {**super().to_dict(), "processor_class": "LlavaVideoProcessor"}

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Build the inputs of the model, as `LlavaOnevisionProcessor` does.

        Args:
            images: as in `LlavaOnevisionProcessor`.
            text: prompts, with one `<video>` for every video.
            videos: as in `LlavaOnevisionProcessor`: paths, arrays, lists of frames; all with the same number of frames.
            **kwargs: as in `LlavaOnevisionProcessor`. `video_metadata` has, for every video, a `VideoMetadata` or a
                dict of its fields. It gives the time of each frame, `frames_indices[i] / fps` seconds, and the video's
                `duration` (by default `total_num_frames / fps`). The indices need not be integers.

        Raises:
            InputError: the number of `<video>` placeholders differs from the number of videos; the videos have
                different lengths; or, with `add_time_instruction`, there is not one time per frame.
        """
        # up to transformers 5.14 OneVision's own `__call__` expects images, or videos in OneVision's layout
        if images is not None and videos is None:
            return super().__call__(images=images, text=text, **kwargs)
        return ProcessorMixin.__call__(self, images=images, text=text, videos=videos, **kwargs)

    def validate_inputs(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> None:
        """Check the inputs of `__call__`, which calls this method."""
        if text is not None:  # older versions of transformers do not count the placeholders
            found = sum(prompt.count(self.video_token) for prompt in ([text] if isinstance(text, str) else text))
            given = 0 if videos is None else len(make_batched_videos(videos))
            if found != given:
                raise InputError(f"the prompts hold {found} {self.video_token} for {given} videos; use one per video")
        super().validate_inputs(images=images, text=text, videos=videos, **kwargs)

    def replace_video_token(self, video_inputs: Any, video_idx: int, **_: Any) -> str:
        """Return the placeholders of video `video_idx` in `video_inputs`."""
        side = pooled_side(math.isqrt(self.num_image_tokens), self.spatial_pool_mode)
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        return str(self.video_token) * (frames * side * (side + 1))

    def _process_videos(self, videos: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        processed, replacements = super()._process_videos(videos, **{**kwargs, "return_metadata": True})
        if not self.add_time_instruction:
            return processed, replacements
        metadata = processed["video_metadata"]
        frames = [len(video) for video in processed["pixel_values_videos"]]
        told = zip(replacements, frames, metadata, strict=True)
        return processed, [text + time_instruction(n, VideoMetadata(**entry), _HINT) for text, n, entry in told]


def time_instruction(frames: int, metadata: VideoMetadata, hint: str) -> str:
    """Write the length of a video and the times of its frames, as the published models were trained.

    Args:
        frames: number of frames.
        metadata: metadata of the video.
        hint: what a user can do if it does not tell the times; the end of the error.

    Raises:
        InputError: the metadata do not tell the times of the frames, or the length of the video.
    """
    fps, indices, total = metadata.fps, metadata.frames_indices, metadata.total_num_frames
    wrong = ""
    if not fps or indices is None or len(indices) != frames:
        wrong = (
            f"fps and as many frames_indices as there are frames, {frames}; got fps {fps} and "
            f"{'no' if indices is None else len(indices)} frames_indices"
        )
    elif total is None and metadata.duration is None:
        wrong = "total_num_frames"
    if wrong:
        told = "the prompt of this model contains the times of its frames"
        raise InputError(f"video_metadata must hold {wrong}; {told}: {hint}")
    duration = total / fps if metadata.duration is None else metadata.duration
    times = ",".join(f"{index / fps:.2f}s" for index in indices)
    return TIME_INSTRUCTION.format(duration=f"{duration:.2f}", frames=frames, times=times)


class LlavaVideo(LlavaOnevision):
    """The family: newlines are one more column of every frame, and prunable like all other tokens."""

    model_type = "llava_video"
    trailing_tokens = 0

    def read_config(self, config: Any) -> None:
        super().read_config(config)
        vision = config.vision_config
        side = pooled_side(vision.image_size // vision.patch_size, config.spatial_pool_mode)
        self.grid = Grid(side, side + 1, newlines=True)

    @classmethod
    def load_processor(cls, checkpoint: str) -> Any:
        return LlavaVideoProcessor.from_pretrained(checkpoint)

    def pool(self, maps: Tensor) -> Tensor:
        pooled: Tensor = self.body.pool(maps)
        return pooled.flatten(1, 2)

    def clean_question(self, text: str) -> str:
        """Return the question without the time instruction before it."""
        return _TIME_INSTRUCTION.sub("", text).strip()


AutoConfig.register(LlavaVideoConfig.model_type, LlavaVideoConfig, exist_ok=True)
AutoModel.register(LlavaVideoConfig, LlavaVideoModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaVideoConfig, LlavaVideoForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaVideoConfig, LlavaVideoProcessor, exist_ok=True)
