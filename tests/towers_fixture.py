"""Small models of transformers, a run, and class folders for the ways that train a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.config.recipe import load_recipe
from diptych.training.loop import train

NAMES = ("cat", "dog", "star", "red_cat")  # words that the tokenizer of ``foreign_fixture`` knows
FAST = {"precision": "fp32", "device": "cpu", "data.augment": "none"}
SIZES = [f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=clip", "depth=2", "width=32", "heads=2", "hidden=48")]


def folders(root: Path, n: int = 20) -> Path:
    """A folder for each class, of noise in a shade of its own."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise = rng.integers(0, 90, (32, 32, 3)) + 50 * k
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def run(out: Path, *overrides: str) -> Path:
    """A few steps of clip, whose scale is not the default."""
    small = ["data.train=scenes:small?length=64", *SIZES, "embed_dim=24", "parts.vision.patch=16", "data.tokenizer.vocab_size=320"]
    fast = ["stages.0.batch_size=16", "budget=64 samples", "precision=fp32", "trackers=[]", "device=cpu", "data.image_size=32"]
    train(load_recipe("clip", [*small, *fast, "stages.0.objectives.info_nce.temperature=0.05", *overrides]), out)
    return out


def stir(model: Any, size: float = 0.3) -> None:
    """Adapters as if they had learned much."""
    torch.manual_seed(5)
    with torch.no_grad():
        for adapter in model.adapters.values():
            for p in adapter.own():
                p.copy_(torch.randn_like(p) * size)


def pictures(n: int = 4, size: int = 32) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(n)]
