"""What happens to requests in a server: preemption, blocks that are used again, aborts, several answers."""

import pytest
from vllm_models import TEXT, asked, by_transformers, generate, make_llm, preemptions, prompt, video

from adatp.methods import AdaTP

TOKENS = 100
FEW = {
    "block_size": 32,
    "max_model_len": 640,
    "num_gpu_blocks_override": 81,
}  # room for two requests, but not to the end


@pytest.fixture(scope="module")
def reference(onevision):
    """What transformers answers to four prompts."""
    return by_transformers(onevision, AdaTP(), [asked(number) for number in range(4)], TOKENS, None)


@pytest.fixture(scope="module")
def llm(onevision):
    """A server whose cache has room for one or two requests at a time."""
    return make_llm(onevision, AdaTP(), disable_log_stats=False, **FEW)


def test_preempted_requests_are_pruned_as_before(llm, reference):
    """They are computed again with what was generated. The rows that score end where the prompt ends."""
    before = preemptions(llm)
    assert generate(llm, [asked(number) for number in range(4)], TOKENS) == [answer.tokens for answer in reference]
    assert preemptions(llm) > before


def test_blocks_are_used_again(llm, reference):
    """Text inherits the blocks of videos and back; whoever begins writes how many tokens are missing."""
    text = generate(llm, [TEXT] * 4, TOKENS)
    for _ in range(2):
        assert generate(llm, [asked(number) for number in range(4)], TOKENS) == [r.tokens for r in reference]
        assert generate(llm, [TEXT] * 4, TOKENS) == text


def test_n_answers_and_sampling(llm):
    from vllm import SamplingParams

    params = SamplingParams(n=3, temperature=0.8, seed=5, max_tokens=30, ignore_eos=True)
    [several] = llm.generate([asked(0)], params, use_tqdm=False)
    [again] = llm.generate([asked(0)], params, use_tqdm=False)
    answers = [list(answer.token_ids) for answer in several.outputs]
    assert answers == [list(answer.token_ids) for answer in again.outputs]
    assert len({tuple(answer) for answer in answers}) == 3


def test_an_abort_leaves_the_others_alone(llm, reference):
    from vllm import SamplingParams

    engine, done = llm.llm_engine, {}
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    for number in range(3):
        engine.add_request(str(number), asked(number), params)
    for step in range(300):
        if step == 5:
            engine.abort_request(["1"])
        for answer in engine.step():
            done[answer.request_id.split("-")[0]] = list(answer.outputs[0].token_ids)
        if not engine.has_unfinished_requests():
            break
    assert done["0"] == reference[0].tokens
    assert done["2"] == reference[2].tokens
    assert len(done["1"]) < TOKENS


def test_several_videos_and_an_image(onevision, llm):
    two = {
        "prompt": prompt("Which?").replace("<video>", "<video>\nand <video>"),
        "multi_modal_data": {"video": [video(1, 4), video(2, 4)]},
    }
    image = {
        "prompt": "<|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant\n",
        "multi_modal_data": {"image": video(3, 1)[0]},
    }
    [expected] = by_transformers(onevision, AdaTP(), [two], TOKENS, None)
    [alone] = generate(llm, [image], TOKENS)
    assert generate(llm, [two, image], TOKENS) == [expected.tokens, alone]
