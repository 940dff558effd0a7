"""The choice of image tokens by a tower's attention (VScan): against loops, with a tower and a connector, gradients, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.vision.scanning import Scan, chosen, joined, window_of
from frozen_fixture import built
from plain_fixture import f64, linear, normed
from tower_fixture import softmax

TOWER = "parts.vision={kind: %s, frozen: true, width: 16, depth: 2, heads: 2, patch: 8}"


def kept_by_loops(shallow: np.ndarray, deep: np.ndarray, keep: int, window: int) -> list[int]:
    g = int(len(shallow) ** 0.5)
    each, result = keep // 2 // (g // window) ** 2, []
    for y in range(0, g, window):
        for x in range(0, g, window):
            inside = [(y + i) * g + x + j for i in range(window) for j in range(window)]
            result += sorted(inside, key=lambda p: -shallow[p])[:each]
    for p in sorted(range(g * g), key=lambda p: -deep[p]):
        if len(result) < keep and p not in result:
            result.append(p)
    return sorted(result)


def joined_by_loops(x: np.ndarray, kept: list[int]) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    members = {k: [k] for k in kept}
    for p in range(len(x)):
        if p not in kept:
            members[max(kept, key=lambda k: unit[k] @ unit[p])].append(p)
    return np.array([x[members[k]].mean(0) for k in kept])


@pytest.mark.parametrize(("keep", "window"), [(8, 3), (10, 2), (1, 6), (36, 2)])
def test_choice_and_merging_against_loops(keep: int, window: int) -> None:
    torch.manual_seed(0)
    shallow, deep, x = torch.rand(2, 36), torch.rand(2, 36), torch.randn(2, 36, 5, dtype=torch.float64)
    kept = chosen(shallow, deep, keep, window)
    result = joined(x, kept)
    for row in range(2):
        want = kept_by_loops(shallow[row].numpy(), deep[row].numpy(), keep, window)
        assert kept[row].tolist() == want
        np.testing.assert_allclose(result[row], joined_by_loops(f64(x[row]), want), atol=1e-12)
    y = x[:1, :9].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: joined(v, torch.tensor([[1, 4]])), (y,))


def received(block: Any, x: np.ndarray, extra: int) -> np.ndarray:
    """The attention of each patch from the class token, or from all patches, averaged over the heads."""
    a, inner = block.attention, normed(block.norm1, x)
    d, q, kv = x.shape[1] // a.heads, linear(a.q, inner), linear(a.kv, inner)
    total = np.zeros(len(x))
    for h in range(a.heads):
        for i in range(1 if extra else len(x)):
            total += softmax(q[i, h * d : (h + 1) * d] @ kv[:, h * d : (h + 1) * d].T / d**0.5)
    return total[extra:]


@pytest.mark.parametrize("kind", ["class", "siglip"])
def test_between_a_tower_and_a_connector(kind: str) -> None:
    """Also if other pictures are seen in between."""
    _, model, _ = built("llava", TOWER % kind)
    model = model.double().eval()
    tower, connector = model.parts["vision"], model.parts["connector"]
    pixels = torch.rand(2, 3, 48, 48, dtype=torch.float64) * 2 - 1
    read: list[torch.Tensor] = []
    tower.transformer.blocks[0].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    whole = connector(tower(pixels).tokens)
    Scan(tower, connector, 8)
    seen = tower(pixels)
    tower(pixels.flip(0))
    result = connector(seen.tokens)
    assert result.shape == (2, 8, whole.shape[2]) and connector.tokens == 8 and not connector.placed
    for row in range(2):
        attention = received(tower.transformer.blocks[0], f64(read[0][row]), tower.extra)
        kept = kept_by_loops(attention, attention, 8, 3)
        np.testing.assert_allclose(result[row].detach(), joined_by_loops(f64(whole[row]), kept), atol=1e-9)


def test_windows_and_refusals() -> None:
    assert [window_of(24, 64), window_of(8, 16), window_of(8, 4), window_of(8, 1), window_of(6, 4)] == [6, 2, 4, 8, 3]
    _, model, _ = built("llava", TOWER % "class")
    tower, connector = model.parts["vision"], model.parts["connector"]
    for keep, window, says in [(40, None, "40 of 36"), (8, 5, "does not divide")]:
        with pytest.raises(DiptychError, match=says):
            Scan(tower, connector, keep, window)
    with pytest.raises(DiptychError, match="maps each of them"):
        Scan(tower, built("llava", "parts.connector={kind: average}")[1].parts["connector"], 8)
