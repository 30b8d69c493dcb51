"""Train the small model from nothing: `python -m adatp.small.training.train --out RUN`.

First SigLIP's two towers are aligned, then projector and decoder learn the answers: on short clips through the first
six layers, on longer ones, and at last on whole clips through all sixteen. A run that was cut off goes on where its
state was saved last. Batches are a function of the step, so a run is one of its seed, whether it was cut off or not.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from adatp.small.checkpoint import save_checkpoint
from adatp.small.training.align import BATCH, Aligner, Frames
from adatp.small.training.architecture import DECODER_LAYERS, make_model, make_processor, make_siglip
from adatp.small.training.teach import Lessons, Pupil
from adatp.small.training.tokenizer import train_tokenizer
from adatp.world.clips import FRAMES
from adatp.world.things import Split

SEED = 0
JUDGED = 32  # validation clips at the end of a phase and every `EVERY` steps
EVERY = 200
WARM_UP = 100


class Phase(NamedTuple):
    """A part of the training.

    Attributes:
        name: of it.
        steps: how many.
        rate: learning rate at its beginning and at its end, half a cosine between.
        clips, frames, depth: of a batch, of a clip, and decoder layers in use; 0 for the alignment.
        questions: of a clip, at most.
        orders: questions of before and after that it has besides.
        is_clocked: whether visual tokens have to tell the time.
        in_half: whether products are of bfloat16.
    """

    name: str
    steps: int
    rate: tuple[float, float]
    clips: int = 0
    frames: int = 0
    depth: int = 0
    questions: int = 16
    orders: int = 0
    is_clocked: bool = False
    in_half: bool = False


ALIGN = (
    Phase("align", 2800, (1e-3, 1e-5)),
    Phase("align again", 2800, (1e-3, 1e-5)),
)
TEACH = (
    Phase("one scene", 1600, (2e-3, 2e-3), 16, 4, 6),
    Phase("some scenes", 1600, (2e-3, 2e-3), 8, 16, 6),
    Phase("whole clips", 1600, (2e-3, 2e-3), 8, FRAMES, 6, questions=24, orders=12, is_clocked=True, in_half=True),
    Phase(
        "all layers",
        500,
        (1.5e-3, 1e-5),
        8,
        FRAMES,
        DECODER_LAYERS,
        questions=24,
        orders=12,
        is_clocked=True,
        in_half=True,
    ),
)


class Run:
    """A directory with the state of a training and its log.

    Args:
        folder: where; made if there is none.
        device: to train on.
    """

    def __init__(self, folder: Path, device: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device = folder, torch.device(device)
        self._log = folder / "log.jsonl"

    def fit(self, name: str, learner: Any, phases: Sequence[Phase], data: Any, judge: Any) -> None:
        """Train through the phases, from the saved state on where there is one.

        Args:
            name: of the state's file.
            learner: a module whose `loss(batch)` gives the loss and what to log.
            phases: in order.
            data: a dataset for each phase.
            judge: called at a phase's end and every `EVERY` steps with the phase, gives what to log.
        """
        learner.to(self.device)
        parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        done, file = 0, self.folder / f"{name}.pt"
        if file.exists():
            state = torch.load(file, map_location=self.device)
            learner.load_state_dict(state["learner"])
            optimizer.load_state_dict(state["optimizer"])
            done = state["step"]
        self._cut_log(name, done)

        before, saved, seen, began = 0, time.monotonic(), Counter[str](), time.monotonic()
        for phase, batches in zip(phases, data, strict=True):
            rest = range(max(0, done - before), phase.steps)
            if phase.depth:
                learner.use(phase.depth, is_clocked=phase.is_clocked)
            for step, batch in zip(rest, _loaded(batches, rest), strict=True):
                for group in optimizer.param_groups:
                    begin, end = phase.rate
                    rate = end + (begin - end) * (1 + math.cos(math.pi * step / phase.steps)) / 2
                    group["lr"] = rate * min(1.0, (before + step + 1) / WARM_UP)
                learner.train()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=phase.in_half):
                    loss, counts = learner.loss(self.put(batch))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()

                now = before + step + 1
                seen.update({**counts, "loss": loss.item(), "steps": 1})
                if now % 50 == 0 or step + 1 == phase.steps:
                    self._write(name, phase, now, {"seconds": round(time.monotonic() - began, 1), **_means(seen)})
                    seen, began = Counter(), time.monotonic()
                if now % EVERY == 0 or step + 1 == phase.steps:
                    learner.eval()
                    with torch.no_grad():
                        self._write(name, phase, now, {"validation": judge(phase)})
                    began = time.monotonic()
                if time.monotonic() - saved > 60 or step + 1 == phase.steps:
                    self._save(file, learner, optimizer, now)
                    saved = time.monotonic()
            before += phase.steps

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device of the training."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def _save(self, file: Path, learner: nn.Module, optimizer: Any, step: int) -> None:
        state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, file.with_suffix(".new"))
        os.replace(file.with_suffix(".new"), file)  # never half a state

    def _write(self, name: str, phase: Phase, step: int, values: dict[str, Any]) -> None:
        line = json.dumps({"stage": name, "phase": phase.name, "step": step, **values})
        with self._log.open("a") as log:
            print(line, file=log)
        print(line, flush=True)

    def _cut_log(self, name: str, step: int) -> None:
        """Take out what was logged after the state was saved: it comes again."""
        if self._log.exists():
            lines = [(line, json.loads(line)) for line in self._log.read_text().splitlines()]
            kept = [line for line, entry in lines if entry["stage"] != name or entry["step"] <= step]
            self._log.write_text("".join(f"{line}\n" for line in kept))


def _loaded(batches: Dataset[Any], rest: range) -> Iterator[dict[str, Tensor]]:
    """Batches, made in a process of their own."""
    return iter(DataLoader(Subset(batches, rest), batch_size=None, num_workers=1, prefetch_factor=4))


def _means(seen: Counter[str]) -> dict[str, Any]:
    """Sums over steps as means; counts of questions as shares answered rightly."""
    steps = seen.pop("steps")
    means = {key: round(value / steps, 5) for key, value in seen.items() if " " not in key}
    return means | ({"right": _shares(seen)} if len(means) < len(seen) else {})


def _shares(seen: Counter[str]) -> dict[str, float]:
    """What share of the questions was answered rightly, of all and of each kind."""
    asked = {key.removeprefix("asked "): number for key, number in seen.items() if key.startswith("asked ")}
    shares = {kind: round(seen[f"right {kind}"] / number, 4) for kind, number in sorted(asked.items())}
    total = sum(seen[f"right {kind}"] for kind in asked) / sum(asked.values())
    return {"all": round(total, 4), **shares}


def align(run: Run, siglip: Any, tokenizer: Any, phases: Sequence[Phase]) -> None:
    """Train SigLIP."""
    learner = Aligner(siglip)
    lessons = Frames("validation", first=0, batches=8, tokenizer=tokenizer)
    judged = [lessons[i] for i in range(8)]
    first, data = 0, []
    for phase in phases:
        data.append(Frames("train", first=first, batches=phase.steps, tokenizer=tokenizer))
        first += phase.steps * BATCH

    def judge(_: Phase) -> dict[str, float]:
        seen: Counter[str] = Counter()
        for batch in judged:
            seen.update({**learner.loss(run.put(batch))[1], "steps": 1})
        return _means(seen)

    run.fit("align", learner, phases, data, judge)


def teach(run: Run, model: Any, processor: Any, phases: Sequence[Phase]) -> None:
    """Train projector and decoder."""
    learner = Pupil(model)
    first, data = 0, []
    for phase in phases:
        data.append(_lessons("train", first, phase.steps, phase, processor))
        first += phase.steps * phase.clips

    def judge(phase: Phase) -> dict[str, Any]:
        seen: Counter[str] = Counter()
        lessons = _lessons("validation", 0, JUDGED // phase.clips, phase, processor)
        for batch in _loaded(lessons, range(len(lessons))):
            seen.update(learner.loss(run.put(batch))[1])
        return _shares(seen)

    run.fit("teach", learner, phases, data, judge)
    learner.use(DECODER_LAYERS)


def _lessons(split: Split, first: int, batches: int, phase: Phase, processor: Any) -> Lessons:
    return Lessons(
        split,
        first=first,
        batches=batches,
        clips=phase.clips,
        frames=phase.frames,
        questions=phase.questions,
        orders=phase.orders if split == "train" else 0,
        processor=processor,
    )


def main() -> None:
    """Train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: its state, its log, its checkpoint")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    run, tokenizer = Run(arguments.out, arguments.device), train_tokenizer()
    siglip = make_siglip(len(tokenizer))
    align(run, siglip, tokenizer, ALIGN)
    torch.manual_seed(SEED + 1)
    model, processor = make_model(siglip, tokenizer), make_processor(tokenizer)
    teach(run, model, processor, TEACH)
    save_checkpoint(arguments.out / "checkpoint", model, processor, siglip, tokenizer)


if __name__ == "__main__":
    main()
