"""Systems of regions behind ``locate``: each says by what it locates, one answer for each pair, in pixels of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.data.text import Tokenizer, tokenizer_class
from diptych.inference.run import TrainedModel
from diptych.models.vlm import build_model
from diptych.objectives import build_objectives
from engine_fixture import tiny
from regions_fixture import PHRASES


def run_of(name: str) -> Any:
    """A run with random weights."""
    torch.manual_seed(0)
    recipe = load_recipe(name, [*tiny(name), "device=cpu"])
    kind = tokenizer_class(recipe.data.tokenizer.kind) or Tokenizer
    model = build_model(recipe, kind.train(PHRASES, 400, recipe.data.tokenizer.max_length), 48)
    return TrainedModel(name, recipe, model, build_objectives(recipe, model, training=False), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("x-vlm", "box"),
        ("glip", "box"),
        ("detclip", "box"),
        ("grain", "box"),
        ("kosmos-2", "box"),
        ("groupvit", "heat"),
        ("clippy", "heat"),
        ("ufo", "heat"),
    ],
)
def test_one_answer_for_each_pair(name: str, by: str) -> None:
    run = run_of(name)
    assert "locate" in run.capabilities
    images = [np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8) for i, size in enumerate([(40, 60, 3), (96, 48, 3)])]
    found = run.locate(images, PHRASES[:2])
    assert [one.by for one in found] == [by, by]
    for one, image in zip(found, images, strict=True):
        height, width = image.shape[:2]
        if one.box is not None:
            left, top, right, bottom = one.box
            assert 0 <= left <= right <= width and 0 <= top <= bottom <= height and np.isfinite(one.score)
        if by == "heat":
            assert one.heat.shape == (height, width)
