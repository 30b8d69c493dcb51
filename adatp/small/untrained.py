"""A small LLaVA-OneVision with random weights and any shape, for tests and for cases in which only shapes matter.

It has the classes, the processor and the layout of the published checkpoints. It has 18 decoder layers by default, so
that the paper's schedule fits. Its answers mean nothing.
"""

from typing import Any, NamedTuple

import torch
from tokenizers import models, pre_tokenizers
from transformers import (
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from adatp.relevance import Relevance
from adatp.small.assemble import SPECIAL, byte_level, fast_tokenizer, onevision_config, onevision_processor, take_tower

_TOWER_LAYERS = 3  # of the SigLIP's four layers


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
    """Load a model, its processor and its aligned SigLIP with random weights, in fp32 on the CPU.

    Args:
        seed: seed of the weights; the caller's random state does not change.
        layers: number of decoder layers.
        heads, key_heads: numbers of query and key heads of the decoder's attention.
        image_size: side of a frame, in pixels. Patches have a side of 14 pixels and are pooled 2 x 2.
        attention: Hugging Face's `attn_implementation`.
    """
    tokenizer = byte_tokenizer("left")
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=_TOWER_LAYERS + 1,
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
    config = onevision_config(vision, _TOWER_LAYERS, decoder, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
        model = LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    # bytes that are not printable ASCII would garble the terminal
    printable = {tokenizer.convert_tokens_to_ids(chr(c)) for c in range(33, 127)}
    printable |= {tokenizer.convert_tokens_to_ids("Ġ"), decoder.eos_token_id}
    model.generation_config.suppress_tokens = [i for i in range(len(tokenizer)) if i not in printable]
    take_tower(model, siglip)
    relevance = Relevance(siglip, byte_tokenizer("right"), _TOWER_LAYERS).eval()
    return Untrained(model, onevision_processor(image_size, vision.patch_size, tokenizer), relevance)


def byte_tokenizer(padding_side: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    return fast_tokenizer(byte_level(models.BPE(vocab=vocabulary, merges=[])), padding_side)
