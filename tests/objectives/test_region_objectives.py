"""Objectives on regions and phrases: against plain loops in float64, in pieces of a batch, and that they learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from diptych.core.errors import DiptychError
from diptych.objectives.regions.base import as_pairs, count_of, on_whole_images
from diptych.objectives.regions.boxes import Boxes
from diptych.objectives.regions.pairs import RegionContrast, RegionMatching, RegionWords
from engine_fixture import Little
from plain_fixture import f64
from regions_fixture import BOXES, PHRASES, batch_for, model_of


@pytest.fixture(scope="module")
def model():
    return model_of("x-vlm")


def info_nce_by_loops(image: np.ndarray, text: np.ndarray, same: list[str], scale: float) -> float:
    n, losses = len(image), []
    for a, b in ((image, text), (text, image)):
        for i in range(n):
            kept = [j for j in range(n) if j == i or same[j] != same[i]]
            logits = {j: scale * float(a[i] @ b[j]) for j in kept}
            losses.append(math.log(sum(math.exp(v) for v in logits.values())) - logits[i])
    return sum(losses) / (2 * n)


@pytest.mark.parametrize("phrases", [PHRASES, ["a key", "two keys", "a key"]])
def test_contrast_of_regions_leaves_equal_phrases_out(model, phrases) -> None:
    p = model.encode(batch_for(model, phrases))
    image, text = f64(p["regions.embedding"]), f64(p["regions.phrases.embedding"])
    expected = info_nce_by_loops(image, text, phrases, 1 / 0.07)
    assert float(RegionContrast(model)(p).detach()) == pytest.approx(expected, abs=1e-4)


def test_phrases_look_at_their_own_regions_and_at_their_own_images(model) -> None:
    """The fused text of each pair equals that of a pass over this pair alone."""
    p = model.encode(batch_for(model))
    fusion, regions = model.part("fusion"), p["regions.tokens"]
    text, images = p["regions.phrases.tokens"], p["image.tokens"]
    by_region = as_pairs(p, ("image.tokens", "text.tokens"))["text.fused"].pooled
    by_image = on_whole_images(p)["text.fused"].pooled
    for k, owner in enumerate([0, 1, 1]):
        row, at = torch.tensor([k]), torch.tensor([owner])
        kept = regions.tokens[k][regions.mask[k]][None]  # without the patches of others, and so without a mask
        alone = fusion.fused(text[row], type(regions)(kept, kept[:, 0])).pooled
        torch.testing.assert_close(by_region[row], alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(by_image[row], fusion.fused(text[row], images[at]).pooled, atol=1e-5, rtol=1e-4)


def test_boxes_equal_the_loops(model) -> None:
    p = model.encode(batch_for(model))
    objective = Boxes(model)
    x = f64(on_whole_images(p)["text.fused"].pooled)
    first, norm, _, last = model.part("grounding").mlp
    losses, right = [], []
    for k, box in enumerate(BOXES):
        y = x[k] @ f64(first.weight).T + f64(first.bias)
        y = (y - y.mean()) / math.sqrt(y.var() + norm.eps) * f64(norm.weight) + f64(norm.bias)
        y = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in y]) @ f64(last.weight).T + f64(last.bias)
        cx, cy, w, h = 1 / (1 + np.exp(-y))
        a, b = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], box
        true = [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]]
        common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = w * h + true[2] * true[3] - common
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        giou = common / union - (hull - union) / hull
        losses.append(sum(abs(u - v) for u, v in zip((cx, cy, w, h), true, strict=True)) + 1 - giou)
        right.append(common / union >= 0.5)
    assert float(objective(p).detach()) == pytest.approx(np.mean(losses), abs=1e-5)
    assert objective.metrics()["right"] == pytest.approx(np.mean(right)) and objective.terms(p) == 3


def test_matching_counts_no_wrong_pair_where_all_phrases_are_equal(model) -> None:
    p = model.encode(batch_for(model, ["a key"] * 3))
    objective = RegionMatching(model)
    q = as_pairs(p, objective.read)
    expected = nn.functional.softplus(-objective.logits(q)).sum() / 9  # three right pairs of nine
    torch.testing.assert_close(objective(p), expected, atol=1e-5, rtol=1e-4)


def test_hidden_words_are_those_of_phrases(model) -> None:
    p = model.encode(batch_for(model))
    objective = RegionWords(model, share=0.25)
    assert objective.count(p) == sum(max(1, round(0.25 * n)) for n in (p["regions"].phrases.mask.sum(1) - 2).tolist())
    assert set(objective.needed()) == {"regions.tokens", "regions"} and torch.isfinite(objective(p))


def test_a_batch_without_regions_teaches_nothing(model) -> None:
    batch = batch_for(model, text=True)
    p = model.encode(batch.only({"image", "text"}))
    assert count_of(p) == 0
    for objective in (Boxes(model), RegionWords(model), RegionContrast(model)):
        assert objective.count(p) == 0
    assert float(RegionContrast(model)(p).detach()) == 0


def test_an_option_that_regions_do_not_have_is_refused(model) -> None:
    from diptych.objectives.contrastive import InfoNCE
    from diptych.objectives.regions.base import OnRegions

    class Momentum(OnRegions, InfoNCE):
        pass

    with pytest.raises(DiptychError, match="regions have no 'ema:image.embedding'"):
        Momentum(model, momentum="ema").needed()
    with pytest.raises(DiptychError, match=r"parts\.grounding"):
        Boxes(model_of("clip"))


EXACT = "stages.0.objectives={info_nce: 1, region_contrast: {weight: 1, scale_of: info_nce}, boxes: 1}"


def test_in_pieces_of_a_batch_the_gradient_is_the_same() -> None:
    little = Little("x-vlm", EXACT, "stages.0.round_robin=[]", batch_size=6)
    whole, pieces = little.gradients(None), little.gradients(2)
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    assert whole["0.parts.grounding.mlp.0.weight"].norm() > 0 and whole["0.parts.vision.stem.conv1.weight"].norm() > 0


def test_every_objective_of_the_recipe_gives_a_gradient_and_the_box_loss_falls() -> None:
    little = Little("x-vlm", batch_size=8)
    first = {name: float(v) for name, v in little.step(None).losses.items()}
    assert len(first) == 7 and all(math.isfinite(v) for v in first.values())
    assert all(p.grad is not None for p in little.parameters().values())
    little.objectives = nn.ModuleDict({"boxes": little.objectives["boxes"]})
    optimizer = torch.optim.AdamW(little.parameters().values(), lr=1e-3)
    for _ in range(25):
        last = float(little.step(None).losses["boxes"])
        optimizer.step()
    assert last < 0.8 * first["boxes"]
