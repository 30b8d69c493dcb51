"""Ask the built-in model about a video, pruned, and print what was kept.

python examples/quickstart.py [VIDEO [QUESTION]]
"""

import sys

from transformers import AutoModelForImageTextToText

import adatp
from adatp.small.checkpoint import FOLDER
from adatp.world.clips import make_clip
from adatp.world.drawing import draw
from adatp.world.files import write_mp4

# A published model: checkpoint, siglip = "llava-hf/llava-onevision-qwen2-7b-ov-hf", "auto"
checkpoint, siglip = str(FOLDER / "model"), str(FOLDER / "siglip")

video, question = (*sys.argv[1:], *("demo.mp4", "what is the green thing in the street?")[len(sys.argv[1:]) :])
if len(sys.argv) == 1:
    write_mp4(video, draw(make_clip("heldout", 101)))  # the built-in model knows videos made by code, and no others

model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
processor = adatp.load_processor(checkpoint)

clip = adatp.sample_frames(video, 32)
content = [{"type": "video"}, {"type": "text", "text": question}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=prompt, videos=[clip.frames], video_metadata=[clip.metadata], return_tensors="pt")
inputs = inputs.to(model.device, model.dtype)


def answer() -> str:
    output = model.generate(**inputs, max_new_tokens=16)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


print("unpruned:", answer())
with adatp.apply(model, processor, adatp.AdaTP(p=1.0), relevance=siglip) as pruned:
    print("pruned:  ", answer())
print(pruned.report)
for segment in pruned.report.samples[0].segments:
    frames = f"frames {segment.start:2} to {segment.stop - 1:2}"
    print(f"{frames}: similarity {segment.similarity:+.3f}, {segment.kept[-1]} tokens left")
