"""Recipes that read pictures in tiles learn, and are evaluated and asked as any other run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.api import load
from diptych.config.recipe import load_recipe
from diptych.core.files import read_jsonl
from diptych.training.loop import train

TINY = [
    "data.train=scenes:small?ask=2&size=32",
    "data.image_size=16",
    "parts.lm={kind: random}",
    "backbones={}",
    "stages.*.batch_size=6",
    "stages.*.warmup=2",
    "stages.*.train=all",
]
SMALL = "width: 32, depth: 1, heads: 2"
OWN = {
    "llava-next": [f"parts.vision={{kind: vit, {SMALL}, stem: patch, patch: 8}}", "adapters={}"],
    "monkey": [f"parts.vision={{kind: vit, {SMALL}, stem: patch, patch: 8}}", "adapters={vision: {kind: window_lora, rank: 2}}",
               "parts.connector.tokens=4"],
    "comp": [f"parts.vision={{kind: native, {SMALL}, patch: 8}}"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["llava-next", pytest.param("monkey", marks=pytest.mark.slow), pytest.param("comp", marks=pytest.mark.slow)]
)
def test_a_run_learns_and_answers_about_pictures_of_any_shape(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name, [*TINY, *OWN[name], "budget=30 steps"])
    run = train(recipe, tmp_path / "run")
    losses = [row["loss"] for row in read_jsonl(run.path / "metrics.jsonl") if "loss" in row]
    assert losses and np.isfinite(losses).all()
    model = load(run.path)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(32, 32), (20, 64), (70, 22)]]
    answers = model.generate(images, prompt="how many?", max_tokens=3)
    assert len(answers) == 3
    together = model.loglikelihood(images, ["two", "one", "red"], prompt="how many?")
    alone = [model.loglikelihood([i], [t], prompt="how many?")[0] for i, t in zip(images, ["two", "one", "red"], strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    scores = model.score(images, ["a red fox", "two keys"])
    assert scores.shape == (3, 2) and np.isfinite(scores).all()
