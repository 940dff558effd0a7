"""How each exported class is used, for the model card: code that runs in the export's own directory."""

CLIPS = """\
```python
import numpy as np
from transformers import AutoProcessor, CLASS

model, processor = CLASS.from_pretrained("."), AutoProcessor.from_pretrained(".")  # needs torchvision
clip = np.load("frames.npy")  # uint8 [frames, height, width, 3]
asked = processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], add_generation_prompt=True)
inputs = processor(text=asked, videos=[clip], add_special_tokens=False, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=30)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(written, skip_special_tokens=True)[0])
```
"""
USE = {
    "transformers": """\
```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(
    images=Image.open("photo.jpg"), text=["a caption"], padding="max_length", truncation=True, return_tensors="pt"
)
print(model(**inputs).logits_per_image)
```
""",
    "BlipForImageTextRetrieval": """\
```python
from PIL import Image
from transformers import AutoProcessor, BlipForImageTextRetrieval

model, processor = BlipForImageTextRetrieval.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg"), text="a caption", return_tensors="pt")
print(model(**inputs).itm_score.softmax(-1)[:, 1])
inputs["input_ids"][:, 0] = processor.tokenizer.bos_token_id  # the text alone begins with this token
print(model(**inputs, use_itm_head=False).itm_score)
```
""",
    "BlipForConditionalGeneration": """\
```python
from PIL import Image
from transformers import AutoProcessor, BlipForConditionalGeneration

model, processor = BlipForConditionalGeneration.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg"), return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=30)[0], skip_special_tokens=True))
```
""",
    "FlavaModel": """\
```python
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg"), text=["a caption", "another"], padding=True, truncation=True, return_tensors="pt")
text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output[:, 0]
image = model.get_image_features(inputs["pixel_values"]).pooler_output[:, 0]
print(model.logit_scale.exp() * normalize(image, dim=-1) @ normalize(text, dim=-1).T)
```
""",
    "FlavaForPreTraining": """\
```python
from PIL import Image
from transformers import AutoProcessor, FlavaForPreTraining

model, processor = FlavaForPreTraining.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg"), text=["a caption"], padding=True, truncation=True, return_tensors="pt")
out = model(**inputs, input_ids_masked=inputs["input_ids"])  # nothing hidden: does the caption fit?
print(out.itm_logits.softmax(-1)[:, 1], out.contrastive_logits_per_image)
```
Losses of hidden patches need their codes (`mim_labels`) from the run's own quantizer: `diptych.load(RUN).model.part("quantizer").codes(pixels)`.
""",
    "LlavaForConditionalGeneration": """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model, processor = AutoModelForImageTextToText.from_pretrained("."), AutoProcessor.from_pretrained(".")
said = [{"role": "user", "content": [{"type": "image", "image": Image.open("photo.jpg")}QUESTION]}]
inputs = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=30)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(written, skip_special_tokens=True)[0])
```
""",
    "AutoModelForImageTextToText": """\
```python
from transformers import pipeline

talk = pipeline("image-text-to-text", model=".")
said = [{"role": "user", "content": [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "what is this?"}]}]
print(talk(text=said, max_new_tokens=30, return_full_text=False)[0]["generated_text"])
```
""",
    "VideoLlavaForConditionalGeneration": CLIPS.replace("CLASS", "VideoLlavaForConditionalGeneration"),
    "LlavaNextVideoForConditionalGeneration": CLIPS.replace("CLASS", "LlavaNextVideoForConditionalGeneration"),
    "Blip2ForConditionalGeneration": """\
```python
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration

model, processor = Blip2ForConditionalGeneration.from_pretrained("."), AutoProcessor.from_pretrained(".")
inputs = processor(images=Image.open("photo.jpg"), text="", return_tensors="pt").to(model.dtype)
written = model.generate(**inputs, generation_config=model.generation_config, max_new_tokens=30)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(written, skip_special_tokens=True)[0])
```
""",
    "VideoMAEModel": """\
```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model, processor = AutoModel.from_pretrained("."), AutoImageProcessor.from_pretrained(".")
frames = [Image.open(f"frame-{i}.png") for i in range(model.config.num_frames)]  # evenly spread over the clip
clip = processor(images=frames, return_tensors="pt")["pixel_values"][None]
print(model(clip).last_hidden_state.mean(1))
```
""",
    "VideoMAEForPreTraining": """\
```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, VideoMAEForPreTraining

model, processor = VideoMAEForPreTraining.from_pretrained("."), AutoImageProcessor.from_pretrained(".")
frames = [Image.open(f"frame-{i}.png") for i in range(model.config.num_frames)]  # evenly spread over the clip
clip = processor(images=frames, return_tensors="pt")["pixel_values"][None]
per_frame = (model.config.image_size // model.config.patch_size) ** 2
hidden = (torch.rand(per_frame).argsort() >= per_frame // 10).repeat(model.config.num_frames // model.config.tubelet_size)
print(model(clip, bool_masked_pos=hidden[None]).loss)
```
""",
    "open_clip": """\
```python
import open_clip, torch
from PIL import Image

model, _, prepare = open_clip.create_model_and_transforms("local-dir:.")
tokenise = open_clip.get_tokenizer("local-dir:.")
with torch.inference_mode():
    image, text, scale = model.eval()(prepare(Image.open("photo.jpg"))[None], tokenise(["a caption"]))
print(scale * image @ text.T)
```
""",
    "CoCa": """\
```python
import open_clip, torch
from PIL import Image

model, _, prepare = open_clip.create_model_and_transforms("local-dir:.")
tokenise = open_clip.get_tokenizer("local-dir:.")
with torch.inference_mode():
    out = model.eval()(prepare(Image.open("photo.jpg"))[None], tokenise(["a caption"]))
print(out["logit_scale"] * out["image_features"] @ out["text_features"].T)
captions = torch.nn.functional.cross_entropy(out["logits"].transpose(1, 2), out["labels"], ignore_index=0, reduction="none")
print(-captions.sum(1))  # log P(caption | image)
```
""",
}
