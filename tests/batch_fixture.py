"""Batches and passes made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.core.batch import Batch, Images, Texts, Turns
from diptych.core.encodings import Pass
from diptych.data.fields.base import to_pixels
from diptych.data.fields.text import tokenized


def batch_of(
    pixels: Tensor | None = None,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    captions: tuple[str, ...] = (),
    meaning: Tensor | None = None,
    start: int = 0,
) -> Batch:
    """Images beside texts."""
    fields: dict[str, Any] = {}
    if pixels is not None:
        fields["image"] = Images(pixels)
    if text is not None:
        assert text_mask is not None
        fields["text"] = Texts(text, text_mask, tuple(captions), meaning)
    return Batch(fields, len(pixels if pixels is not None else text), start)


def turns_of(ids: Tensor, learned: Tensor, positions: Tensor, pixels: Tensor | None = None, samples: int | None = None) -> Batch:
    """Conversations."""
    images = None if pixels is None else Images(pixels)
    turns = Turns(ids, torch.ones_like(learned), learned, positions, images)
    return Batch({"turns": turns}, len(ids) if samples is None else samples)


def pass_of(model: Any, images: Any = (), texts: Any = ()) -> Pass:
    """The pass over pictures (uint8 arrays, or pixels) and texts (strings)."""
    fields: dict[str, Any] = {}
    if len(images):
        fields["image"] = Images(images if isinstance(images, Tensor) else to_pixels(images))
    if len(texts):
        fields["text"] = tokenized(model.tokenizer, list(texts))
    return model.encode(Batch(fields, max(len(images), len(texts))))
