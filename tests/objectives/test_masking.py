"""What is hidden of images, what is learned from it, and matching on both sides: against plain loops in float64."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.batch import Images
from diptych.core.errors import DiptychError
from diptych.models.vision.drawn import random_blocks, random_cells, random_keep
from diptych.objectives.matching import random_negatives
from engine_fixture import Little

CPU = torch.device("cpu")


# --- which patches ---


def blocks_by_loops(images: int, side: int, wanted: int, least: float, aspect: float) -> np.ndarray:
    """BEiT's algorithm 1, one image and one patch after the other, with the draws of ``random_blocks``."""
    hidden = np.zeros((images, side, side), dtype=bool)
    while any(hidden[b].sum() < wanted for b in range(images)):
        draw = torch.rand(4, images).double().numpy()
        for b in range(images):
            missing = wanted - hidden[b].sum()
            if not missing:
                continue
            smallest = min(least, missing)
            area = smallest + draw[0, b] * (missing - smallest)
            ratio = math.exp((2 * draw[1, b] - 1) * math.log(1 / aspect))
            height, width = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
            if height > side or width > side:
                continue
            top, left = int(draw[2, b] * (side - height + 1)), int(draw[3, b] * (side - width + 1))
            for y in range(top, top + height):
                for x in range(left, left + width):
                    if not hidden[b, y, x] and missing:
                        hidden[b, y, x] = True
                        missing -= 1
    return hidden


@pytest.mark.parametrize(("side", "share"), [(6, 0.4), (14, 0.4), (7, 0.75)])
def test_blocks_equal_a_plain_loop(side: int, share: float) -> None:
    torch.manual_seed(side)
    ours = random_blocks(20, side, share, CPU)
    torch.manual_seed(side)
    wanted = side**2 - round(side**2 * (1 - share))
    reference = blocks_by_loops(20, side, wanted, side**2 * 16 / 196, 0.3)
    assert ours.sum(1).tolist() == [wanted] * 20
    assert np.array_equal(ours.numpy(), reference.reshape(20, -1))


def neighbours(hidden: torch.Tensor, side: int) -> float:
    """The share of pairs of adjacent patches of which both are hidden."""
    h = hidden.view(-1, side, side)
    return float((h[:, 1:] & h[:, :-1]).float().mean() + (h[:, :, 1:] & h[:, :, :-1]).float().mean()) / 2


def test_blocks_hang_together_and_come_everywhere() -> None:
    torch.manual_seed(0)
    hidden = random_blocks(2000, 14, 0.4, CPU)
    assert neighbours(hidden, 14) > 0.28, "hidden independently, 0.16 of the pairs would be"
    often = hidden.float().mean(0)
    assert often.min() > 0.02, "corners, too, though blocks that fit reach them less often"


@pytest.mark.parametrize(("side", "size"), [(6, 1), (7, 1), (14, 2), (16, 2), (24, 3), (13, 1)])
def test_cells_are_hidden_whole(side: int, size: int) -> None:
    torch.manual_seed(0)
    keep, hidden = random_cells(50, side, 7, 0.6, CPU)
    across = side // size
    seen = max(1, round(across**2 * 0.4)) * size**2
    assert keep.shape == (50, seen)
    for b in range(50):
        grid = hidden[b].view(side, side)
        for y in range(0, side, size):
            for x in range(0, side, size):
                cell = grid[y : y + size, x : x + size]
                assert cell.all() or not cell.any()
        assert keep[b].tolist() == [n for n in range(side**2) if not hidden[b, n]]
    assert not torch.equal(hidden[0], hidden[1])


def test_codes_are_hidden_in_blocks_or_one_by_one() -> None:
    objectives = Little("flava", "stages.1.objectives.masked_both.blocks=false", stage="main").objectives
    torch.manual_seed(0)
    blocks, single = (objectives[name].hide(500, CPU) for name in ("masked_codes", "masked_both"))  # type: ignore[operator]
    assert blocks.sum(1).tolist() == single.sum(1).tolist() == [14] * 500, "40 % of 36"
    assert neighbours(blocks, 6) > 1.5 * neighbours(single, 6)
    assert neighbours(single, 6) == pytest.approx(14 / 36 * 13 / 35, abs=0.01), "each by itself, without putting back"


# --- what is learned from them ---


@pytest.fixture(scope="module")
def little() -> Little:
    return Little("maskvlm", batch_size=6)


def fresh(little: Little) -> Any:
    return little.model.encode(next(iter(little.loader.stream(0))))


@pytest.mark.parametrize(("loss", "normalise", "cells"), [("l1", False, 7), ("l1", True, 3), ("l2", False, 0), ("l2", True, 3)])
def test_loss_of_hidden_pixels_equals_the_reference(little: Little, loss: str, normalise: bool, cells: int) -> None:
    """With 6 × 6 patches, 7 cells a side are patches, 3 are squares of 2 × 2."""
    objective = deepcopy(little.objectives["masked_patches"])
    objective.loss, objective.normalise, objective.cells = loss, normalise, cells
    torch.manual_seed(3)
    with torch.no_grad():
        ours = objective(fresh(little)).item()
    torch.manual_seed(3)
    p = fresh(little)
    rows = p.some(objective.batch_share)
    keep, hidden = random_cells(len(rows), 6, cells, 0.6, CPU) if cells else random_keep(len(rows), 36, 0.6, CPU)
    pixels = p["image"].floats
    with torch.no_grad():
        tokens = p.view(image=Images(pixels, keep=keep))["image.fused"].tokens[:, 1:]
        x = objective.token.expand(len(rows), 36, -1).clone()
        for b in range(len(rows)):
            for k, n in enumerate(keep[b].tolist()):
                x[b, n] = tokens[b, k]
        predicted = objective.head(objective.decoder(x + objective.positions)).double().numpy()
    images = pixels.double().numpy()
    total, count = 0.0, 0
    for b in range(len(rows)):
        for n in range(36):
            if not hidden[b, n]:
                continue
            y, x0 = 8 * (n // 6), 8 * (n % 6)
            target = images[b, :, y : y + 8, x0 : x0 + 8].reshape(-1)
            if normalise:
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-2)
            difference = predicted[b, n] - target
            total += float(np.abs(difference).sum() if loss == "l1" else (difference**2).sum())
            count += target.size
    assert count == 6 * (20 if cells == 3 else 22) * 192
    assert ours == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("name", ["masked_patches", "matching", "masked_words"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    little = Little("maskvlm", "stages.0.objectives.matching.negatives=random", batch_size=4)
    model, objective = little.model.double(), little.objectives[name].double()
    batch = next(iter(little.loader.stream(0)))
    batch = batch.with_(image=Images(batch["image"].floats.double()))

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return objective(model.encode(batch))  # type: ignore[no-any-return]

    together = torch.nn.ModuleList([model, objective])
    loss().backward()
    learned = [p for p in together.parameters() if p.grad is not None]
    norm = sum(float((p.grad**2).sum()) for p in learned) ** 0.5  # type: ignore[operator]
    values = []
    with torch.no_grad():  # along the gradient itself: the last layer's output is rounded to float32
        for sign in (1, -2):
            for p in learned:
                p += sign * 1e-4 / norm * p.grad  # type: ignore[operator]
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(norm, rel=5e-3)


# --- matching ---


def test_random_negatives_are_wrong_and_equally_likely() -> None:
    torch.manual_seed(0)
    meaning = torch.tensor([0, 1, 2, 3, 3])
    drawn = torch.stack([random_negatives(5, meaning, CPU) for _ in range(4000)])
    for i in range(5):
        often = torch.bincount(drawn[:, i], minlength=5) / 4000
        allowed = [j for j in range(5) if meaning[j] != meaning[i]]
        assert often[[j for j in range(5) if j not in allowed]].sum() == 0
        assert often[allowed].tolist() == pytest.approx([1 / len(allowed)] * len(allowed), abs=0.04)


@pytest.mark.parametrize(("negatives", "share"), [("random", 1.0), ("random", 0.5), ("mined", 0.5)])
def test_matching_on_both_sides_equals_the_reference(negatives: str, share: float) -> None:
    """The class tokens of both sides are multiplied; with random negatives there are as many wrong pairs as right ones."""
    options = (f"stages.0.objectives.matching.negatives={negatives}", f"stages.0.objectives.matching.batch_share={share}")
    little = Little("maskvlm", *options, batch_size=6)
    objective = little.objectives["matching"]
    torch.manual_seed(4)
    with torch.no_grad():
        ours = objective(fresh(little)).item()
    torch.manual_seed(4)
    p = fresh(little)
    own = [i for i in range(6) if math.floor(i * share) > math.floor((i - 1) * share)]
    if negatives == "random":
        text = random_negatives(6, p["text"].meaning, CPU).tolist()
        pairs = [(i, i, 1) for i in own] + [(i, text[i], 0) for i in own]
    else:
        from diptych.objectives.matching import mine_negatives

        with torch.no_grad():
            drawn = mine_negatives(p["image.embedding"] @ p["text.embedding"].T, p["text"].meaning, 20.0)
        text, image = (x.tolist() for x in drawn)
        pairs = [(i, i, 1) for i in own] + [(i, text[i], 0) for i in own] + [(image[i], i, 0) for i in own]
    w1, b1, w2, b2 = (x.detach().double().numpy() for x in objective.head.parameters())
    total = 0.0
    with torch.no_grad():
        for i, j, truth in pairs:
            one = p.pairs(image=torch.tensor([i]), text=torch.tensor([j]))
            seen, said = (one[f"{side}.fused"].tokens[0, 0].double().numpy() for side in ("image", "text"))
            hidden = w1 @ (seen * said) + b1
            gelu = np.array([0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
            odds = float((w2 @ gelu + b2)[0])
            total += math.log1p(math.exp(-odds if truth else odds))
    assert ours == pytest.approx(total / len(pairs), rel=1e-5)


@pytest.mark.parametrize(("negatives", "n"), [("random", 2), ("mined", 3)])
def test_right_pairs_are_never_taught_as_wrong_ones(negatives: str, n: int) -> None:
    """A batch in which all captions mean the same has no wrong pairs: only the right ones are learned, with their usual weight."""
    little = Little("maskvlm", f"stages.0.objectives.matching.negatives={negatives}", batch_size=4)
    objective, batch = little.objectives["matching"], little.loader.batch(0)
    same = batch.with_(text=replace(batch["text"], meaning=torch.full((4,), 7)))
    with torch.no_grad():
        loss = objective(little.model.encode(same)).item()
        odds = objective.logits(little.model.encode(same)).double()
    assert loss == pytest.approx(float((1 + (-odds).exp()).log().mean()) / n, rel=1e-5)


def test_class_tokens_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DiptychError, match="parts.fusion: pool: class needs a class token.*parts.vision.class_tokens: 1"):
        Little("maskvlm", "parts.vision={kind: vit}")
    with pytest.raises(DiptychError, match="sides: both multiplies the vectors.* 48 and 32 wide"):
        Little("maskvlm", "parts.vision.width=48")


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        ("{kind: vit, pool: cascade}", "parts.vision.pool: cascade gives none; set parts.vision.pool to mean"),
        ("{kind: efficientnet, frozen: true}", r"this tower cannot leave out; set parts.vision: \{kind: vit\}"),
    ],
)
def test_a_tower_without_patches_is_refused_before_training(tower: str, words: str) -> None:
    with pytest.raises(DiptychError, match=f"objective masked_patches hides patches.*{words}"):
        Little("maskvlm", f"parts.vision={tower}", "parts.fusion.pool=mean")
