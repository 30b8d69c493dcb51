"""A small LLaVA-OneVision with random weights, of any shape: for tests, and as a stand-in where only shapes count.

Same classes, same processor, same layout as the published checkpoints; 18 decoder layers, so that the paper's schedule
applies. What it answers means nothing.
"""

from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from adatp.processor import TorchOnlyProcessor, VideoProcessor
from adatp.relevance import Relevance

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


class Untrained(NamedTuple):
    model: Any
    processor: Any
    relevance: Relevance


def load_untrained(
    *,
    seed: int = 2,
    layers: int = 18,
    heads: int = 4,
    key_heads: int = 2,
    image_size: int = 196,
    attention: str = "sdpa",
) -> Untrained:
    """Model, processor and aligned SigLIP with random weights, in fp32 on the CPU.

    Args:
        seed: of the weights; the caller's random state is left alone.
        layers: decoder layers.
        heads, key_heads: of the decoder's attention.
        image_size: side of a frame, pixels; patches are 14 pixels, pooled 2 x 2.
        attention: Hugging Face's `attn_implementation`.
    """
    tokenizer = _tokenizer("left")
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=14,
    )
    text = SiglipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    # the tower as LLaVA checkpoints ship it: without SigLIP's last layer and head
    tower = SiglipVisionConfig(**{**vision.to_dict(), "num_hidden_layers": 3, "vision_use_head": False})
    decoder = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32 * heads,
        intermediate_size=64 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=32768,
        initializer_range=0.1,  # larger than usual, so that attention of random weights prefers some tokens
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[image_size, image_size], [image_size, 2 * image_size]],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
        model = LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    # bytes that are no printable ASCII would only garble the terminal
    printable = {tokenizer.convert_tokens_to_ids(chr(c)) for c in range(33, 127)}
    printable |= {tokenizer.convert_tokens_to_ids("Ġ"), decoder.eos_token_id}
    model.generation_config.suppress_tokens = [i for i in range(len(tokenizer)) if i not in printable]
    # the tower's own weights, which relevance continues
    model.model.vision_tower.load_state_dict(siglip.vision_model.state_dict(), strict=False)
    size = {"height": image_size, "width": image_size}
    processor = TorchOnlyProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer=tokenizer,
        video_processor=VideoProcessor(size=size),
        num_image_tokens=(image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return Untrained(model, processor, Relevance(siglip, _tokenizer("right"), tower.num_hidden_layers).eval())


def _tokenizer(padding_side: str) -> PreTrainedTokenizerFast:
    """A token a byte, and Qwen2's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[1:],
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )
