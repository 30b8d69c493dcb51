"""The small model's tokenizer: byte-level BPE, as Qwen2's, of the world's words."""

from collections.abc import Iterator

import numpy as np
from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from adatp.small.assemble import CHAT_TEMPLATE, SPECIAL, byte_level, fast_tokenizer
from adatp.world.captions import describe
from adatp.world.clips import make_clip
from adatp.world.questions import ANSWERS, ask_all, with_options

_CLIPS = 300
_VOCABULARY = 640


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the merges from the training split's questions, answers and captions; always the same ones."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return fast_tokenizer(tokenizer, "left", chat_template=CHAT_TEMPLATE)


def _texts() -> Iterator[str]:
    for number in range(_CLIPS):
        world, rng = make_clip("train", number), np.random.default_rng(number)
        yield "assistant\n"
        yield " user"
        for asked in ask_all(world, rng):
            yield with_options(asked, world, rng).prompt
            yield asked.answer
            yield describe(world, rng).text
    for answers in ANSWERS.values():
        for answer in answers:
            yield from [answer, f" {answer}"] * 50
