"""Ask for a cost instead of a setting: `flops=` turns p for each prompt."""

from transformers import AutoModelForImageTextToText

import adatp
from adatp.evaluation.heldout import paper_of
from adatp.small.checkpoint import FOLDER

model = AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype="float32")
processor = adatp.load_processor(FOLDER / "model")
paper = paper_of("heldout", 101, questions=1, options=False)
clip, asked = paper.clip(), paper.questions[0]
content = [{"type": "video"}, {"type": "text", "text": asked.text}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=prompt, videos=[clip.frames], video_metadata=[clip.metadata], return_tensors="pt")

print(f"{asked.text}  (right: {asked.answer})")
for flops in (0.20, 0.25, 0.30, 0.45):
    with adatp.apply(model, processor, flops=flops, relevance=str(FOLDER / "siglip")) as pruned:
        output = model.generate(**inputs, max_new_tokens=8)
    said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    (sample,) = pruned.report.samples
    print(f"asked {flops:.2f}, got {pruned.report.flops.ratio:.3f} with p = {sample.method.p:.2f}: {said}")
    for note in pruned.report.notes:  # such as that deduplication leaves less than the budget
        print(f"  {note}")
