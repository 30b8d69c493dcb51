"""Several videos and questions in one batch. Each prompt keeps what it would keep alone."""

from transformers import AutoModelForImageTextToText

import adatp
from adatp.evaluation.heldout import paper_of
from adatp.small.checkpoint import FOLDER

model = AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype="float32")
processor = adatp.load_processor(FOLDER / "model")
processor.tokenizer.padding_side = "left"  # padding on the right is refused

papers = [paper_of("heldout", number, questions=1, options=False) for number in (101, 102, 103)]
clips = [paper.clip() for paper in papers]
prompts = []
for paper in papers:
    content = [{"type": "video"}, {"type": "text", "text": paper.questions[0].text}]
    prompts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
inputs = processor(
    text=prompts,
    videos=[clip.frames for clip in clips],
    video_metadata=[clip.metadata for clip in clips],
    return_tensors="pt",
    padding=True,
)

with adatp.apply(model, processor, adatp.AdaTP(p=1.0), relevance=str(FOLDER / "siglip")) as pruned:
    output = model.generate(**inputs, max_new_tokens=8)
answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
for paper, said, sample in zip(papers, answers, pruned.report.samples, strict=True):
    asked = paper.questions[0]
    print(f"{asked.text}  {said.strip()}  (right: {asked.answer})")
    print(f"  {sample.visual_tokens} visual tokens, {sample.kept[-1]} left in {len(sample.segments)} segments")
print(f"cache: {pruned.report.cache_bytes:,} bytes, unpruned {pruned.report.cache_bytes_full:,}")
