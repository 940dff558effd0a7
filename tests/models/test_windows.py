"""Monkey: adapters of each window, shared queries, the order of the tokens; against plain loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.batch import Batch, Images
from diptych.core.errors import DiptychError
from diptych.data.fields.tiles import collated_pictures
from diptych.models.layers.ragged import Ragged
from diptych.models.vlm import build_model

PARTS = [
    "parts.vision={kind: vit, width: 16, depth: 2, heads: 2, stem: patch, patch: 8, positions: learned}",
    "parts.lm={kind: random}",
    "adapters={vision: {kind: window_lora, windows: 4, rank: 3, alpha: 6, dropout: 0.0}}",
    "stages=[{objectives: {next_token: 1}, train: [connector, adapters.vision]}]",
    "parts.connector={kind: windows, tokens: 4}",
    "backbones={}",
    "data.image_size=16",
]
WORDS = ["a big red fox left of two keys"]


def built(*overrides: str) -> Any:
    torch.manual_seed(0)
    recipe = load_recipe("monkey", [*PARTS, *overrides])
    model = build_model(recipe, None, 16, WORDS).double().eval()
    model.train_only(recipe.stages[0].train)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def shown(model: Any, *shapes: tuple[int, int]) -> Batch:
    pictures = [np.random.default_rng(i).integers(0, 256, (*s, 3), dtype=np.uint8) for i, s in enumerate(shapes)]
    tiles = collated_pictures(pictures, 16, model.own_fields)
    tiles.pixels = tiles.floats.double()
    return Batch({"image": tiles}, len(pictures))


def window_by_window(model: Any, batch: Batch) -> list[torch.Tensor]:
    """Each tile alone, with the weights of its window merged into the tower's; windows first, the whole last."""
    tower, connector = model.part("vision"), model.part("connector")
    layers = [m for m in tower.modules() if hasattr(m, "window_lora_a")]
    result = []
    tiles = batch["image"]
    for picture, real in zip(tiles.pixels, tiles.real, strict=True):
        parts = []
        n = int(real.sum())
        for k in [*range(1, n), 0]:
            for layer in layers:
                delta = 2.0 * layer.window_lora_b[k - 1] @ layer.window_lora_a[k - 1]
                layer.base_layer.weight.data += delta if k else 0.0
            parts.append(connector(tower(picture[k][None]).tokens)[0])
            for layer in layers:
                delta = 2.0 * layer.window_lora_b[k - 1] @ layer.window_lora_a[k - 1]
                layer.base_layer.weight.data -= delta if k else 0.0
        result.append(torch.cat(parts))
    return result


@pytest.mark.parametrize("grids", ["[[2, 2]]", "[[2, 2], [1, 2]]"])
def test_each_window_is_read_with_its_own_adapters(grids: str) -> None:
    model = built(f"data.fields={{image: {{kind: tiles, grids: {grids}, fit: stretch}}}}")
    batch = shown(model, (32, 32), (16, 60))
    with torch.no_grad():
        found, wanted = model.encode(batch)["image.prefix"], window_by_window(model, batch)
    for i, want in enumerate(wanted):
        row = found.tokens[i][found.mask[i]] if isinstance(found, Ragged) else found[i]
        torch.testing.assert_close(row, want, atol=1e-9, rtol=1e-9)
        assert len(want) == 4 * int(batch["image"].real[i].sum())
    assert isinstance(found, Ragged) == ("1, 2" in grids)


def test_only_its_own_window_teaches_an_adapter() -> None:
    model = built()
    batch = shown(model, (32, 32))
    model.encode(batch)["image.prefix"][0, :4].sin().sum().backward()  # the first window's tokens
    layer = next(m for m in model.part("vision").modules() if hasattr(m, "window_lora_a"))
    assert layer.window_lora_a.grad[0].abs().max() > 0 and not layer.window_lora_a.grad[1:].any()
    assert layer.base_layer.weight.grad is None, "the tower's own weights stay"
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("window_lora" in n or n.startswith("parts.connector") for n in learning)
    for p in (layer.window_lora_a, layer.window_lora_b):
        place, values = int(p.grad.abs().argmax()), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                p.view(-1)[place] += step
                values.append(float(model.encode(batch)["image.prefix"][0, :4].sin().sum()))
                p.view(-1)[place] -= step
        assert float(p.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_adapters_begin_as_nothing_and_plain_pictures_have_none() -> None:
    model = built()
    for m in model.part("vision").modules():
        if hasattr(m, "window_lora_b"):
            m.window_lora_b.data.zero_()
    batch = shown(model, (32, 32))
    with torch.no_grad():
        tower = model.part("vision")
        torch.testing.assert_close(model.encode(batch)["image.prefix"][0], window_by_window(model, batch)[0], atol=1e-9, rtol=1e-9)
        plain = tower.encode(Images(batch["image"].pixels[:, 1]))
        assert plain.tokens.shape == (1, 4, 16) and tower.window is None


def test_more_tiles_than_windows_are_refused() -> None:
    model = built("data.fields={image: {kind: tiles, grids: [[2, 3]], fit: stretch}}")
    with pytest.raises(DiptychError, match="6 tiles, and adapters are for 4 windows"):
        model.encode(shown(model, (32, 32)))["image.prefix"]
