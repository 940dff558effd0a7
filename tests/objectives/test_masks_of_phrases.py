"""UFO's masks against plain loops in float64; MMGiC's documents; ViSFT's stages."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.config.recipe import load_recipe
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Region, Sample
from diptych.data.fields import Draw
from diptych.data.fields.grounded import AnnotatedField
from diptych.data.regions.locations import LocationTokenizer16, written
from diptych.objectives.regions.base import on_whole_images
from diptych.objectives.regions.masks import RegionMasks, dice
from engine_fixture import Little
from plain_fixture import f64
from regions_fixture import PHRASES, batch_for, model_of


@pytest.fixture(scope="module")
def ufo():
    return model_of("ufo", "parts.grounding.depth=1")


def test_a_mask_token_stands_for_a_part_of_every_patch(ufo) -> None:
    part = ufo.part("grounding")
    p = ufo.encode(batch_for(ufo, text=True))
    logits = p["text.mask_logits"]
    assert logits.shape == (2, 24, 24)
    image, text = p["image.tokens"].tokens, p["text.tokens"]
    for b in range(2):
        words = text.tokens[b][text.mask[b]][None]  # without padding, and so without a mask
        x = torch.cat([part.from_image(image[b : b + 1]), part.from_text(words), part.tokens[None]], 1)
        x = f64(part.transformer(x))[0]
        patches, asked = x[:36], x[-16:]
        for row, column in ((0, 0), (5, 18), (13, 7), (23, 23)):
            patch, k = (row // 4) * 6 + column // 4, (row % 4) * 4 + column % 4
            expected = asked[k] @ patches[patch] / math.sqrt(32) - 2
            assert float(logits[b, row, column].detach()) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(p["text.heat"], logits.sigmoid())


def with_masks(model):
    batch = batch_for(model)
    masks = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(2)) > 0.7
    return model.encode(batch.with_(regions=replace(batch["regions"], masks=masks))), masks


def test_the_loss_of_masks_equals_the_loops(ufo) -> None:
    p, masks = with_masks(ufo)
    logits, losses = f64(on_whole_images(p)["text.mask_logits"]), []
    for k in range(3):
        target = f64(masks[k]).reshape(24, 2, 24, 2).mean((1, 3))
        q = 1 / (1 + np.exp(-logits[k]))
        cross = -(target * np.log(q) + (1 - target) * np.log(1 - q)).mean()
        losses.append(cross + 1 - (2 * (q * target).sum() + 1) / (q.sum() + target.sum() + 1))
    objective = RegionMasks(ufo)
    assert float(objective(p).detach()) == pytest.approx(np.mean(losses), abs=1e-4) and objective.terms(p) == 3


def test_dice_has_the_gradient_of_finite_differences() -> None:
    torch.manual_seed(0)
    q, target = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True), torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: dice(x, target), (q,))
    assert float(dice(target[:1] * 0, target[:1] * 0)) == 0


def test_what_is_missing_is_named(ufo) -> None:
    p = ufo.encode(batch_for(ufo))
    with pytest.raises(DiptychError, match="masks: true"):
        RegionMasks(ufo)(p)
    with pytest.raises(DiptychError, match="mask_tokens"):
        RegionMasks(model_of("clip"))


def test_it_learns_whole_and_in_pieces() -> None:
    little = Little("ufo", "stages.0.objectives={region_masks: 1}", batch_size=6)
    whole, pieces = little.gradients(None), little.gradients(2)
    for n, gradient in whole.items():
        assert (pieces[n] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, n
    optimizer = torch.optim.AdamW(little.parameters().values(), lr=2e-3)
    losses = []
    for _ in range(12):
        losses.append(float(little.step(None).losses["region_masks"]))
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


def test_a_document_lists_the_regions_after_the_caption() -> None:
    tokenizer = LocationTokenizer16.train(PHRASES, 400, 64)
    regions = [Region((0, 0, 16, 16), "a red fox"), Region((16, 16, 32, 32), "a key")]
    sample = Sample("a", image=np.zeros((32, 32, 3), np.uint8), text=Captions(["two things"]), regions=regions)
    field = AnnotatedField("text", tokenizer, 32)
    first, second = written("a red fox", [(0, 0, 0.5, 0.5)], 16), written("a key", [(0.5, 0.5, 1, 1)], 16)
    rows = [Draw(0, i, sample, {"text": field.fit(sample, random.Random)}) for i in range(12)]
    assert set(field.collate(rows).strings) == {
        f"<grounding>two things; {first}; {second}",
        f"<grounding>two things; {second}; {first}",
    }


def test_heads_learn_first_and_then_the_adapters_of_the_tower() -> None:
    heads = Little("vi-sft", batch_size=4, stage="heads").gradients(None)
    assert not any("vision" in n and "lora" not in n for n in heads)
    assert all(heads[n].norm() > 0 for n in heads if n.startswith("0.parts.") and "lora" not in n and "null" not in n)
    tower = Little("vi-sft", batch_size=4, stage="tower")
    tower.model.train_only(load_recipe("vi-sft").stages[1].train)
    learning = {n for n, g in tower.gradients(None).items() if g.norm() > 0 and n.startswith("0.parts.")}
    assert learning and all("lora" in n or ".space." in n for n in learning)
