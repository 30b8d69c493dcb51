"""How the small model is trained: lessons, losses, and a run that goes on where it was cut off."""

import json

import numpy as np
import pytest
import torch

from adatp.small.training import align, train
from adatp.small.training.align import Aligner, Frames
from adatp.small.training.architecture import DECODER_LAYERS, TEXT_LENGTH, make_model, make_processor, make_siglip
from adatp.small.training.teach import NO_TARGET, Lessons, Pupil
from adatp.small.training.tokenizer import train_tokenizer
from adatp.small.training.train import Phase, Run
from adatp.world.captions import vocabulary
from adatp.world.clips import make_clip
from adatp.world.drawing import draw
from adatp.world.questions import KINDS


@pytest.fixture(scope="module")
def processor(tokenizer):
    return make_processor(tokenizer)


def lessons(processor, *, questions: int = 4, frames: int = 4, orders: int = 0) -> Lessons:
    return Lessons(
        "train", first=0, batches=2, clips=2, frames=frames, questions=questions, orders=orders, processor=processor
    )


def fresh(tokenizer) -> Pupil:
    """Of few layers, whose outputs are not zero, so that every token counts."""
    torch.manual_seed(0)
    pupil = Pupil(make_model(make_siglip(len(tokenizer)), tokenizer))
    pupil.use(3)
    for layer in pupil.decoder.layers:
        torch.nn.init.normal_(layer.self_attn.o_proj.weight, 0, 0.1)
        torch.nn.init.normal_(layer.mlp.down_proj.weight, 0, 0.1)
    return pupil.eval()


class TestTokenizer:
    def test_it_is_always_the_same(self, tokenizer):
        assert train_tokenizer().get_vocab() == tokenizer.get_vocab()

    def test_the_worlds_words_are_tokens_and_any_text_is_written(self, tokenizer):
        for caption in vocabulary():
            assert len(tokenizer.tokenize(caption.text)) == len(caption.text.split())
        text = "Wer fährt dort? 東京\n"
        assert tokenizer.decode(tokenizer.encode(text)) == text


class TestAlignment:
    def test_a_batch(self, tokenizer):
        batch = Frames("train", first=0, batches=2, tokenizer=tokenizer)[1]
        texts = len(vocabulary()) + align.BATCH
        assert batch["pixels"].shape == (align.BATCH, 3, 64, 64)
        assert batch["tokens"].shape == (texts, TEXT_LENGTH)
        assert batch["true"].shape == (align.BATCH, texts)
        assert batch["names"].shape == (align.BATCH, 64, 5)
        again = Frames("train", first=0, batches=9, tokenizer=tokenizer)[1]
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        places = batch["true"][:, len(vocabulary()) - 8 : len(vocabulary())]
        assert torch.equal(places.sum(1), torch.ones(align.BATCH, dtype=torch.int64))
        named = batch["names"]
        for attribute, size in enumerate((8, 8, 4, 10, 4)):
            own = named[..., attribute]
            assert ((own == -100) | (own >= 0) & (own < size)).all()
        # what a patch names, the frame shows
        nouns = batch["true"][:, :8]
        for frame, own in enumerate(named[..., 0]):
            assert all(nouns[frame, noun] for noun in own[own >= 0].unique().tolist())

    def test_it_learns(self, tokenizer):
        torch.manual_seed(0)
        learner = Aligner(make_siglip(len(tokenizer)))
        optimizer = torch.optim.AdamW(learner.parameters(), 1e-3)
        batch, losses = Frames("train", first=0, batches=1, tokenizer=tokenizer)[0], []
        for _ in range(8):
            loss, _ = learner.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.03


class TestLessons:
    def test_a_batch(self, processor):
        batch, other = lessons(processor)[0], lessons(processor)[1]
        assert batch["pixels"].shape == (2, 4, 3, 64, 64)
        assert batch["tokens"].shape == batch["target"].shape
        assert batch["tokens"].shape[:2] == batch["kind"].shape == (2, 4)
        assert ((batch["kind"] >= 0) & (batch["kind"] < len(KINDS))).all()
        assert not torch.equal(batch["pixels"], other["pixels"])
        many = lessons(processor, questions=64)[0]  # more than there are
        assert torch.equal(many["kind"] < 0, (many["target"] == NO_TARGET).all(-1))
        assert (many["kind"] < 0).any()

    def test_more_of_what_is_before_and_after(self, processor):
        few, many = (lessons(processor, frames=32, orders=orders)[0] for orders in (0, 3))
        assert many["kind"].shape == (2, 7)
        assert torch.equal(many["kind"][:, :4], few["kind"])
        width = few["tokens"].shape[2]
        assert torch.equal(many["tokens"][:, :4, :width], few["tokens"])
        assert (many["kind"][:, 4:] == KINDS.index("order")).all()
        assert (lessons(processor, orders=3)[0]["kind"][:, 4:] == -1).all()  # one scene, so nothing is before another

    def test_questions_and_answers(self, processor):
        batch = lessons(processor)[1]
        tokenizer, video = processor.tokenizer, processor.tokenizer.convert_tokens_to_ids("<video>")
        world = make_clip("train", 2, 4)
        assert torch.equal(batch["pixels"][0], processor.video_processor(draw(world))["pixel_values_videos"][0])
        for tokens, target in zip(batch["tokens"][0], batch["target"][0], strict=True):
            said = target[target != NO_TARGET].tolist()
            answer = tokenizer.decode(said[:-1])
            assert said[-1] == tokenizer.eos_token_id
            length = int((target != NO_TARGET).nonzero().max()) + 1
            text = tokenizer.decode([*batch["head"].tolist(), video, *tokens[:length].tolist()])
            assert text.endswith(f"<|im_start|>assistant\n{answer}")
            question = text.split("<video>\n")[1].split("<|im_end|>")[0]
            turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
            assert text == processor.apply_chat_template(turn, add_generation_prompt=True) + answer

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_question_among_others_is_answered_as_alone(self, tokenizer, processor, number):
        pupil, batch = fresh(tokenizer), lessons(processor)[number]
        model, video = pupil.model, tokenizer.convert_tokens_to_ids("<video>")
        with torch.no_grad():
            together, alone = pupil.logits(batch), []
            for clip, pixels in enumerate(batch["pixels"]):
                visual = 16 * len(pixels) + 1
                for tokens, target in zip(batch["tokens"][clip], batch["target"][clip], strict=True):
                    length = int((target != NO_TARGET).nonzero().max()) + 1 if (target != NO_TARGET).any() else 0
                    ids = torch.cat((batch["head"], torch.full((visual,), video), tokens[:length]))
                    logits = model(input_ids=ids[None], pixel_values_videos=pixels[None]).logits[0]
                    alone.append(logits[-length:][target[:length] != NO_TARGET] if length else logits[:0])
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)

    def test_what_is_counted(self, tokenizer, processor):
        pupil, batch = fresh(tokenizer), lessons(processor)[1]
        wanted = batch["target"] != NO_TARGET
        loss, counts = pupil.loss(batch)
        with torch.no_grad():
            logits = pupil.logits(batch)
        assert loss.item() == pytest.approx(
            torch.nn.functional.cross_entropy(logits, batch["target"][wanted]).item(), rel=1e-5
        )
        asked = sum(number for name, number in counts.items() if name.startswith("asked"))
        assert asked == int((batch["kind"] >= 0).sum())
        assert sum(number for name, number in counts.items() if name.startswith("right")) == 0  # untrained

        pupil.logits = lambda _: torch.nn.functional.one_hot(batch["target"][wanted], 600).float()
        _, counts = pupil.loss(batch)
        assert sum(number for name, number in counts.items() if name.startswith("right")) == asked

    def test_visual_tokens_have_to_tell_the_time(self, tokenizer, processor):
        pupil, batch, states = fresh(tokenizer), lessons(processor)[1], []
        with torch.no_grad():
            plain = pupil.loss(batch)[0]
            pupil.use(3, is_clocked=True)
            hook = pupil.decoder.layers[1].register_forward_hook(lambda _, __, output: states.append(output))
            clocked = pupil.loss(batch)[0]
            hook.remove()
        errors = []
        for clip in states[0]:
            for i in range(4 * 16):
                token = clip[len(batch["head"]) + i]
                told = pupil.clock(token / token.square().mean().sqrt())
                errors.append((told - (2 * (i // 16) / 32 - 1)) ** 2)
        assert (clocked - plain).item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)

    def test_layers_that_are_not_in_use_change_nothing(self, tokenizer, processor):
        torch.manual_seed(0)
        pupil, batch = Pupil(make_model(make_siglip(len(tokenizer)), tokenizer)), lessons(processor)[1]
        for layer in pupil.decoder.layers[:3]:
            torch.nn.init.normal_(layer.mlp.down_proj.weight, 0, 0.1)
        with torch.no_grad():
            pupil.use(3)
            few = pupil.logits(batch)
            pupil.use(DECODER_LAYERS)
            assert torch.equal(pupil.logits(batch), few)
            torch.nn.init.normal_(pupil.decoder.layers[3].mlp.down_proj.weight, 0, 0.1)
            assert not torch.equal(pupil.logits(batch), few)


PHASES = (
    Phase("short", 4, (1e-3, 1e-3), 2, 2, 2, 4),
    Phase("long", 4, (1e-3, 1e-5), 2, 16, 3, 4, 2, is_clocked=True, in_half=True),
)


class TestRun:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch):
        monkeypatch.setattr(train, "EVERY", 2)
        monkeypatch.setattr(train, "JUDGED", 4)

    def teach(self, folder, tokenizer, processor):
        torch.manual_seed(0)
        model = make_model(make_siglip(len(tokenizer)), tokenizer)
        train.teach(Run(folder, "cpu"), model, processor, PHASES)
        return model.state_dict()

    def test_a_run_that_was_cut_off_ends_as_one_that_was_not(self, tokenizer, processor, tmp_path, monkeypatch):
        whole = self.teach(tmp_path / "whole", tokenizer, processor)
        save = Run._save

        def cut_off(run, file, learner, optimizer, step):
            save(run, file, learner, optimizer, step)
            if step == 4:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Run, "_save", cut_off)
            with pytest.raises(KeyboardInterrupt):
                self.teach(tmp_path / "parts", tokenizer, processor)
        parts = self.teach(tmp_path / "parts", tokenizer, processor)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

        logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "parts")]
        for log in logs:
            for entry in log:
                entry.pop("seconds", None)
        assert logs[0] == logs[1]
        assert [entry["step"] for entry in logs[0] if "validation" in entry] == [2, 4, 6, 8]

    def test_products_are_in_half_precision_where_a_phase_says_so(self, tokenizer, processor, tmp_path, monkeypatch):
        used, logits = [], Pupil.logits

        def noted(pupil, batch):
            found = logits(pupil, batch)
            if torch.is_grad_enabled():
                used.append(found.dtype)
            return found

        monkeypatch.setattr(Pupil, "logits", noted)
        self.teach(tmp_path, tokenizer, processor)
        assert used == [torch.float32] * 4 + [torch.bfloat16] * 4

    def test_the_rate_falls_along_half_a_cosine(self, tokenizer, processor, tmp_path, monkeypatch):
        rates = []
        step = torch.optim.AdamW.step
        monkeypatch.setattr(train, "WARM_UP", 2)
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda own: rates.append(own.param_groups[0]["lr"]) or step(own))
        self.teach(tmp_path, tokenizer, processor)
        falling = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
        assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, *falling])
