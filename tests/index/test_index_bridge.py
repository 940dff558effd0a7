"""A linear bridge from vectors of pictures to those of their captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diptych.index.calibrate import Calibration
from diptych.index.cutoff.background import Background
from diptych.index.cutoff.ridge import SHARES, Bridge, own_first, ridge


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(number: int = 160, width: int = 8, noise: float = 0.5, turned: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of captions, and of pictures that are the same in another basis."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(width, width)))[0] if turned else np.eye(width)
    captions = unit(rng.normal(size=(number, width)) + 0.4)
    return unit(captions @ turn + noise * rng.normal(size=(number, width)) / np.sqrt(width)), captions


def test_ridge_of_several_columns_against_refits() -> None:
    vectors, captions = pairs(40)
    found, x, y = ridge(vectors, captions), vectors.astype(np.float64), captions.astype(np.float64)
    scale = np.linalg.svd(x - x.mean(0), compute_uv=False)

    def fitted(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        middle, mean = x[rows].mean(0), y[rows].mean(0)
        a = x[rows] - middle
        weights = np.linalg.solve(a.T @ a + share * (scale**2).mean() * np.eye(x.shape[1]), a.T @ (y[rows] - mean))
        return weights, mean - middle @ weights

    out = {}
    for share in SHARES:
        rows = [fitted(np.arange(40) != i, share) for i in range(40)]
        out[share] = np.stack([x[i] @ w + b for i, (w, b) in enumerate(rows)])
    best = min(SHARES, key=lambda share: float((((out[share] - y) ** 2).mean(0) / y.var(0)).mean()))
    np.testing.assert_allclose(found.left_out, out[best], atol=1e-8)
    weights, bias = fitted(np.arange(40), best)
    np.testing.assert_allclose(found.weights, weights, atol=1e-8)
    np.testing.assert_allclose(found.bias, bias, atol=1e-8)


def test_own_first_by_counting() -> None:
    scores = np.array([[3.0, 9, 1], [1.0, 9, 2], [2.0, 0, 2]])
    captions = np.array([[1.0, 0], [0, 1], [1, 1]])
    # caption 1 for its picture: 3 > 1, 2; caption 2: 9 = 9, > 0; caption 3: 2 = 2, > 1
    assert own_first(scores, captions) == np.mean([1.0, 0.75, 0.75])
    same = np.array([[1.0, 0], [1, 0], [1, 1]])  # the second is the first again and does not count
    assert own_first(scores, same) == np.mean([1.0, 0.75])


def test_a_bridge_is_used_where_pictures_and_captions_do_not_meet() -> None:
    vectors, captions = pairs()
    learned = Bridge.fit(vectors[:120], captions[:120])
    assert learned is not None
    bridge, across = learned
    new = bridge.images(vectors[120:]) @ bridge.texts(captions[120:]).T
    assert own_first(new, captions[120:]) > 0.85 > 0.7 > own_first(vectors[120:] @ captions[120:].T, captions[120:])
    # Left-out vectors are as good as new ones, not as those that were learned from.
    assert abs(own_first(across @ bridge.texts(captions[:120]).T, captions[:120]) - own_first(new, captions[120:])) < 0.1
    assert Bridge.fit(vectors[:60], captions[:60]) is None  # too few
    assert Bridge.fit(*pairs(turned=False, noise=0.3)) is None  # they meet already
    kept = Bridge.of_arrays(bridge.arrays())
    assert kept is not None and np.array_equal(kept.images(vectors), bridge.images(vectors)) and Bridge.of_arrays({}) is None


def test_a_background_compares_beyond_its_bridge(tmp_path: Path) -> None:
    vectors, captions = pairs(200)
    learned = Bridge.fit(vectors[:120], captions[:120])
    assert learned is not None
    bridge, across = learned
    words = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120)]
    background = Background(words, captions[:120], across, bridge=bridge)
    right = [
        background.scores(captions[i], vectors[[i, *(j for j in range(120, 200) if j != i)][:20]]).argmax() == 0
        for i in range(120, 200)
    ]
    without = Background(words, captions[:120], vectors[:120])
    before = [
        without.scores(captions[i], vectors[[i, *(j for j in range(120, 200) if j != i)][:20]]).argmax() == 0
        for i in range(120, 200)
    ]
    assert np.mean(right) > 0.3 + np.mean(before)
    usual = background.preferred(captions[0], None)  # its own pictures are beyond the bridge already
    assert usual.shape == (120,) and (usual > usual[0]).sum() < 30
    Calibration.of_background(background, vectors[:50]).save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz").background
    assert np.array_equal(again.scores(captions[130], vectors[120:]), background.scores(captions[130], vectors[120:]))
