"""A small model with regions, and a batch of two pictures with three of them."""

from __future__ import annotations

from typing import Any

import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images, Regions
from diptych.data.fields.text import tokenized
from diptych.data.text import Tokenizer
from diptych.models.vlm import build_model

PHRASES = ["a red fox", "two green keys", "a blue heart"]
SMALL = [f"parts.{p}.{o}" for p in ("vision", "text") for o in ("width=32", "heads=2", "depth=2")] + ["precision=fp32"]
BOXES = [[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 0.5, 0.5], [0.3, 0.1, 0.8, 0.4]]


def model_of(name: str, *overrides: str) -> Any:
    """A recipe's model, with small towers."""
    torch.manual_seed(0)
    return build_model(load_recipe(name, [*SMALL, *overrides]), Tokenizer.train(PHRASES, 400, 16), 48).eval()


def batch_for(model: Any, phrases: list[str] | None = None, text: bool = False, boxes: Any = None) -> Batch:
    """Two pictures; the first has one region, the second two. text: captions too."""
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    regions = Regions(
        torch.tensor(BOXES if boxes is None else boxes), tokenized(model.tokenizer, phrases or PHRASES), torch.tensor([0, 1, 1])
    )
    fields: dict[str, Any] = {"image": Images(pixels), "regions": regions}
    return Batch({**fields, **({"text": tokenized(model.tokenizer, PHRASES[:2])} if text else {})}, 2)
