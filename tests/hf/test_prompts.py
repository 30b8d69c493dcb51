"""Every kind of prompt, in both families.

Each is held to the same rule: with ratios of 1 the plain model's output, exactly; at real ratios the logits of a
recomputation that drops the same tokens, and a report that says what was dropped.
"""

import functools
import inspect
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from recompute import CLOSE, embeds_of, kept_tokens, prompt_embeds, recompute
from small_llava_video import small_llava_video
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from videollm import make_clip

import adatp
from adatp.layout import VideoSize
from adatp.models import family_of
from adatp.models.llava_video import TIME_INSTRUCTION

FRAMES = 6
TOKENS = 3
EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
TIMES = {"fps": 2.0, "frames_indices": list(range(FRAMES)), "total_num_frames": FRAMES}
END = "<|im_end|><|im_start|>assistant\n"


class Prompt(NamedTuple):
    """Text with placeholders, and the seeds of the clips and images that belong in their places."""

    text: str
    clips: tuple[int, ...] = ()
    images: tuple[int, ...] = ()

    @property
    def question(self) -> str:
        """The last line of the text, where `ask` wrote it."""
        return self.text.removesuffix(END).split("\n")[-1]


class Answer(NamedTuple):
    tokens: Tensor  # [B, t]
    logits: Tensor  # [B, t, V]
    output: Any  # what `generate` returned


@functools.cache
def clip(seed: int):
    return make_clip(FRAMES, shots=2 + seed % 3, seed=seed)


def ask(text: str, *clips: int, images: tuple[int, ...] = ()) -> Prompt:
    """A turn of the user's, and the beginning of the assistant's."""
    return Prompt(f"<|im_start|>user {text}{END}", clips, images)


def inputs_of(untrained, *prompts: Prompt) -> dict[str, Tensor]:
    """What the processor makes of a left-padded batch."""
    media: dict[str, Any] = {}
    if videos := [clip(seed) for prompt in prompts for seed in prompt.clips]:
        media = {"videos": videos, "video_metadata": [TIMES] * len(videos)}
    if images := [clip(seed)[0] for prompt in prompts for seed in prompt.images]:
        media["images"] = images
    return dict(untrained.processor(text=[p.text for p in prompts], padding=True, return_tensors="pt", **media))


def ids_of(untrained, text: str) -> Tensor:
    """`[1, l]`."""
    return untrained.processor.tokenizer(text, return_tensors="pt")["input_ids"]


def generate(untrained, inputs, tokens: int = TOKENS, **settings) -> Answer:
    output = untrained.model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True, **settings
    )
    logits = torch.stack(output.logits, 1)
    return Answer(output.sequences[:, -logits.shape[1] :], logits, output)


def full(untrained, inputs, **settings) -> Answer:
    """`generate` to the last token: no sample ends early."""
    return generate(untrained, inputs, min_new_tokens=TOKENS, **settings)


def keep_everything(untrained):
    return adatp.apply(untrained.model, untrained.processor, EVERYTHING)


def prune(untrained, **settings):
    return adatp.apply(untrained.model, untrained.processor, **{"relevance": untrained.relevance, **settings})


def padding_of(inputs, b: int) -> int:
    return int((inputs["attention_mask"][b] == 0).sum())


def same_kept(ours, theirs) -> bool:
    """Whether two samples keep the same tokens in every layer."""
    layers = range(len(theirs.kept))
    return ours.kept == theirs.kept and all(torch.equal(ours.kept_mask(i), theirs.kept_mask(i)) for i in layers)


@torch.no_grad()
def check(
    untrained, prompt: Tensor, sample, tokens: Tensor, logits: Tensor, padding: int = 0, before: Any = ()
) -> None:
    """Hold `[t]` tokens' `[t, V]` logits to a recomputation.

    Args:
        prompt: `[L, D]` embeddings of the first prompt, that was pruned.
        before: the tokens between it and those, all of them kept.
    """
    assert sample.kept[-1] < sample.kept[0] or not sample.videos, "something must have been dropped"
    sequence = torch.cat([torch.as_tensor(before, dtype=torch.int64), tokens[:-1]])
    kept = kept_tokens(sample, len(prompt), padding)
    again = recompute(untrained.model, embeds_of(untrained.model, prompt, sequence), kept, padding)
    torch.testing.assert_close(logits, again[-len(tokens) :], **CLOSE)


def hold(untrained, *prompts: Prompt):
    """Hold a batch to the rule, and each of its prompts to what it is alone; returns the report at real ratios."""
    inputs, single = inputs_of(untrained, *prompts), [inputs_of(untrained, prompt) for prompt in prompts]
    plain = [full(untrained, each) for each in single]
    with keep_everything(untrained):
        same = full(untrained, inputs)
    assert torch.equal(same.tokens, torch.cat([each.tokens for each in plain]))
    logits = torch.cat([each.logits for each in plain])
    torch.testing.assert_close(same.logits, logits, **({"atol": 0, "rtol": 0} if len(prompts) == 1 else CLOSE))

    embeds = prompt_embeds(untrained.model, inputs)
    with prune(untrained) as pruned:
        answer, report = full(untrained, inputs), pruned.report
        for b, sample in enumerate(report.samples):
            padding = padding_of(inputs, b)
            check(untrained, embeds[b], sample, answer.tokens[b], answer.logits[b], padding)
            alone = full(untrained, single[b])
            assert torch.equal(alone.tokens[0], answer.tokens[b])
            length = inputs["input_ids"].shape[1] - padding
            assert sample.visual_tokens + sample.other_tokens == length
            assert [video.frames for video in sample.videos] == [FRAMES] * len(prompts[b].clips)
            if sample.videos:
                assert same_kept(sample, pruned.report.samples[0]), "not what the prompt keeps alone"
                assert sample.question == pruned.report.samples[0].question
    assert report.pruned
    assert len(report.samples) == len(prompts)
    return report


def needs_features(untrained) -> None:
    if "mm_encoder_outputs" not in inspect.signature(untrained.model.forward).parameters:
        pytest.skip("this transformers takes no mm_encoder_outputs")


@contextmanager
def counted(*modules):
    """Counts the modules' forwards, in a list of one number."""
    runs = [0]

    def count(*_):
        runs[0] += 1

    handles = [module.register_forward_pre_hook(count) for module in modules]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def scoring_rows(monkeypatch):
    """The rows that score the first cut of each prefill, as the engine asks for them."""
    import adatp.engine.cuts

    seen, score = [], adatp.engine.scoring.score

    def spy(query, key, rows, columns, **settings):
        seen.append(rows[0].tolist())
        return score(query, key, rows, columns, **settings)

    monkeypatch.setattr(adatp.engine.scoring, "score", spy)
    return seen


# Several videos and images

TWO = ask("Here is <video>\nand here <video>\nWho is in both?", 0, 1)
THREE = ask("<video>\n<video>\nthen <video>\nWhich is the odd one?", 0, 1, 2)
ONE = ask("<video>\nWhat is in the picture?", 3)
NONE = ask("How are you, and what can you do for me today?")


class TestSeveralVideos:
    @pytest.mark.parametrize("prompt", [TWO, THREE], ids=["two", "three"])
    def test_in_one_prompt(self, videollm, prompt, scoring_rows):
        report = hold(videollm, prompt)
        family = family_of(videollm.model)
        count, c = len(prompt.clips), family.grid.tokens
        (sample,) = report.samples
        assert sample.videos == (VideoSize(FRAMES, sample.grid),) * count
        assert sample.visual_tokens == count * FRAMES * c, "every token of every video is prunable"
        assert sample.question == prompt.question

        ids = inputs_of(videollm, prompt)["input_ids"][0]
        end = int((ids == videollm.model.config.video_token_id).nonzero()[-1])
        assert scoring_rows[-len(set(sample.kept)) + 1] == list(range(end + 1, len(ids))), "the text after the last"

    def test_no_segment_holds_frames_of_two(self, videollm):
        prompt = ask("<video>\n<video>\n<video>\nWho?", 0, 0, 0)
        config = adatp.AdaTP(tau_s=-1.0)  # all frames of a video are one segment
        with prune(videollm, method=config) as pruned:
            full(videollm, inputs_of(videollm, prompt))
        segments = pruned.report.samples[0].segments
        assert [(s.start, s.stop) for s in segments] == [(0, FRAMES), (FRAMES, 2 * FRAMES), (2 * FRAMES, 3 * FRAMES)]

    @pytest.mark.parametrize("order", [(TWO, ONE, NONE), (NONE, ONE, TWO)])
    def test_two_and_one_and_none_in_a_batch(self, videollm, order):
        report = hold(videollm, *order)
        assert [len(s.videos) for s in report.samples] == [len(p.clips) for p in order]
        for sample, prompt in zip(report.samples, order, strict=True):
            if not prompt.clips:
                assert not any(sample.kept)
                assert sample.segments == ()

    @pytest.mark.parametrize("prompts", [(TWO,), (ONE, NONE, TWO)], ids=["alone", "batch"])
    def test_beams(self, videollm, prompts):
        inputs, beams = inputs_of(videollm, *prompts), {"num_beams": 2, "num_return_sequences": 2}
        plain = full(videollm, inputs, **beams)
        first = plain.logits[2 * prompts.index(TWO) :, 0]
        if not torch.allclose(first[0], first[1], atol=1e-4):  # up to transformers 5.17
            with keep_everything(videollm), pytest.raises(ValueError, match="several videos the wrong videos"):
                full(videollm, inputs, **beams)
            return
        with keep_everything(videollm):
            assert torch.equal(full(videollm, inputs, **beams).tokens, plain.tokens)
        embeds = prompt_embeds(videollm.model, inputs)
        with prune(videollm) as pruned:
            answer, report = full(videollm, inputs, **beams), pruned.report
        assert len(report.samples) == 2 * len(prompts)
        for i, (tokens, path) in enumerate(zip(answer.tokens, answer.output.beam_indices, strict=True)):
            logits = torch.stack([answer.logits[beam, step] for step, beam in enumerate(path)])
            assert same_kept(report.samples[i], report.samples[i // 2 * 2])
            check(videollm, embeds[i // 2], report.samples[i], tokens, logits, padding_of(inputs, i // 2))


@pytest.mark.parametrize(
    "text",
    [
        "<image>\n<video>\nWho is in both?",
        "<video>\n<image>\nWho is in both?",
        "<image>\n<video>\nand <image>\nWho is in both?",
        "<video>\n<image>\n<video>\nWho is in both?",
    ],
)
def test_video_and_images(videollm, text, scoring_rows):
    prompt = ask(text, *range(text.count("<video>")), images=(5, 6)[: text.count("<image>")])
    (sample,) = hold(videollm, prompt).samples
    assert sample.question.endswith("Who is in both?")
    ids, config = inputs_of(videollm, prompt)["input_ids"][0], videollm.model.config
    image = ids == config.image_token_id
    assert sample.other_tokens > image.sum() > 0
    after = torch.arange(len(ids)) > (ids == config.video_token_id).nonzero()[-1]
    assert scoring_rows[-len(set(sample.kept)) + 1] == (after & ~image).nonzero().flatten().tolist()


# Where the question stands


@pytest.mark.parametrize(
    "text",
    [
        f"<|im_start|>user Who is it? <video>{END}",
        f"<|im_start|>system\nBe kind.<|im_end|><|im_start|>user <video>\nWho is it?{END}",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<video>\nWho is it?<|im_end|>\n"
        "<|im_start|>assistant\n",
        f"<|im_start|>system\nBe kind.<|im_end|><|im_start|>user Who is it?\n<video>{END}",
        "<video>\nWho is it?",
        "Look at this. <video> Who is it?",
        "Who is it? <video>\n",
    ],
)
def test_the_question_before_or_after_the_video_with_or_without_markup(videollm, text):
    (sample,) = hold(videollm, Prompt(text, (0,))).samples
    assert sample.question == "Who is it?"
    assert len(sample.similarity) == FRAMES


@pytest.mark.parametrize("system", [False, True])
def test_the_processors_chat_template(videollm, system):
    turns = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who is it?"}]}]
    if system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": "Be kind."}]})
    text = videollm.processor.apply_chat_template(turns, add_generation_prompt=True)
    assert ("Be kind." in text) == system
    (sample,) = hold(videollm, Prompt(text, (0,))).samples
    assert sample.question == "Who is it?"


# Batches


@pytest.mark.parametrize(
    "prompts",
    [
        [ask("<video>\nWhat is in the picture?", 0), ask("<video>\nWho is he, then?", 0)],
        [ask("<video>\nWhat is in the picture?", 0), ask("<video>\nWhat is in the picture?", 1)],
        [ask("<video>\nWhy?", 2), ask("<video>\nHow many shots has this video?", 1), ask("<video>\nAnd who?", 0)],
    ],
    ids=["questions", "videos", "both"],
)
def test_a_batch_is_each_of_its_prompts_alone(videollm, prompts):
    report = hold(videollm, *prompts)
    assert [s.question for s in report.samples] == [p.question for p in prompts]
    first = report.samples[0]
    assert not any(same_kept(first, sample) for sample in report.samples[1:]), "the prompts should keep other tokens"


def test_the_time_instruction_is_no_part_of_the_question():
    untrained = small_llava_video(add_time_instruction=True)
    prompts = [ask("<video>\nWhy?", 0), ask("<video>\nHow many shots are there?", 1)]
    told = untrained.processor.tokenizer.decode(inputs_of(untrained, *prompts)["input_ids"][1])
    assert TIME_INSTRUCTION.split("{")[0] in told
    assert [s.question for s in hold(untrained, *prompts).samples] == ["Why?", "How many shots are there?"]


# Several turns


class EndAfter(LogitsProcessor):
    """Sample b ends after `lengths[b]` tokens, and not before."""

    def __init__(self, end: int, lengths):
        self.end, self.lengths, self.step = end, lengths, 0

    def __call__(self, input_ids, scores):
        self.step += 1
        scores = scores.clone()
        scores[:, self.end] = float("-inf")
        for b, length in enumerate(self.lengths):
            if self.step == length:
                scores[b] = float("-inf")
                scores[b, self.end] = 0
        return scores


class Talk:
    """A conversation with a batch: each turn goes to `generate` in full, with the cache of the turn before."""

    def __init__(self, untrained, inputs) -> None:
        self.untrained = untrained
        self.ids, self.mask = inputs["input_ids"], inputs["attention_mask"]
        self.media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        self.cache = None

    def answer(self, *lengths: int) -> Answer:
        """Answers of so many tokens, their end included."""
        processor = LogitsProcessorList([EndAfter(self.untrained.model.config.text_config.eos_token_id, lengths)])
        inputs = {"input_ids": self.ids, "attention_mask": self.mask, "past_key_values": self.cache, **self.media}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        answer = generate(self.untrained, inputs, max(lengths) + 1, logits_processor=processor)
        self.ids, self.cache, self.media = answer.output.sequences, answer.output.past_key_values, {}
        self.mask = torch.cat([self.mask, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()], 1)
        return answer

    def say(self, text: str) -> None:
        said = ids_of(self.untrained, text).repeat(len(self.ids), 1)
        self.ids, self.mask = torch.cat([self.ids, said], 1), torch.cat([self.mask, torch.ones_like(said)], 1)


def turns(untrained, inputs, lengths):
    """For each turn of a conversation: its answer, and each sample's tokens since the first prompt before it."""
    talk, prompt = Talk(untrained, inputs), inputs["input_ids"].shape[1]
    for question, ends in zip([None, "And where?", "Why?"], lengths, strict=True):
        if question:
            talk.say(f"<|im_start|>user {question}{END}")
        before = [ids[mask.bool()] for ids, mask in zip(talk.ids[:, prompt:], talk.mask[:, prompt:], strict=True)]
        yield talk.answer(*ends), before


class TestSeveralTurns:
    @pytest.mark.parametrize(
        ("prompts", "lengths"),
        [
            ([ONE], [(4,), (3,), (3,)]),
            ([TWO], [(4,), (3,), (3,)]),
            ([ONE, ask("<video>\nWhy?", 1)], [(2, 5), (4, 2), (3, 3)]),
            ([ask("<video>\nWhy?", 1), NONE], [(5, 2), (1, 3), (3, 3)]),
        ],
        ids=["single", "two videos", "batch", "batch with a prompt without a video"],
    )
    def test_follow_ups_on_the_kept_cache(self, videollm, prompts, lengths):
        """The first question's pruning stands; what follows is all kept. Answers may end at different lengths."""
        inputs = inputs_of(videollm, *prompts)
        embeds = prompt_embeds(videollm.model, inputs)
        plain = [answer for answer, _ in turns(videollm, inputs, lengths)]
        with keep_everything(videollm):
            for (same, _), expected in zip(turns(videollm, inputs, lengths), plain, strict=True):
                for b in range(len(prompts)):
                    real = slice(int((expected.tokens[b] != videollm.processor.tokenizer.pad_token_id).sum()))
                    assert torch.equal(same.tokens[b], expected.tokens[b])
                    torch.testing.assert_close(same.logits[b, real], expected.logits[b, real], **CLOSE)
                assert len(prompts) > 1 or torch.equal(same.logits, expected.logits)
        reports = []
        with prune(videollm) as pruned:
            for ends, (answer, before) in zip(lengths, turns(videollm, inputs, lengths), strict=True):
                reports.append(pruned.report)
                for b, sample in enumerate(pruned.report.samples):
                    tokens, logits = (part[b, : ends[b]] for part in (answer.tokens, answer.logits))
                    check(videollm, embeds[b], sample, tokens, logits, padding_of(inputs, b), before[b])
        report = reports[0]
        assert all(later is report for later in reports), "a follow-up leaves the report alone"
        assert [s.question for s in report.samples] == [p.question if p.clips else None for p in prompts]

    def test_a_fresh_prefill_is_cut_by_the_last_question(self, videollm):
        second = Prompt(f"{ONE.text}A man.<|im_end|><|im_start|>user And where is the red block?{END}", ONE.clips)
        (first,), (last,) = hold(videollm, ONE).samples, hold(videollm, second).samples
        assert (first.question, last.question) == ("What is in the picture?", "And where is the red block?")
        assert first.similarity != last.similarity
        assert not same_kept(first, last)

    def test_the_cache_cannot_be_used_after_remove(self, videollm):
        talk = Talk(videollm, inputs_of(videollm, ONE))
        with prune(videollm):
            talk.answer(3)
        talk.say(f"<|im_start|>user And where?{END}")
        with pytest.raises(RuntimeError, match="can only be continued while the method is applied to the model"):
            talk.answer(3)


# Features of the tower that are used again


def asked_of(untrained, features, *prompts: Prompt) -> dict[str, Any]:
    inputs = inputs_of(untrained, *prompts)
    del inputs["pixel_values_videos"]
    return {**inputs, "mm_encoder_outputs": {"video": features}}


@torch.no_grad()
def features_of(untrained, *prompts: Prompt):
    pixels = inputs_of(untrained, *prompts)["pixel_values_videos"]
    return untrained.model.get_video_features(pixel_values_videos=pixels, return_dict=True)


class TestFeaturesBeforehand:
    OTHER = ask("<video>\nWho is he, then?", *ONE.clips)

    @pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
    def test_two_questions_about_one_video_encode_it_once(self, videollm, settings):
        needs_features(videollm)
        model = videollm.model
        plain = [full(videollm, inputs_of(videollm, prompt)) for prompt in (ONE, self.OTHER)]
        with keep_everything(videollm):
            features = features_of(videollm, ONE)
            for prompt, expected in zip((ONE, self.OTHER), plain, strict=True):
                assert torch.equal(full(videollm, asked_of(videollm, features, prompt)).logits, expected.logits)
        with prune(videollm) as pruned:
            expected, reports = [], []
            for prompt, given in ((ONE, settings), (self.OTHER, {})):
                expected.append(full(videollm, inputs_of(videollm, prompt), **given))
                reports.append(pruned.report)
            with counted(model.model.vision_tower) as runs:
                features = features_of(videollm, ONE)
                shape = features.pooler_output.shape
                for i, (prompt, given) in enumerate(((ONE, settings), (self.OTHER, {}))):
                    answer = full(videollm, asked_of(videollm, features, prompt), **given)
                    assert torch.equal(answer.tokens, expected[i].tokens)
                    assert torch.equal(answer.logits, expected[i].logits)
                    assert pruned.report == reports[i]
                    assert features.pooler_output.shape == shape, "the caller's features were changed"
            assert runs == [1]
        assert not same_kept(reports[0].samples[0], reports[1].samples[0])

    def test_a_batch_about_one_video_needs_its_tokens_once_a_prompt(self, videollm):
        """Hugging Face wants a video's tokens for every placeholder; the tower's states may be there once."""
        needs_features(videollm)
        prompts = (ONE, self.OTHER)
        features = features_of(videollm, ONE)
        for context in (nullcontext, functools.partial(prune, videollm)):
            with context(), pytest.raises((ValueError, RuntimeError), match="features and video tokens do not match"):
                full(videollm, asked_of(videollm, features, *prompts))
        with prune(videollm) as pruned:
            expected = full(videollm, inputs_of(videollm, *prompts))
            report = pruned.report
            features.pooler_output = features.pooler_output.repeat(2, 1, 1)
            answer = full(videollm, asked_of(videollm, features, *prompts))
            assert torch.equal(answer.tokens, expected.tokens)
            assert all(map(same_kept, pruned.report.samples, report.samples))


# Embeddings instead of ids


def embedded(untrained, *prompts: Prompt) -> dict[str, Tensor]:
    """The prompts as embeddings, with those of the placeholders in them."""
    inputs = inputs_of(untrained, *prompts)
    embeds = untrained.model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    return {**inputs, "inputs_embeds": embeds}


class TestEmbeddings:
    PROMPTS = (ONE, ask("<video>\nWhy?", 1))

    @pytest.mark.parametrize("count", [1, 2])
    def test_are_pruned_like_ids_where_the_question_is_given(self, videollm, count):
        prompts, questions = self.PROMPTS[:count], ["What is in the picture?", "Why?"][:count]
        inputs, embeds = inputs_of(videollm, *prompts), embedded(videollm, *prompts)
        plain = full(videollm, embeds)
        with keep_everything(videollm):
            same = full(videollm, embeds)
            assert torch.equal(same.tokens, plain.tokens)
            assert count > 1 or torch.equal(same.logits, plain.logits)
        whole = prompt_embeds(videollm.model, inputs)
        with prune(videollm, question=questions) as pruned:
            answer, report = full(videollm, embeds), pruned.report
            expected = full(videollm, inputs)
            assert torch.equal(answer.logits, expected.logits)
            assert report == pruned.report
            with torch.no_grad():
                forward = videollm.model(**embeds).logits[:, -1]
            torch.testing.assert_close(forward, answer.logits[:, 0], **CLOSE)
        assert [s.question for s in report.samples] == questions
        for b, sample in enumerate(report.samples):
            check(videollm, whole[b], sample, answer.tokens[b], answer.logits[b], padding_of(inputs, b))

    def test_without_a_question_the_user_is_told(self, videollm):
        inputs, embeds = inputs_of(videollm, ONE), embedded(videollm, ONE)
        whole = prompt_embeds(videollm.model, inputs)
        with prune(videollm) as pruned, pytest.warns(adatp.NoRelevanceWarning, match="has no question.*question="):
            answer = full(videollm, embeds)
        (sample,) = pruned.report.samples
        assert sample.question is None
        assert not any(segment.significant for segment in sample.segments)
        assert any("has no question" in note for note in pruned.report.notes)
        check(videollm, whole[0], sample, answer.tokens[0], answer.logits[0])

    def test_with_the_features_already_in_them_pass_through(self, videollm):
        inputs = inputs_of(videollm, *self.PROMPTS)
        merged = {
            "inputs_embeds": prompt_embeds(videollm.model, inputs),
            "attention_mask": inputs["attention_mask"],
        }
        plain = full(videollm, merged)
        with prune(videollm) as pruned:
            assert torch.equal(full(videollm, merged).logits, plain.logits)
            assert not pruned.report.pruned
            assert "found by its placeholders' embeddings" in pruned.report.reason


# Without a video

IMAGE = ask("<image>\nWhat is it?", images=(4,))


@pytest.mark.parametrize(
    "prompts",
    [[NONE], [NONE, ask("Hello!")], [IMAGE], [IMAGE, ask("<image>\n<image>\nBoth?", images=(5, 6))], [IMAGE, NONE]],
    ids=["text", "texts", "image", "images", "image and text"],
)
def test_prompts_without_a_video_are_left_alone(videollm, prompts):
    inputs = inputs_of(videollm, *prompts)
    plain = full(videollm, inputs)
    with prune(videollm) as pruned:
        answer = full(videollm, inputs)
        assert pruned.report.reason == "no video in the prompt"
        assert pruned.report.samples == ()
        assert torch.equal(answer.tokens, plain.tokens)
        assert torch.equal(answer.logits, plain.logits)
        full(videollm, inputs_of(videollm, ONE))
        assert pruned.report.pruned, "and the next prompt with a video is pruned"


# What is refused


def cut_after_the_video(model, inputs):
    end = int((inputs["input_ids"][0] == model.config.video_token_id).nonzero()[-1]) + 1
    return {**inputs, **{name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}}


def padded_on_the_right(_, inputs):
    mask = inputs["attention_mask"].clone()
    mask[:, -2:] = 0
    return {**inputs, "attention_mask": mask}


def with_a_mask_of_four_dimensions(_, inputs):
    length = inputs["input_ids"].shape[1]
    return {**inputs, "attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool).tril()}


def with_a_filled_cache(model, inputs):
    cache, (shape, width) = DynamicCache(), ((1, 2, 3, 32), len(model.model.language_model.layers))
    for layer in range(width):
        cache.update(torch.zeros(shape), torch.zeros(shape), layer)
    return {**inputs, "past_key_values": cache}


BAD_INPUTS = [
    (cut_after_the_video, "no text after its video"),
    (padded_on_the_right, "padded on the left only"),
    (with_a_mask_of_four_dimensions, "attention_mask.* must be"),
    (with_a_filled_cache, "a video cannot be pruned if the cache"),
]


class TestRefusedBeforeAnythingRuns:
    """Neither the vision tower nor a layer of the decoder runs, and the next good prompt does."""

    @contextmanager
    def refused(self, untrained, match):
        body, inputs = untrained.model.model, inputs_of(untrained, ask("Who is it? <video>\nWhat is he?", 0))
        with prune(untrained) as pruned:
            with counted(body.vision_tower, *body.language_model.layers) as runs:
                with pytest.raises(ValueError, match=match):
                    yield untrained.model, inputs
            with torch.no_grad():
                untrained.model(**inputs)
            assert pruned.report.pruned
        assert runs == [0], f"{runs[0]} modules ran before the refusal"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prefill_chunk_size", 16),
            *(("cache_implementation", name) for name in ("offloaded", "quantized", "paged", "offloaded_static")),
        ],
    )
    @pytest.mark.parametrize("where", ["arguments", "generation_config"])
    def test_a_setting_of_generate(self, videollm, name, value, where):
        given = {name: value}
        if where == "generation_config":
            config = GenerationConfig(max_new_tokens=1)
            setattr(config, name, value)
            given = {"generation_config": config}
        with self.refused(videollm, f"{name}.* cannot be") as (model, inputs):
            model.generate(**inputs, **given)

    def test_a_setting_of_the_models(self, videollm, monkeypatch):
        with self.refused(videollm, "prefill_chunk_size cannot be set") as (model, inputs):
            with monkeypatch.context() as patched:
                patched.setattr(model.generation_config, "prefill_chunk_size", 16, raising=False)
                model.generate(**inputs)

    @pytest.mark.parametrize(
        "name", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"]
    )
    def test_continuous_batching(self, videollm, name):
        with self.refused(videollm, f"{name}: continuous batching") as (model, inputs):
            getattr(model, name)(inputs=inputs["input_ids"].tolist())

    def test_gradients(self, videollm):
        with self.refused(videollm, "has no gradients") as (model, inputs), torch.enable_grad():
            model(**inputs)

    def test_labels(self, videollm):
        with self.refused(videollm, "labels cannot be given") as (model, inputs), torch.no_grad():
            model(**inputs, labels=inputs["input_ids"])

    @pytest.mark.parametrize("method", ["forward", "generate"])
    @pytest.mark.parametrize(("change", "match"), BAD_INPUTS)
    def test_bad_inputs(self, videollm, change, match, method):
        with self.refused(videollm, match) as (model, inputs), torch.no_grad():
            inputs = change(model, inputs)
            model(**inputs) if method == "forward" else model.generate(**inputs, max_new_tokens=1)


def test_sliding_windows_are_refused(videollm, monkeypatch):
    config = videollm.model.config.text_config
    monkeypatch.setattr(config, "layer_types", ["full_attention"] * 8 + ["sliding_attention"] * 8)
    with pytest.raises(ValueError, match="sliding-window layers"):
        prune(videollm)
