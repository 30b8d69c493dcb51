"""What a pruned server refuses: at its start with the flags to set, and requests with what is wrong in them."""

import pytest
from vllm_models import SIZES, TEXT, asked, by_transformers, generate, make_llm, prompt, video

from adatp.methods import AdaTP
from adatp.vllm import engine_args
from adatp.vllm.arguments import ARCHITECTURES, flags


@pytest.fixture(scope="module")
def llm(onevision):
    return make_llm(onevision)


def configure(model, **changes):
    """Return vLLM's configuration of a pruned server with some changes; no process is started."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(str(model), **{**engine_args(model), **SIZES, **changes}).create_engine_config()


def refused(match):
    from vllm.exceptions import VLLMValidationError

    return pytest.raises((ValueError, VLLMValidationError), match=match)


class TestAtTheStart:
    def test_a_server_with_all_flags_starts(self, onevision):
        assert configure(onevision).model_config.architecture == ARCHITECTURES["llava_onevision"]

    def test_at_vllms_default_flags_every_flag_is_named(self, onevision):
        from vllm.engine.arg_utils import EngineArgs

        chosen = {"hf_overrides": {"architectures": [ARCHITECTURES["llava_onevision"]]}}
        with pytest.raises(ValueError, match="adatp cannot prune in this server") as refused:
            EngineArgs(str(onevision), **SIZES, **chosen).create_engine_config()
        wanted = flags(engine_args(onevision))
        by_default = {"--hf-overrides", "--additional-config", "--compilation-config"}
        for flag in (flag for flag in wanted if flag.startswith("--") and flag not in by_default):
            assert flag in str(refused.value)

    @pytest.mark.parametrize(
        ("changes", "wanted"),
        [
            ({"enable_prefix_caching": True}, "--no-enable-prefix-caching"),
            ({"enable_chunked_prefill": True}, "--no-enable-chunked-prefill"),
            ({"worker_cls": "auto"}, "--worker-cls adatp.vllm.runtime.worker.Worker"),
            ({"scheduler_cls": None}, "--scheduler-cls adatp.vllm.runtime.scheduler.make_scheduler"),
            ({"logits_processors": None}, "--logits-processors adatp.vllm.runtime.prompt_logprobs"),
            ({"long_prefill_token_threshold": 100}, "--long-prefill-token-threshold 0"),
            ({"disable_hybrid_kv_cache_manager": True}, "--no-disable-hybrid-kv-cache-manager"),
            ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 1"),
            ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "--decode-context-parallel-size 1"),
            ({"enable_dbo": True}, "leave out --enable-dbo"),
            ({"enable_lora": True}, "leave out --enable-lora"),
            ({"enable_prompt_embeds": True}, "leave out --enable-prompt-embeds"),
            ({"enable_mm_embeds": True}, "leave out --enable-mm-embeds"),
            (
                {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
                "leave out --speculative-config",
            ),
            (
                {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
                "leave out --kv-transfer-config",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_flag_that_does_not_fit(self, onevision, changes, wanted):
        with pytest.raises(ValueError, match="adatp cannot prune in this server") as refused:
            configure(onevision, **changes)
        assert str(refused.value).count("\n- ") == 1
        assert wanted in str(refused.value)

    def test_the_runner_that_has_not_been_tested(self, onevision, monkeypatch):
        from vllm.config import VllmConfig

        monkeypatch.setattr(VllmConfig, "use_v2_model_runner", True)  # vLLM remembers its environment
        with pytest.raises(ValueError, match="set VLLM_USE_V2_MODEL_RUNNER=0"):
            configure(onevision)

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ([], "must be an object with method, settings and relevance"),
            ({"method": "best"}, "method must be one of"),
            ({"methods": "adatp"}, "no entry 'methods'"),
            ({"settings": ["p"]}, "must be an object of settings by name"),
            ({"settings": {"keep": 1}}, "has no setting 'keep'"),
            ({"settings": {"p": 9}}, "p must be in"),
            ({"settings": {"last": 30}}, "last must be a layer of the model"),
            ({"relevance": 5}, "must be a name, a path, 'auto' or null"),
        ],
    )
    def test_settings(self, onevision, given, wanted):
        with pytest.raises(ValueError, match=wanted):
            configure(onevision, additional_config={"adatp": given})

    def test_attention_that_reads_lengths_on_the_host(self):
        from vllm.config import CUDAGraphMode
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        from adatp.errors import Unsupported
        from adatp.vllm.runtime.requirements import check_attention

        class Other(CPUAttentionBackend):
            @staticmethod
            def get_name():
                return "FLASHINFER"

        check_attention(CPUAttentionBackend, CUDAGraphMode.PIECEWISE)
        with pytest.raises(Unsupported, match="set --attention-backend FLASH_ATTN or TRITON_ATTN"):
            check_attention(Other, CUDAGraphMode.PIECEWISE)
        with pytest.raises(Unsupported, match="cudagraph_mode"):
            check_attention(CPUAttentionBackend, CUDAGraphMode.FULL)


class TestRequests:
    @pytest.fixture(autouse=True)
    def _goes_on(self, llm):
        """After whatever was refused, the next request is answered."""
        before = generate(llm, [asked(0)])
        yield
        assert generate(llm, [asked(0)]) == before

    def test_log_probabilities_of_the_prompt(self, llm):
        with refused("prompt_logprobs cannot be given"):
            generate(llm, [asked(0)], prompt_logprobs=1)

    @pytest.mark.parametrize(
        ("text", "videos", "wanted"),
        [
            ("<video>", 1, "no text after its video"),
            ("what is <video>", 1, "no text after its video"),
            ("<video><video>What?", 2, "there must be text, at least a newline, between two videos"),
        ],
    )
    def test_a_prompt_that_cannot_be_pruned(self, llm, text, videos, wanted):
        given = {"prompt": text, "multi_modal_data": {"video": [video(number, 4) for number in range(videos)]}}
        with refused(wanted):
            generate(llm, [given])

    @pytest.mark.parametrize("frames", [0, 200])
    def test_a_video_of_no_frames_or_too_many(self, llm, frames):
        with refused(r".+"):
            generate(llm, [{"prompt": prompt("What?"), "multi_modal_data": {"video": video(0, frames)}}])


def test_a_video_waits_for_room_in_the_tower(onevision):
    """VLLM would compute the prompt up to the video at once and the rest later, even with chunked prefill off."""
    prompts = [asked(0), asked(1), TEXT, asked(2)]
    llm = make_llm(onevision, AdaTP())
    text = generate(llm, [TEXT])[0]
    llm.llm_engine.engine_core.engine_core.scheduler.max_num_encoder_input_tokens = 500  # one video has 393 tokens
    expected = [answer.tokens for answer in by_transformers(onevision, AdaTP(), [asked(n) for n in range(3)], 16, None)]
    assert generate(llm, prompts) == [expected[0], expected[1], text, expected[2]]
