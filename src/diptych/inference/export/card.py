"""The model card of an export: what it is, what it learned from, what it cost and what was measured, from the run's own files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import counted
from diptych.interop.families.whole import whole_model
from diptych.models.pretrained import licences
from diptych.models.pretrained.hub import place
from diptych.training.run_files import EvaluationFiles, RunFiles

if TYPE_CHECKING:
    from diptych.inference.export import Exported
    from diptych.inference.run import TrainedModel

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
TAGS = {"VideoMAEModel": "feature-extraction", "VideoMAEForPreTraining": "feature-extraction"}
SIZES = (
    "A picture of another size than {size} × {size}: this processor scales the whole picture and cuts out the central "
    "square, Diptych scales the "
    "square; pixels, and with them scores, differ a little. Pictures of that size get equal scores."
)


def model_card(run: Path, trained: TrainedModel, made: Exported, notes: Sequence[str] = ()) -> str:
    """notes: how to use it."""
    recipe, model = trained.recipe, trained.model
    files = RunFiles(run)
    data, spent = files.environment(), files.spent()
    started = data.get("weights") or {}
    size = model.image_size
    count = sum(p.numel() for p in model.parameters())
    tuned = whole_model(model) is not None  # a model of transformers that was tuned: words and pictures are its processor's
    talks = tuned or "lm" in model.parts
    head = [
        "---",
        f"library_name: {made.format}",
        f"pipeline_tag: {TAGS.get(made.architecture, 'image-text-to-text' if talks else 'zero-shot-image-classification')}",
        "license: other",
        "tags: [diptych, vision-language]",
        "---",
    ]
    lines = [
        f"# {recipe.name}",
        f"{recipe.about}. {made.architecture} with {count / 1e6:.2f} M parameters{'' if tuned else f' for images of {size} × {size} pixels'}, "
        "trained with Diptych "
        f"{(data.get('packages') or {}).get('diptych', '')}; checkpoint `{made.checkpoint}`, weights `{made.key}`"
        f"{', averaged' if recipe.stages[-1].ema else ''}.",
        "## Use",
        _use(trained, made),
        "\n".join(f"- {note}" for note in [*notes, *([] if tuned else [SIZES.format(size=size)])]),
        "## Data",
        f"`{data.get('data', recipe.data.train)}`, fingerprint `{data.get('data_fingerprint', 'unknown')}`.",
        "Tokenizer: that of the model."
        if tuned
        else f"Tokenizer: {_tokenizer(trained, started)}; texts of at most {model.tokenizer.max_length} tokens.",
        *([f"Training started from the weights of `{started['address']}` ({started['key']})."] if started else []),
        "## Budget",
        _budget(spent),
        "## Measured",
        *_measured(files.evaluation(), made.key),
        "## Licences",
        *_licences(trained, str(data.get("data", recipe.data.train))),
        "## Citation",
        f"Method: {recipe.cite or 'none given'}.",
        "## Recipe",
        f"```yaml\n{recipe.to_yaml().strip()}\n```",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(lines) + "\n"


def _use(trained: TrainedModel, made: Exported) -> str:
    text = USE.get(made.architecture, USE[made.format]).strip()
    asked = ', {"type": "text", "text": "what is this?"}' if trained.answering else ""
    text = text.replace("QUESTION", asked)
    if made.adapters:
        text += (
            "\n\nThe run's adapters are in `adapter`; without them the model is not the trained one: "
            '`model = peft.PeftModel.from_pretrained(model, "adapter")`.'
        )
    return text


def _tokenizer(trained: TrainedModel, started: dict[str, Any]) -> str:
    if "lm" in trained.model.parts:
        return "that of the language model, and `<image>`"
    words = f"that of `{started['address']}`" if started else "learned from its captions"
    return f"byte-level BPE of {len(trained.model.tokenizer)} tokens, {words}"


def _budget(spent: dict[str, Any]) -> str:
    if not spent:
        return "Not recorded."
    whole = "" if spent.get("finished") else " The run was not finished."
    return (
        f"{counted(spent['steps'], 'step')}, {counted(spent['samples'], 'sample')}, {spent['seconds']:.0f} s, "
        f"{spent['flops'] / 1e12:.2f} TFLOP, {spent['trainable_parameters'] / 1e6:.2f} M trainable parameters.{whole}"
    )


def _measured(evaluation: EvaluationFiles, key: str) -> list[str]:
    """The results of the run's evaluation, if it is of these weights."""
    results = evaluation.results()
    if results and evaluation.key() != key:
        return [
            "Nothing for these weights: the run's evaluation is of another checkpoint. `diptych evaluate` evaluates this directory."
        ]
    if not results:
        return ["Nothing yet: the run was not evaluated before it was exported."]
    rows = ["| task | metric | value | 95 % interval | chance | items |", "|---|---|---|---|---|---|"]
    for r in results:
        if r["value"] is not None:
            interval = f"{r['low']:.3f} to {r['high']:.3f}" if r["low"] is not None and r["high"] is not None else "–"
            chance = "–" if r["chance"] is None else f"{r['chance']:.3f}"
            rows.append(f"| {r['task']} | {r['metric']} | {r['value']:.3f} | {interval} | {chance} | {r['n']} |")
    return [f"On the held-out part of `{evaluation.summary()['data']}`, by `diptych evaluate`.", "\n".join(rows)]


def _licences(trained: TrainedModel, data: str) -> list[str]:
    lines = [f"- {name}: {terms}" for name, terms in licences(trained.model.licences).items()]
    for name, part in trained.recipe.parts.items():
        if address := part.options.get("from"):
            lines.append(f"- {name}, made from `{address}`: {_terms(str(address))}")
    if data.startswith("scenes:"):
        lines += [f"- openmoji, the sprites of the training pictures: {licences(['openmoji'])['openmoji']}"]
    terms = "The weights were learned from the data named above; its terms apply to them."
    return [terms, *(["\n".join(lines)] if lines else [])]


def _terms(address: str) -> str:
    """The licence that a directory's own model card states."""
    card = Path(place(address)) / "README.md"
    stated = re.search(r"^license(?:_name)?: *(\S.*)$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
    return stated[1] if stated else "its own terms, which are not stated here; see its origin"
