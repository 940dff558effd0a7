"""Dual encoders of a few thousand weights, and their exports as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.benchmarks.statistics import paired_test
from diptych.config.recipe import load_recipe
from diptych.data.text import Tokenizer
from diptych.inference.onnx import export as exporting
from diptych.inference.run import TrainedModel
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives

WORDS = "a the red green blue fox key house to left of and above it one more two big".split()  # noqa: SIM905
TINY = ["data.tokenizer.vocab_size=300", "data.tokenizer.max_length=16", "embed_dim=12"]
TOWERS = [f"parts.{part}.{size}" for part in ("vision", "text") for size in ("width=16", "depth=1", "heads=2")]
DATA = "scenes:small?length=64"


def sentences(n: int, longest: int = 8, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, longest + 1)))) for _ in range(n)]


def pictures(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (int(rng.integers(20, 90)), int(rng.integers(20, 90)), 3), dtype=np.uint8) for _ in range(n)]


def untrained(name: str, settings: Sequence[str] = (), towers: Sequence[str] = TOWERS, side: int = 32) -> TrainedModel:
    """The model of a recipe with weights that are random but not small, so that errors show in its vectors."""
    recipe = load_recipe(name, ["precision=fp32", "trackers=[]", *TINY, *towers, *settings])
    tokenizer = Tokenizer.train(sentences(200), recipe.data.tokenizer.vocab_size, recipe.data.tokenizer.max_length)
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer, recipe.data.image_size or side)
    made = TrainedModel(name, recipe, model, build_objectives(recipe, model, training=False), torch.device("cpu"))
    made.key = f"weights-of-{name}"
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and p.ndim > 1 and "positions" not in name:
                p.mul_(2)
    return made


def exported(model: Any, out: Path, precision: Any = "fp32", data: str = DATA, **more: Any) -> exporting.ExportedOnnx:
    """``export_onnx`` of a model that is in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "load", lambda address, device="auto": model)
        given = {"seconds": 0.0, "threads": 1, "limit": 24, **more}
        return exporting.export_onnx(str(out.with_name("a-run")), paired_test, out, precision, data, **given)
