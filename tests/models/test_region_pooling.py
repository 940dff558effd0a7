"""Regions pooled from patches, and boxes: against plain loops in float64; gradients; matching through scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from diptych.core.batch import Images, Regions
from diptych.core.errors import DiptychError
from diptych.data.fields.text import tokenized
from diptych.models.regions.boxes import assigned, box_losses, giou, iou, match_cost, to_centres, to_corners
from diptych.models.regions.weights import align_weights, box_masks, mask_weights, pool, touched
from regions_fixture import PHRASES, batch_for, model_of

BOXES = np.array(
    [
        [0.1, 0.2, 0.6, 0.9],
        [0.0, 0.0, 1.0, 1.0],
        [0.25, 0.25, 0.5, 0.5],  # exactly one patch of four
        [0.31, 0.62, 0.35, 0.64],  # within one patch
        [0.9, 0.8, 1.0, 1.0],
        [-0.4, 0.3, 0.2, 1.6],  # beyond the image: points far outside read nothing
    ]
)


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """A point between the centres of patches (He et al. 2017): 0 if it is more than a patch outside."""
    h, w = feature.shape[:2]
    if y < -1 or y > h or x < -1 or x > w:
        return np.zeros(feature.shape[2])
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    y0, x0 = math.floor(y), math.floor(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    dy, dx = y - y0, x - x0
    top = (1 - dx) * feature[y0, x0] + dx * feature[y0, x1]
    return (1 - dy) * top + dy * ((1 - dx) * feature[y1, x0] + dx * feature[y1, x1])


def aligned(feature: np.ndarray, box: np.ndarray, out: int, sampling: int) -> np.ndarray:
    """RoIAlign of one box by loops over cells and their sampling points: [out², D]."""
    h, w = feature.shape[:2]
    left, top, right, bottom = box[0] * w - 0.5, box[1] * h - 0.5, box[2] * w - 0.5, box[3] * h - 0.5
    size_y, size_x = (bottom - top) / out, (right - left) / out
    count_y, count_x = (sampling or max(1, math.ceil(s)) for s in (size_y, size_x))
    cells = []
    for i, j in itertools.product(range(out), range(out)):
        total = np.zeros(feature.shape[2])
        for a, b in itertools.product(range(count_y), range(count_x)):
            y = top + i * size_y + (a + 0.5) * size_y / count_y
            x = left + j * size_x + (b + 0.5) * size_x / count_x
            total += bilinear(feature, y, x)
        cells.append(total / (count_y * count_x))
    return np.stack(cells)


@pytest.mark.parametrize(("out", "sampling"), [(1, 0), (2, 2), (3, 0), (1, 1)])
def test_roi_align_equals_the_loops(out: int, sampling: int) -> None:
    rng = np.random.default_rng(0)
    features, owner = rng.normal(size=(3, 4, 4, 5)), [2, 0, 0, 2, 1, 2]
    weights = align_weights(torch.tensor(BOXES), 4, out, sampling)
    ours = pool(weights, torch.tensor(features).flatten(1, 2), torch.tensor(owner))
    for k, box in enumerate(BOXES):
        np.testing.assert_allclose(ours[k].numpy(), aligned(features[owner[k]], box, out, sampling), atol=1e-12)


def test_a_box_of_one_patch_reads_that_patch() -> None:
    one = align_weights(torch.tensor(BOXES[2:3]), 4)[0, 0]
    assert one.tolist() == [float(k == 5) for k in range(16)]


def test_pooling_has_the_gradient_of_finite_differences() -> None:
    features = torch.randn(2, 16, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.13, 0.22, 0.61, 0.87], [0.31, 0.12, 0.94, 0.53]], dtype=torch.float64, requires_grad=True)
    owner = torch.tensor([1, 0])
    check = torch.autograd.gradcheck
    assert check(lambda b, x: pool(align_weights(b, 4, 2, 2), x, owner), (boxes, features), fast_mode=True)


def test_no_region_at_all() -> None:
    empty = torch.zeros(0, 4)
    assert pool(align_weights(empty, 4), torch.randn(2, 16, 3), torch.zeros(0, dtype=torch.long)).shape == (0, 1, 3)


def test_masks_and_touched_patches_equal_the_loops() -> None:
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    masks = box_masks(boxes, 32)
    weights, inside = mask_weights(masks, 4), touched(boxes, 4)
    for k, (left, top, right, bottom) in enumerate(boxes.tolist()):
        counts = np.zeros((4, 4))
        for y, x in itertools.product(range(32), range(32)):
            cy, cx = (y + 0.5) / 32, (x + 0.5) / 32
            middle = (y, x) == tuple(min(max(int((a + b) / 2 * 32), 0), 31) for a, b in ((top, bottom), (left, right)))
            assert bool(masks[k, y, x]) == ((top <= cy < bottom and left <= cx < right) or middle)
            counts[y // 8, x // 8] += bool(masks[k, y, x])
        np.testing.assert_allclose(weights[k].numpy(), (counts / counts.sum()).ravel(), atol=1e-6)
        for y, x in itertools.product(range(4), range(4)):
            wide = min(right, (x + 1) / 4) - max(left, x / 4)
            high = min(bottom, (y + 1) / 4) - max(top, y / 4)
            assert bool(inside[k, 4 * y + x]) == (wide > 0 and high > 0), (k, y, x)


def test_an_empty_box_and_an_empty_mask_still_give_numbers() -> None:
    assert touched(torch.tensor([[0.3, 0.6, 0.3, 0.6]]), 4)[0].nonzero().tolist() == [[9]]
    np.testing.assert_allclose(mask_weights(torch.zeros(1, 8, 8, dtype=torch.bool), 4).numpy(), 1 / 16)


# --- boxes ---


def overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU of two boxes, from their corners."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union, common / union - (hull - union) / hull


def some_boxes(n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    first, size = rng.uniform(0, 0.6, (n, 2)), rng.uniform(0.05, 0.4, (n, 2))
    return torch.tensor(np.concatenate([first, first + size], 1))


def test_iou_giou_and_the_loss_equal_the_formulas() -> None:
    a, b = some_boxes(6, 0), some_boxes(5, 1)
    for i, j in itertools.product(range(6), range(5)):
        expected = overlap(a[i].tolist(), b[j].tolist())
        assert (float(iou(a[i], b[j])), float(giou(a[i], b[j]))) == pytest.approx(expected, abs=1e-12)
        one, other = a[i].tolist(), b[j].tolist()
        l1 = sum(abs((one[k] + one[k + 2]) / 2 - (other[k] + other[k + 2]) / 2) for k in (0, 1))
        l1 += sum(abs((one[k + 2] - one[k]) - (other[k + 2] - other[k])) for k in (0, 1))
        assert float(box_losses(a[i], b[j])) == pytest.approx(l1 + 1 - expected[1], abs=1e-12)
        assert float(match_cost(a, b)[i, j]) == pytest.approx(5 * l1 - 2 * expected[1], abs=1e-12)
    torch.testing.assert_close(to_corners(to_centres(a)), a)
    assert float(giou(a[0], a[0])) == pytest.approx(1) and float(iou(a[0], a[0] + 2)) == 0


def test_the_loss_of_boxes_has_the_gradient_of_finite_differences() -> None:
    a, b = some_boxes(3, 2).requires_grad_(), some_boxes(3, 3)
    assert torch.autograd.gradcheck(lambda x: box_losses(x, b), (a,))


def test_matching_finds_the_least_total_cost() -> None:
    cost = match_cost(some_boxes(5, 4), some_boxes(4, 5))
    rows, columns = assigned(cost)
    least = min(sum(float(cost[r, c]) for c, r in enumerate(chosen)) for chosen in itertools.permutations(range(5), 4))
    assert float(cost[rows, columns].sum()) == pytest.approx(least) and sorted(columns.tolist()) == [0, 1, 2, 3]


# --- parts ---


def model_with(regions: str, *overrides: str):
    return model_of("x-vlm", "stages.0.objectives={info_nce: 1}", "stages.0.round_robin=[]", f"parts.regions={regions}", *overrides)


@pytest.mark.parametrize("post", [False, True])
def test_dense_features_are_the_last_block_without_attention(post: bool) -> None:
    model = model_with("{kind: roi_align}")
    vision, batch = model.part("vision"), batch_for(model)
    last = vision.transformer.blocks[-1]
    for block in vision.transformer.blocks:
        block.post_norm = post
    states: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    vision(batch["image"].floats)
    handle.remove()
    x = states[0].double()
    width = x.shape[-1]
    last = last.double()

    def own(x: torch.Tensor) -> torch.Tensor:
        weight, bias = last.attention.kv.weight[width:], last.attention.kv.bias[width:]  # of the values
        return last.attention.out(x @ weight.T + bias)

    if post:
        x = last.norm1(x + own(x))
        expected = vision.transformer.norm.double()(last.norm2(x + last.mlp(x)))
    else:
        x = x + own(last.norm1(x))
        expected = vision.transformer.norm.double()(x + last.mlp(last.norm2(x)))
    model.float()
    torch.testing.assert_close(model.encode(batch)["image.dense"], expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["roi_align", "masked_pool", "box_patches"])
def test_the_tower_reads_an_image_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(f"{{kind: {kind}}}").train()
    tower, calls = model.part("vision"), []
    monkeypatch.setattr(tower.stem, "forward", lambda x, f=tower.stem.forward: (calls.append(1), f(x))[1])
    p = model.encode(batch_for(model), ("image.embedding", "regions.embedding"))
    both = p["image.embedding"], p["regions.embedding"]
    assert [tuple(x.shape) for x in both] == [(2, 128), (3, 128)] and len(calls) == 1
    torch.testing.assert_close(both[1].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", ["roi_align", "masked_pool", "box_patches"])
def test_a_region_of_the_whole_image_is_the_mean_of_the_patches(kind: str) -> None:
    """Of the tower's tokens, whose mean is the image's own pooled vector."""
    features = ", features: tokens" if kind != "box_patches" else ""
    more = ", sampling: 6" if kind == "roi_align" else ""
    model = model_with(f"{{kind: {kind}{features}{more}}}")
    batch = batch_for(model)
    whole = Regions(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), tokenized(model.tokenizer, PHRASES[:1]), torch.tensor([1]))
    p = model.encode(batch.with_(regions=whole))
    torch.testing.assert_close(p["regions.tokens"].pooled[0], p["image.tokens"].pooled[1], atol=1e-5, rtol=1e-4)


def test_a_region_looks_at_its_own_patches_alone() -> None:
    model = model_with("{kind: box_patches}")
    tokens = model.encode(batch_for(model))["regions.tokens"]
    assert tokens.mask.shape == tokens.tokens.shape[:2] and tokens.mask[:, 0].all()
    grid = model.part("vision").grid
    assert int(tokens.mask[1].sum()) == 1 + (grid // 2) ** 2  # the upper left quarter


def test_what_cannot_be_pooled_is_refused() -> None:
    model = model_with("{kind: roi_align}")
    batch = batch_for(model)
    some = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(DiptychError, match="patch_dropout"):
        model.encode(batch.with_(image=Images(batch["image"].pixels, keep=some)))["image.dense"]
    assert model.part("vision").transformer.kept is None, "nothing is kept afterwards"
    with pytest.raises(DiptychError, match=r"parts\.regions.*features: tokens"):
        model_with("{kind: roi_align}", "parts.vision={kind: efficientnet}")
    with pytest.raises(DiptychError, match="cascade"):
        model_with("{kind: roi_align}", "parts.vision.pool=cascade")
