"""Put several methods at the same cost, and ask each the same questions about one video.

A few questions show how to compare. They do not show which method is best: `adatp study` asks 512.
"""

from transformers import AutoModelForImageTextToText

import adatp
from adatp.evaluation.heldout import paper_of
from adatp.small.checkpoint import FOLDER

FLOPS = 0.35  # of the unpruned prefill's linear layers
METHODS = ("adatp", "fastv", "visionzip", "dycoke", "uniform")  # also: pyramiddrop, random, pool

model = AutoModelForImageTextToText.from_pretrained(FOLDER / "model", dtype="float32")
processor = adatp.load_processor(FOLDER / "model")
paper = paper_of("heldout", 101, questions=2, options=False)
clip = paper.clip()


def ask(question: str) -> str:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, videos=[clip.frames], video_metadata=[clip.metadata], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


for asked in paper.questions:
    print(f"{asked.text}  (right: {asked.answer})")
    print(f"  {'unpruned':12} 100.0 %  {ask(asked.text)}")
    for name in METHODS:
        try:
            with adatp.apply(model, processor, name, flops=FLOPS, relevance=str(FOLDER / "siglip")) as pruned:
                said = ask(asked.text)
        except ValueError as refused:  # a method that cannot cost so little says what it can
            print(f"  {name:12} {refused}")
            continue
        print(f"  {name:12} {100 * pruned.report.flops.ratio:5.1f} %  {said}")
