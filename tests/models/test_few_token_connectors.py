"""Connectors that leave few tokens, merging as they go (SimVLG) or in two steps (TextHawk2): against loops in float64, gradients,
recipes, refusals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.connectors.rearranging import ScalablePositions
from frozen_fixture import LM, PATCHES, built, captioned, connector, learned, parts_of, requested, seen
from plain_fixture import f64, gelu, linear, normed
from tower_fixture import attention, softmax

GRID, ROWS = 4, 2


def stirred(kind: str, **options: Any) -> Any:
    made = connector(kind, **options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


def mlp(layers: Any, x: np.ndarray) -> np.ndarray:
    return linear(layers[2], gelu(linear(layers[0], x)))


def keys_of(layer: Any, x: np.ndarray) -> np.ndarray:
    """The mean of the keys over the heads, [n, d]."""
    k = linear(layer.kv, x)[:, : x.shape[1]]
    return k.reshape(len(x), layer.heads, -1).mean(1)


def merged_means(x: np.ndarray, keys: np.ndarray, r: int, first: int) -> np.ndarray:
    """The r most similar pairs become their plain means; what stays of the first set comes first."""
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    one, two = range(first, len(x), 2), range(1 - first, len(x), 2)
    near = {i: max(two, key=lambda j: unit[i] @ unit[j]) for i in one}
    gone = sorted(one, key=lambda i: -(unit[i] @ unit[near[i]]))[:r]
    return np.array([x[i] for i in one if i not in gone] + [x[[j, *(i for i in gone if near[i] == j)]].mean(0) for j in two])


def test_gradual_merging_against_loops() -> None:
    """The class token is read and never merged."""
    made = stirred("gradual_merging", merge=5, depth=3, width=16, heads=2)
    assert made.rates == [5, 5, 3] and made.tokens == 1 + PATCHES - 13
    x = seen()
    result = made(x)
    assert result.shape == (ROWS, made.tokens, LM)
    for row in range(ROWS):
        h = normed(made.norm, linear(made.enter, f64(x[row])) + f64(made.positions))
        for block, r in zip(made.transformer.blocks, made.rates, strict=True):
            keys = keys_of(block.attention, h)
            h = normed(block.norm1, h + attention(block.attention, h, False))
            h = np.concatenate([h[:1], merged_means(h[1:], keys[1:], r, 1)])
            h = normed(block.norm2, h + mlp(block.mlp, h))
        np.testing.assert_allclose(result[row].detach(), linear(made.leave, h), atol=1e-9)
    y = seen(1).requires_grad_()
    assert torch.autograd.gradcheck(made, (y,), fast_mode=True)


def arc(ends: np.ndarray, radius: float, steps: int) -> np.ndarray:
    a, b = (e / np.linalg.norm(e) for e in ends)
    angle = np.arccos(a @ b)
    return np.array(
        [radius * (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle) for t in np.linspace(0, 1, steps)]
    )


def places(positions: Any, side: int) -> np.ndarray:
    ends, radius = f64(positions.ends), f64(positions.radius)
    rows, columns = (arc(ends[i], radius[i], side) for i in range(2))
    return np.array([np.concatenate([rows[y], columns[x]]) for y in range(side) for x in range(side)])


def test_rearranged_against_loops() -> None:
    made = stirred("rearranged", together=2, heads=2, depth=2)
    assert made.tokens == PATCHES // 8
    x = seen()
    result = made(x)
    assert result.shape == (ROWS, made.tokens, LM)
    at, at_patches = places(made.positions, 2), places(made.positions, GRID)
    for row in range(ROWS):
        patches = f64(x[row])[1:]
        wide, queries = mlp(made.propose, patches), []
        for y in range(0, GRID, 2):
            for c in range(0, GRID, 2):
                square = wide[[y * GRID + c, y * GRID + c + 1, (y + 1) * GRID + c, (y + 1) * GRID + c + 1]]
                queries.append(linear(made.proposed, square.max(0)))
        h = np.array(queries)
        for layer in made.layers:
            own, D = layer.attention, h.shape[1]
            context = normed(layer.norm_patches, patches)
            q = linear(own.q, normed(layer.norm_queries, h) + at)
            k, v = linear(own.kv, context + at_patches)[:, :D], linear(own.kv, context)[:, D:]
            d, out = D // own.heads, np.zeros_like(h)
            for head in range(own.heads):
                part = slice(head * d, (head + 1) * d)
                out[:, part] = softmax(q[:, part] @ k[:, part].T / d**0.5) @ v[:, part]
            h = h + linear(own.out, out)
            h = h + mlp(layer.mlp, normed(layer.norm, h))
        h = normed(made.norm, h)
        want = [linear(made.layer, np.concatenate([h[i], h[i + 1]])) for i in range(0, len(h), 2)]
        np.testing.assert_allclose(result[row].detach(), np.array(want), atol=1e-9)
    y = seen(1).requires_grad_()
    assert torch.autograd.gradcheck(made, (y,), fast_mode=True)


def test_positions_of_a_finer_grid_pass_through_those_of_a_coarse_one() -> None:
    torch.manual_seed(0)
    made = ScalablePositions(8).double()
    coarse, fine = made.axis(0, 3), made.axis(0, 5)
    torch.testing.assert_close(fine[::2], coarse)
    torch.testing.assert_close(fine.norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "kind", "stage", "train"),
    [
        ("simvlg", "{kind: gradual_merging, merge: 9, depth: 3, width: 16, heads: 2}", 0, {"parts.connector"}),
        ("texthawk2", "{kind: rearranged, together: 3, heads: 2}", 1, {"parts.vision", "parts.connector"}),
    ],
)
def test_recipes_learn(name: str, kind: str, stage: int, train: set[str]) -> None:
    sets = [f"parts.connector={kind}"]
    if name == "texthawk2":
        sets += ["parts.vision.frozen=false", "adapters={}", "stages.1.train=[vision, connector]"]
        sets += ["stages.1.objectives={answers: 1}"]
    recipe, model, objectives = built(name, *sets)
    assert model.parts["connector"].tokens == {"simvlg": 9, "texthawk2": 3}[name]
    batch = captioned(model) if stage == 0 else requested(model, ["how many?", "a fox?"], ["two keys", "a red fox"])
    losses, changed = learned(recipe, model, objectives, batch, stage=stage, steps=12)
    assert losses[-1] < losses[0] and parts_of(changed) == train


def test_refusals() -> None:
    for options, says in [
        ({"together": 3, "heads": 2}, "does not divide the 2"),
        ({"stride": 3}, "does not divide by 3"),
        ({"heads": 5}, "heads"),
    ]:
        with pytest.raises(DiptychError, match=says):
            connector("rearranged", **options)
