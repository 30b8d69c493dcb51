"""LLaVA-Video inside vLLM, which has no such model: token for token what transformers does."""

import pytest
from vllm_families import save_llava_video, timed
from vllm_models import TEXT, asked, by_transformers, generate, kept_of, make_llm, save_siglip, videos_of

from adatp.errors import InputError
from adatp.methods import AdaTP, FastV
from adatp.models import load_processor

TOKENS = 40
UNTOLD = {"fps": 2.0, "frames_indices": range(8)}  # not how long the video lasts
CASES = {
    "adatp": ("average", AdaTP(tau_s=0.9, tau_t=0.0)),
    "adatp, bilinear": ("bilinear", AdaTP(tau_s=0.9, tau_t=0.0)),
    "fastv": ("average", FastV(keep=0.3)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    sizes = {"average": 196, "bilinear": 210}  # 15 x 15 patches, of which the mean would lose a row
    return {pool: save_llava_video(tmp_path_factory.mktemp(pool), pool, side) for pool, side in sizes.items()}


@pytest.fixture(scope="module")
def llm(models):
    """The server of the tests at the end: in one process vLLM ends with the first of its engines."""
    return make_llm(models["average"], mm_processor_cache_gb=1)


def prompt_ids(llm, given):
    [answer] = llm.generate([given], use_tqdm=False)
    return answer.prompt_token_ids


def by_processor(model, given, add_time_instruction):
    processor = load_processor(model)
    processor.add_time_instruction = add_time_instruction
    return list(processor(text=given["prompt"], **videos_of(given))["input_ids"][0])


def several():
    """Prompts with videos of 8, 5, 9 and 6 frames, and other times."""
    return [timed(number, frames, 3 + number) for number, frames in enumerate((8, 5, 9, 6))]


@pytest.mark.parametrize("case", CASES)
def test_a_batch(models, monkeypatch, case):
    pool, method = CASES[case]
    expected = by_transformers(models[pool], method, several(), TOKENS, None)
    llm = make_llm(models[pool], method)
    found = kept_of(llm, monkeypatch)
    assert generate(llm, several(), TOKENS) == [answer.tokens for answer in expected]
    assert found == [answer.kept for answer in expected]
    assert generate(llm, [several()[2]], TOKENS) == [expected[2].tokens]


def test_the_question_matters(models, tmp_path):
    siglip = str(save_siglip(tmp_path))
    method = AdaTP(tau_s=0.9, tau_t=0.0)
    expected = by_transformers(models["average"], method, several(), TOKENS, siglip)
    assert expected != by_transformers(models["average"], method, several(), TOKENS, None)
    llm = make_llm(models["average"], method, siglip)
    assert generate(llm, several(), TOKENS) == [answer.tokens for answer in expected]


def test_settings_of_the_processor(models):
    """Settings of the server hold for every request."""
    changes = {"add_time_instruction": False}
    llm = make_llm(models["average"], mm_processor_kwargs=changes)
    assert prompt_ids(llm, asked(0)) == by_processor(models["average"], asked(0), False)


def test_a_processor_that_samples_frames(models):
    """The server is refused when it starts, or the request where the setting is its own; see the tests of `llm`."""
    with pytest.raises(InputError, match=r"do_sample_frames.*media-io-kwargs"):
        make_llm(models["average"], mm_processor_kwargs={"do_sample_frames": True, "num_frames": 4})


def test_text_beside_videos(llm):
    alone = generate(llm, [TEXT], TOKENS)
    assert generate(llm, [timed(0), TEXT, timed(1)], TOKENS)[1:2] == alone


def test_the_same_frames_at_other_times(models, llm):
    """The cache of processed videos holds no times."""
    prompts = [timed(0, apart=apart) for apart in (2, 5)]
    for given in [*prompts, *prompts]:
        assert prompt_ids(llm, given) == by_processor(models["average"], given, True)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"fps": 2.0}, {**UNTOLD, "fps": 0, "total_num_frames": 8}, UNTOLD, "2 fps"]
)
def test_without_times(llm, metadata):
    """The error says what to pass, and the next request is answered."""
    given = asked(0)
    if metadata is not None:
        given["multi_modal_data"]["video"] = given["multi_modal_data"]["video"], metadata
    with pytest.raises(InputError, match=r"(fps.*frames_indices|total_num_frames); .*mm-processor-kwargs"):
        generate(llm, [given])
    assert len(generate(llm, [timed(0)])[0]) == 16


def test_a_request_that_samples_frames(llm):
    with pytest.raises(InputError, match="4 of the 8 frames"):
        generate(llm, [timed(0) | {"mm_processor_kwargs": {"do_sample_frames": True, "num_frames": 4}}])
    assert len(generate(llm, [timed(0)])[0]) == 16


def test_without_the_time_instruction(models, llm):
    own = {"mm_processor_kwargs": {"add_time_instruction": False}}
    assert prompt_ids(llm, asked(0) | own) == by_processor(models["average"], asked(0), False)


def test_the_text_after_a_video_is_encoded_as_a_whole():
    """As processors do: the end of the instruction and the beginning of what follows may be one token."""
    from tokenizers import models as encodings

    from adatp.small.assemble import byte_level, fast_tokenizer
    from adatp.vllm.runtime.models.llava_video import _with_text

    vocabulary = {token: i for i, token in enumerate(["<video>", "<|im_end|>", ".", "?", "a", ".?"])}
    tokenizer = fast_tokenizer(byte_level(encodings.BPE(vocab=vocabulary, merges=[(".", "?")])), "left")
    tokenizer.add_tokens(["<video>", "<|im_end|>"], special_tokens=True)

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False)

    written = _with_text(tokenizer, ids("a<video>?a<video>a<|im_end|>a<video>"), 0, iter(["a.", "a.", "."]))
    assert written == ids("a<video>a.?a<video>a.a<|im_end|>a<video>.")
    assert vocabulary[".?"] in written
