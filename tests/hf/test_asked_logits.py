"""`logits_to_keep`: positions count as in the unpruned model, and those of dropped tokens are refused."""

import pytest
import torch
from recompute import CLOSE, kept_tokens, prompt_embeds, recompute
from transformers import DynamicCache
from videollm import make_inputs

import adatp
from adatp.errors import InputError
from adatp.hf.asked_logits import AskedLogits
from adatp.hf.batch import Batch
from adatp.models import family_of

EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
SINGLE, PADDED = ["What is in the picture?"], ["What is in the picture?", "And why?"]
METHODS = {
    "adatp": adatp.AdaTP(),
    "ratio 1": EVERYTHING,
    "fastv": adatp.FastV(),
    "pyramiddrop": adatp.PyramidDrop(),
    "dycoke": adatp.DyCoke(),
    "visionzip": adatp.VisionZip(),
    "pool": adatp.Pool(),
    "none": adatp.Unpruned(),
}
single_and_padded = pytest.mark.parametrize("questions", [SINGLE, PADDED], ids=["single", "padded"])


class Pruned:
    """A method in a model, and the prompts that it is given."""

    def __init__(self, untrained, questions, method=None):
        self.model, self.inputs = untrained.model, make_inputs(untrained, questions)
        self.padding = [int((mask == 0).sum()) for mask in self.inputs["attention_mask"]]
        self.length = self.inputs["input_ids"].shape[1]
        self._settings = (untrained.model, untrained.processor, method or adatp.AdaTP())
        self._relevance = untrained.relevance

    @torch.no_grad()
    def run(self, wanted=0, **inputs):
        with adatp.apply(*self._settings, relevance=self._relevance) as pruned:
            output = self.model(**{**self.inputs, **inputs}, logits_to_keep=wanted)
            self.samples = pruned.report.samples
            return output

    def everything(self):
        """For each prompt its logits by position in the batch, as far as they are left."""
        logits, known = self.run().logits, []
        for own, sample, padding in zip(logits, self.samples, self.padding, strict=True):
            left = kept_tokens(sample, self.length, padding)[-1].tolist()
            if sample._origins:  # in the order of the decoder, which may be another
                ordered = (padding + sample._origins[max(sample._origins)]).tolist()
                assert sorted(ordered) == left
                left = ordered
            known.append(dict(zip(left, own[-len(left) :], strict=True)))
        return known

    def dropped(self):
        """The last position that is not left in the first prompt."""
        left = self.everything()[0]
        return max(p for p in range(self.length) if p not in left)


def check(logits, known, positions):
    """Hold `[B, n, V]` logits to those of `[B][n]` positions."""
    assert logits.shape[:2] == (len(known), len(positions[0]))
    for own, expected, places in zip(logits, known, positions, strict=True):
        for row, place in zip(own, places, strict=True):
            torch.testing.assert_close(row, expected[place], **CLOSE)


class TestPositions:
    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    @single_and_padded
    def test_of_tokens_that_are_left(self, videollm, method, questions):
        pruned = Pruned(videollm, questions, method)
        known = pruned.everything()
        shared = sorted(set(known[0]).intersection(*known), reverse=True)
        visual = pruned.inputs["input_ids"][0] == videollm.model.config.video_token_id
        assert any(not visual[p] for p in shared)
        assert any(visual[p] for p in shared) or questions is PADDED
        wanted = torch.tensor(shared)
        check(pruned.run(wanted).logits, known, [shared] * len(known))
        check(pruned.run(wanted.int()).logits, known, [shared] * len(known))
        check(pruned.run(wanted - pruned.length).logits, known, [shared] * len(known))
        mask = torch.zeros(pruned.length, dtype=torch.bool).index_fill(0, wanted, True)
        check(pruned.run(mask).logits, known, [shared[::-1]] * len(known))

    def test_of_dycoke_whose_tokens_are_in_another_order(self, videollm):
        """A kept token is the one at its place in the prompt: its embedding says so."""
        pruned = Pruned(videollm, SINGLE, adatp.DyCoke(p=0.0))
        embeds = prompt_embeds(videollm.model, pruned.inputs)[0]
        output = pruned.run(output_hidden_states=True)
        found = [(embeds == row).all(1).nonzero().flatten().tolist() for row in output.hidden_states[0][0]]
        rows = [row for row, places in enumerate(found) if len(places) == 1]  # newlines are all alike
        places = [found[row][0] for row in rows]
        assert places != sorted(places)
        logits = pruned.run(torch.tensor(places)).logits
        torch.testing.assert_close(logits[0], output.logits[0, rows], **CLOSE)

    @pytest.mark.parametrize("negative", [False, True])
    def test_are_those_of_a_recomputation(self, videollm, negative):
        pruned = Pruned(videollm, SINGLE)
        embeds = prompt_embeds(videollm.model, pruned.inputs)[0]
        pruned.run()
        kept = kept_tokens(pruned.samples[0], pruned.length)
        asked = kept[-1][::3]
        with torch.no_grad():
            expected = recompute(videollm.model, embeds, kept)[::3]
        logits = pruned.run(asked - pruned.length if negative else asked).logits
        torch.testing.assert_close(logits[0], expected, **CLOSE)

    def test_at_ratio_one_are_the_plain_models(self, videollm):
        pruned, wanted = Pruned(videollm, SINGLE, EVERYTHING), torch.tensor([40, 3, -1, 7])
        with torch.no_grad():
            expected = videollm.model(**pruned.inputs, logits_to_keep=wanted).logits
        torch.testing.assert_close(pruned.run(wanted).logits, expected, **CLOSE)

    def test_one_without_a_dimension_and_none(self, videollm):
        pruned = Pruned(videollm, PADDED)
        known = pruned.everything()
        logits = pruned.run(torch.tensor(pruned.length - 2)).logits
        check(logits[:, None], known, [[pruned.length - 2]] * 2)
        assert pruned.run(torch.zeros(0, dtype=torch.int64)).logits.shape[:2] == (2, 0)

    def test_of_each_prompt(self, videollm):
        """As transformers 5.23 takes them; older ones give other shapes."""
        pruned = Pruned(videollm, PADDED)
        known = pruned.everything()
        places = [sorted(own)[:: -len(own) // 5] for own in known]
        n = min(map(len, places))
        wanted = torch.tensor([own[:n] for own in places])
        with torch.no_grad():
            if videollm.model(**pruned.inputs, logits_to_keep=wanted).logits.ndim != 3:
                pytest.skip("this transformers takes the same positions for all prompts")
        check(pruned.run(wanted).logits, known, wanted.tolist())
        mask = torch.zeros(2, pruned.length, dtype=torch.bool)
        for row, own in zip(mask, places, strict=True):
            row[own] = True
        flat = pruned.run(mask).logits
        expected = [known[b][p] for b, p in mask.nonzero().tolist()]
        torch.testing.assert_close(flat, torch.stack(expected), **CLOSE)

    def test_change_nothing_else(self, videollm):
        pruned, settings = Pruned(videollm, PADDED), {"output_hidden_states": True, "use_cache": True}
        whole = pruned.run(**settings)
        samples = pruned.samples
        asked = pruned.run(torch.tensor([-1]), **settings)
        assert pruned.samples == samples
        for ours, theirs in zip(asked.hidden_states, whole.hidden_states, strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(asked.past_key_values.layers, whole.past_key_values.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)

    def test_of_a_prompt_without_a_video_beside_one_with(self, videollm):
        video = make_inputs(videollm, SINGLE)
        text = videollm.processor.tokenizer("No video here", return_tensors="pt")["input_ids"]
        padding = video["input_ids"].shape[1] - text.shape[1]
        pruned = Pruned(videollm, SINGLE)
        pruned.padding.append(padding)
        ones = torch.nn.functional.pad(torch.ones_like(text), (padding, 0))
        pruned.inputs = {
            "input_ids": torch.cat([video["input_ids"], torch.nn.functional.pad(text, (padding, 0))]),
            "attention_mask": torch.cat([video["attention_mask"], ones]),
            "pixel_values_videos": video["pixel_values_videos"],
        }
        known = pruned.everything()
        last = [pruned.length - 1, pruned.length - text.shape[1]]
        check(pruned.run(torch.tensor(last)).logits, known, [last] * 2)
        with pytest.raises(InputError, match=rf"position {padding - 1} of sample 1, which is padding"):
            pruned.run(torch.tensor([padding - 1]))

    def test_of_text_alone_are_the_plain_models(self, videollm):
        text = videollm.processor.tokenizer("No video here", return_tensors="pt")
        with torch.no_grad():
            expected = videollm.model(**text, logits_to_keep=torch.tensor([2, -1])).logits
            with adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance):
                logits = videollm.model(**text, logits_to_keep=torch.tensor([2, -1])).logits
        assert torch.equal(logits, expected)


class TestRefused:
    @single_and_padded
    def test_positions_of_dropped_tokens(self, videollm, questions):
        pruned = Pruned(videollm, questions)
        dropped = pruned.dropped()
        for position in (dropped, dropped - pruned.length):
            with pytest.raises(adatp.Unsupported, match=f"position {dropped} of sample 0, which was dropped"):
                pruned.run(torch.tensor([pruned.length - 1, position]))

    def test_in_the_prompt_that_drops_it(self, videollm):
        pruned = Pruned(videollm, PADDED)
        first, second = pruned.everything()
        position = max(p for p in first if p not in second)
        with pytest.raises(adatp.Unsupported, match=f"position {position} of sample 1, which was dropped"):
            pruned.run(torch.tensor([position]))

    def test_leaves_the_callers_cache_empty(self, videollm):
        pruned, cache = Pruned(videollm, SINGLE), DynamicCache()
        with pytest.raises(adatp.Unsupported, match="was dropped"):
            pruned.run(torch.tensor([pruned.dropped()]), past_key_values=cache)
        assert cache.get_seq_length() == 0

    def test_padding(self, videollm):
        pruned = Pruned(videollm, PADDED)
        assert pruned.padding[1] > 0
        for position in (0, pruned.padding[1] - 1, -pruned.length):
            with pytest.raises(InputError, match=rf"position {position % pruned.length} of sample 1.*is padding"):
                pruned.run(torch.tensor([position]))

    @pytest.mark.parametrize("outside", [0, 500, -1, -500])
    def test_outside_of_the_prompts(self, videollm, outside):
        pruned = Pruned(videollm, SINGLE)
        position = pruned.length + outside if outside >= 0 else outside - pruned.length
        reason = rf"from -{pruned.length} to {pruned.length - 1}.*got {position}$"
        with pytest.raises(InputError, match=reason):
            pruned.run(torch.tensor([3, position]))

    @pytest.mark.parametrize(
        ("wanted", "reason"),
        [
            ([40], "a number or a tensor of positions, int64 or bool, got list"),
            (slice(3), "got slice"),
            (2.0, "got float"),
            (torch.tensor([1.0]), r"got torch\.float32"),
            (torch.ones(1, 1, 1, dtype=torch.int64), r"must be \[n\] or \[1, n\], got \(1, 1, 1\)"),
            (torch.ones(2, 1, dtype=torch.int64), r"must be \[n\] or \[1, n\], got \(2, 1\)"),
            (torch.tensor([[-1]]), r"from 0 to \d+.*got -1"),
            (torch.ones(3, dtype=torch.bool), r"if it is bool, got \(3,\)"),
            (-3, r"must be 0 or more, or a tensor of positions, got -3"),
        ],
    )
    def test_what_are_no_positions_before_the_tower_runs(self, videollm, wanted, reason):
        pruned, seen = Pruned(videollm, SINGLE), []
        handle = videollm.model.model.vision_tower.register_forward_pre_hook(lambda *_: seen.append(1))
        try:
            with pytest.raises(InputError, match=reason):
                pruned.run(wanted)
        finally:
            handle.remove()
        assert seen == []


class TestNumber:
    @single_and_padded
    def test_of_text_at_the_end(self, videollm, questions):
        pruned = Pruned(videollm, questions)
        known = pruned.everything()
        visual = (pruned.inputs["input_ids"] == videollm.model.config.video_token_id).any(0)
        text = pruned.length - 1 - int(visual.nonzero()[-1])
        assert text > 5
        for n in (1, 2, text):
            last = list(range(pruned.length - n, pruned.length))
            check(pruned.run(n).logits, known, [last] * len(known))

    def test_that_reaches_into_what_was_dropped_is_refused(self, videollm):
        pruned = Pruned(videollm, SINGLE)
        n = pruned.length - pruned.dropped()
        assert pruned.run(n - 1).logits.shape[1] == n - 1
        for more in (n, pruned.length, pruned.length + 5):
            with pytest.raises(adatp.Unsupported, match=r"of sample 0, which was dropped: ask for the text, or for 0"):
                pruned.run(more)

    def test_where_nothing_was_dropped_is_the_plain_models(self, videollm):
        pruned = Pruned(videollm, SINGLE, EVERYTHING)
        for n in (0, 1, 100, pruned.length, pruned.length + 5):
            with torch.no_grad():
                expected = videollm.model(**pruned.inputs, logits_to_keep=n).logits
            assert torch.equal(pruned.run(n).logits, expected)

    def test_reads_nothing_of_what_was_dropped_if_it_asks_for_text(self, videollm):
        """A prefill reads the device once, and `generate` asks for the last position."""
        inputs, family = make_inputs(videollm, PADDED), family_of(videollm.model)
        batch = Batch.read(family, inputs["input_ids"], inputs["attention_mask"])
        AskedLogits(1, batch, inputs["input_ids"].shape[1]).check([torch.zeros(0, device="meta")] * 2)
