"""Token merging in towers (adapter ``tome``): its steps against loops in float64, what it keeps, gradients, recipes, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import DiptychError
from diptych.models.build import SIZES, Build
from diptych.models.connectors.pooling import merge
from diptych.models.layers.merging import Merging, match, merged, rates_of, rates_to
from diptych.models.vision.towers import VISION
from frozen_fixture import built, captioned, learned, parts_of
from plain_fixture import f64, linear, normed
from tower_fixture import mlp


def by_loops(x: np.ndarray, size: np.ndarray, metric: np.ndarray, r: int, first: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One row: each token of the first set finds its most similar one in the second; the best r pairs become one each. Also the place
    of each token that is left.
    """
    one, two = range(first, len(x), 2), range(1 - first, len(x), 2)

    def cosine(i: int, j: int) -> float:
        return float(metric[i] @ metric[j] / np.sqrt((metric[i] @ metric[i]) * (metric[j] @ metric[j])))

    best = {i: max((cosine(i, j), j) for j in two) for i in one}
    gone = sorted(one, key=lambda i: -best[i][0])[:r]
    tokens, sizes, places = [], [], []
    for i in one:
        if i not in gone:
            tokens, sizes, places = [*tokens, x[i]], [*sizes, size[i]], [*places, i]
    for j in two:
        members = [j, *(i for i in gone if best[i][1] == j)]
        total = sum(size[m] for m in members)
        tokens, sizes, places = [*tokens, sum(size[m] * x[m] for m in members) / total], [*sizes, total], [*places, j]
    return np.array(tokens), np.array(sizes), places


@pytest.mark.parametrize("first", [0, 1])
def test_matching_against_loops(first: int) -> None:
    torch.manual_seed(0)
    x, metric = torch.randn(3, 9, 5, dtype=torch.float64), torch.randn(3, 9, 4, dtype=torch.float64)
    size = torch.randint(1, 5, (3, 9, 1)).double()
    tokens, sizes = merged(x, size, match(metric, 3, first))
    for row in range(3):
        want, counts, _ = by_loops(f64(x[row]), f64(size[row])[:, 0], f64(metric[row]), 3, first)
        np.testing.assert_allclose(tokens[row], want, atol=1e-12)
        np.testing.assert_allclose(sizes[row, :, 0], counts)
    own, _ = merge(x, size, 4)  # the connector's: by the tokens themselves
    np.testing.assert_allclose(own[0], by_loops(f64(x[0]), f64(size[0])[:, 0], f64(x[0]), 4, 0)[0], atol=1e-12)


def tower(kind: str = "vit", depth: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    build = Build(SIZES["tiny"], 32, None, where="parts.vision")
    made = VISION[kind](build, width=16, depth=depth, heads=2, patch=8, **options)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.double().eval()


def with_merging(part: Any, **options: Any) -> Any:
    from diptych.models.adapters.tome import ToMe

    ToMe(part, Build(SIZES["tiny"], 32, None), "adapters.vision", **options)
    return part


def attention_of(layer: Any, x: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention in which a token counts as often as it stands for patches, and the keys' mean over the heads."""
    L, D = x.shape
    d, q, kv = D // layer.heads, linear(layer.q, x), linear(layer.kv, x)
    out, keys = np.zeros((L, D)), np.zeros((L, d))
    for h in range(layer.heads):
        own = slice(h * d, (h + 1) * d)
        k, v = kv[:, own], kv[:, D + h * d : D + (h + 1) * d]
        keys += k / layer.heads
        for i in range(L):
            e = size * np.exp(q[i, own] @ k.T / d**0.5)
            out[i, own] = (e / e.sum()) @ v
    return linear(layer.out, out), keys


@pytest.mark.parametrize(("kind", "rates"), [("clip", [4, 4, 2]), ("siglip", [5, 3, 1])])
def test_tower_against_loops(kind: str, rates: list[int]) -> None:
    part = tower(kind, activation="quick_gelu")
    x = torch.randn(2, part.extra + 16, 16, dtype=torch.float64)
    plain = part.transformer.norm
    part.transformer.merging = merging = Merging(rates, part.extra)
    result = part.transformer(x)
    assert result.shape[1] == part.extra + 16 - sum(rates) == part.extra + merging.left(16)
    assert merging.sizes is not None and (merging.sizes.sum(1) == part.extra + 16).all()
    for row in range(2):
        tokens, size, place = f64(x[row]), np.ones(part.extra + 16), list(range(part.extra + 16))
        for block, r in zip(part.transformer.blocks, rates, strict=True):
            added, keys = attention_of(block.attention, normed(block.norm1, tokens), size)
            tokens, e = tokens + added, part.extra
            after, sizes, order = by_loops(tokens[e:], size[e:], keys[e:], r, e % 2)
            tokens, size = np.concatenate([tokens[:e], after]), np.concatenate([size[:e], sizes])
            place = [*place[:e], *(place[e:][i] for i in order)]
            tokens = tokens + mlp(block, normed(block.norm2, tokens))
        order = list(np.argsort(place))
        np.testing.assert_allclose(result[row].detach(), normed(plain, tokens[order]), atol=1e-9)
        np.testing.assert_allclose(merging.sizes[row, :, 0], size[order])


@pytest.mark.parametrize("pool", ["mean", "map", "attention"])
def test_equal_tokens_merge_without_a_trace(pool: str) -> None:
    """Each token twice: their pairs are merged, and with proportional attention nothing else changes, the pooled vector neither."""
    part = tower("vit", pool=pool, norm="none", positions="learned", stem="patch")
    with torch.no_grad():
        part.positions.zero_()
    pixels = torch.randn(2, 3, 32, 2, 1, 8, dtype=torch.float64).expand(-1, -1, -1, -1, 2, -1).reshape(2, 3, 32, 32)
    whole = part(pixels)
    torch.testing.assert_close(whole.tokens[:, ::2], whole.tokens[:, 1::2])
    fewer = with_merging(part, tokens=8)(pixels)
    assert part.tokens == 8 and fewer.tokens.shape[1] == 8
    part.transformer.merging.rates = (8, 0, 0)  # all pairs at once
    fewer = part(pixels)
    torch.testing.assert_close(fewer.tokens, whole.tokens[:, ::2])
    torch.testing.assert_close(fewer.pooled, whole.pooled)


def test_gradients_and_nothing_merged() -> None:
    part = tower("clip", depth=2)
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    whole = part(pixels).tokens
    with_merging(part, tokens=16)
    torch.testing.assert_close(part(pixels).tokens, whole)
    part.transformer.merging = Merging([3, 2], 1)
    x = torch.randn(1, 9, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(part.transformer, (x,), fast_mode=True)
    one = torch.autograd.grad(part.transformer(x).square().sum(), part.transformer.blocks[0].attention.q.weight)[0]
    part.transformer.checkpointing = True
    again = torch.autograd.grad(part.transformer(x).square().sum(), part.transformer.blocks[0].attention.q.weight)[0]
    torch.testing.assert_close(one, again)


def test_schedules() -> None:
    assert rates_of(196, 4, 8) == [8, 8, 8, 8]
    assert rates_of(196, 5, 8, decreasing=True) == [16, 12, 8, 4, 0]  # the same sum
    assert rates_of(10, 3, 8) == [5, 2, 1]  # at most half of what is left
    assert (
        rates_to(64, 2, 36) == [14, 14] and rates_to(64, 3, 36) == [10, 9, 9] and rates_to(64, 2, 16) == [32, 16]
    )  # 24 each would not do
    assert rates_to(64, 2, 15) is None


def test_in_training_with_a_connector_that_takes_any_number() -> None:
    """The tower learns although it has an adapter, since that has nothing to learn; the language model reads fewer tokens."""
    sets = ["parts.vision.frozen=false", "adapters.vision={kind: tome, tokens: 20}", "stages.0.train=[vision, connector]"]
    recipe, model, objectives = built("llava", *sets)
    connector = model.parts["connector"]
    assert connector.tokens == 20 and not connector.placed
    assert not model.adapters["vision"].own() and not model.adapted
    batch = captioned(model)
    assert model.encode(batch)["image.prefix"].shape[1] == 20
    losses, changed = learned(recipe, model, objectives, batch, steps=15)
    assert losses[-1] < losses[0]
    assert {"parts.vision", "parts.connector"} <= parts_of(changed)
    model.train_only("all")
    assert all(p.requires_grad for p in model.parts["vision"].parameters())


def test_refusals() -> None:
    for options, says in [
        ("{kind: tome}", "set either merge"),
        ("{kind: tome, merge: 2, tokens: 4}", "set either merge"),
        ("{kind: tome, tokens: 3}", "1 blocks can leave 18 to 36"),
        ("{kind: tome, tokens: 20, decreasing: true}", "decreasing"),
    ]:
        with pytest.raises(DiptychError, match=says):
            built("llava", f"adapters.vision={options}")
    with pytest.raises(DiptychError, match="reads a square of patches"):
        built("llava", "adapters.vision={kind: tome, tokens: 20}", "parts.connector={kind: average}")
    with pytest.raises(DiptychError, match="kind vit, clip, class"):
        built(
            "llava",
            "adapters.vision={kind: tome, tokens: 20}",
            "parts.vision={kind: sparse, layers: [1], width: 16, depth: 2, heads: 2}",
        )
