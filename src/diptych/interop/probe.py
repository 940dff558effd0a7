"""One picture and a few texts through transformers' own pipeline and through a model of ours that has its weights: do they agree?

Weights alone do not say how pixels are normalised, whether a wide picture is squashed or cut, or how a text is split. What differs
is reported with its cosine and the remedy when a run starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.batch import Batch, Images
from diptych.core.errors import DiptychError
from diptych.data.fields.base import to_pixels
from diptych.data.fields.text import tokenized
from diptych.data.image import resize
from diptych.models.pretrained.hub import fetch

if TYPE_CHECKING:
    from diptych.models.vlm import VLM

ALIKE = 0.999  # cosine
TEXTS = {
    "a photo of a red dog": "its tokenizer or its model treats texts in another way; data.tokenizer.kind: bpe learns words anew",
    "A Photo Of A Red Dog": "its tokenizer distinguishes letter case, and a run lower-cases its texts",
    "a 🐱 in a café": "it has no token for some characters, and its unknown word ends a text: replace them in the captions",
}
PICTURES = {
    "square": "its processor scales or normalises pixels in another way: check size, crop_size, image_mean, image_std and"
    " do_normalize of its preprocessor_config.json",
    "wide": "its processor does not cut out the middle square of a picture, as a run does: squash or pad pictures beforehand",
}


def differences(name: str, theirs: Any, model: VLM, sides: set[str]) -> list[str]:
    """Notes of what transformers' own pipeline computes otherwise, empty if nothing; its weights are in ``model``.

    theirs: the model of transformers (CLIP's or SigLIP's class) from ``name``. sides: of ``image`` and ``text``, those that can be
    compared. A pipeline that cannot be loaded is a note too.
    """
    notes = []
    for side in sorted(sides):
        try:
            cosines = _images(name, theirs, model) if side == "image" else _texts(name, theirs, model)
        except (DiptychError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            notes.append(f"its {side} side could not be compared with transformers' own pipeline: {reason}")
            continue
        for (what, remedy), cosine in cosines:
            if cosine < ALIKE:
                shown = f"a {what} picture" if side == "image" else f"'{what}'"
                notes.append(f"transformers' own pipeline embeds {shown} otherwise (cosine {cosine:.3f}): {remedy}")
                break  # the others differ for the same reason
    return notes


def _images(name: str, theirs: Any, model: VLM) -> list[tuple[tuple[str, str], float]]:
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = fetch(AutoImageProcessor, name)
    size = model.image_size
    draw = np.random.default_rng(0)
    wide = draw.integers(0, 256, (size, 2 * size, 3), dtype=np.uint8)
    wide[:, :size] //= 4  # the halves differ, so that cutting does too
    pictures = {"square": wide[:, size // 2 : size // 2 + size], "wide": wide}
    result = []
    for what, picture in pictures.items():
        pixels = processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            there = theirs.vision_model(pixel_values=pixels).pooler_output
            there = theirs.visual_projection(there) if hasattr(theirs, "visual_projection") else there
        ours = Batch({"image": Images(to_pixels([resize(picture, size)]))}, 1)
        result.append(((what, PICTURES[what]), _cosine(model, ours, "image.embedding", there)))
    return result


def _texts(name: str, theirs: Any, model: VLM) -> list[tuple[tuple[str, str], float]]:
    from transformers import AutoTokenizer

    tokenizer = fetch(AutoTokenizer, name)
    most = theirs.config.text_config.max_position_embeddings
    siglip = theirs.config.model_type == "siglip"  # reads its padding too: always the whole length, no mask
    padding: Any = "max_length" if siglip else True
    read = ("input_ids",) if siglip else ("input_ids", "attention_mask")
    result = []
    for text, remedy in TEXTS.items():
        inputs = tokenizer([text], padding=padding, max_length=most, truncation=True, return_tensors="pt")
        with torch.no_grad():
            there = theirs.text_model(**{k: v for k, v in inputs.items() if k in read}).pooler_output
            there = theirs.text_projection(there) if hasattr(theirs, "text_projection") else there
        ours = Batch({"text": tokenized(model.tokenizer, [text])}, 1)
        result.append(((text, remedy), _cosine(model, ours, "text.embedding", there)))
    return result


def _cosine(model: VLM, batch: Batch, encoding: str, theirs: Tensor) -> float:
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            ours = model.encode(batch)[encoding]
    finally:
        model.train(was)
    return float(torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)[0])
