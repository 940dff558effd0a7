"""Maps: their formulas against loops, recording that changes no score, and pictures in which one patch alone matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diptych.core.errors import DiptychError
from diptych.inference.maps import formulas
from diptych.inference.maps.base import flow_map
from diptych.inference.maps.geometry import box_of, placed, view_of
from diptych.inference.maps.occlusion import OcclusionMaps
from diptych.inference.maps.open import maps_of
from diptych.inference.maps.watching import scrambled, watching
from maps_fixture import PLAIN, SCORED_LLAVA, SIDE, inside, noise, one_white_patch, reads_channel, run_of, watches_white
from plain_fixture import f64, linear, normed
from tower_fixture import mlp, softmax

RNG = np.random.default_rng(0)


def matrices(layers: int = 3, heads: int = 2, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Attention [layers, 1, heads, size, size], rows that sum to 1, and gradients of any sign."""
    return softmax(RNG.normal(size=(layers, 1, heads, size, size))), RNG.normal(size=(layers, 1, heads, size, size))


def tensors(*arrays: np.ndarray) -> list[list[torch.Tensor]]:
    return [[torch.from_numpy(x) for x in a] for a in arrays]


def test_rollout_is_the_product_of_layers_entry_by_entry() -> None:
    attention, _ = matrices()
    flow = np.eye(5)
    for layer in attention[:, 0]:
        after = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    mean = sum(layer[h, i, k] for h in range(2)) / 2
                    after[i, j] += (0.5 * mean + (0.5 if i == k else 0.0)) * flow[k, j]
        flow = after
    (given,) = tensors(attention)
    np.testing.assert_allclose(formulas.rollout(given)[0].numpy(), flow, atol=1e-12)


def test_relevance_adds_the_positive_part_of_gradient_times_attention() -> None:
    attention, gradient = matrices()
    flow = np.eye(5)
    for a, g in zip(attention[:, 0], gradient[:, 0], strict=True):
        step = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                step[i, j] = sum(max(0.0, g[h, i, j] * a[h, i, j]) for h in range(2)) / 2
        flow = flow + np.array([[sum(step[i, k] * flow[k, j] for k in range(5)) for j in range(5)] for i in range(5)])
    a, g = tensors(attention, gradient)
    np.testing.assert_allclose(formulas.relevance(a, g)[0].numpy(), flow, atol=1e-12)


def test_legrad_grad_cam_and_cross_attention_entry_by_entry() -> None:
    attention, gradient = matrices()
    expected = [sum(max(0.0, g[h, i, j]) / 2 / 5 for g in gradient[:, 0] for h in range(2) for i in range(5)) for j in range(5)]
    a, g = tensors(attention, gradient)
    np.testing.assert_allclose(formulas.legrad(g)[0].numpy(), expected, atol=1e-12)
    tokens, slope = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))
    cam = [
        [max(0.0, sum(tokens[b, n, d] * sum(slope[b, m, d] for m in range(4)) / 4 for d in range(3))) for n in range(4)]
        for b in range(2)
    ]
    np.testing.assert_allclose(formulas.grad_cam(torch.from_numpy(tokens), torch.from_numpy(slope)).numpy(), cam, atol=1e-12)
    mask = np.array([[True, True, True, False, False]])
    looks = [
        sum(attention[0, 0, h, t, j] * max(0.0, gradient[0, 0, h, t, j]) / 2 for h in range(2) for t in range(3)) / 3
        for j in range(5)
    ]
    found = formulas.cross_attention(a[0], g[0], torch.from_numpy(mask))
    np.testing.assert_allclose(found[0].numpy(), looks, atol=1e-12)


def test_maps_of_words_entry_by_entry() -> None:
    patches, words = RNG.normal(size=(1, 6, 4)), RNG.normal(size=(1, 3, 4))
    mask = np.array([[True, True, False]])
    p, w, m = (torch.from_numpy(x) for x in (patches, words, mask))

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    filip = [sum(cosine(patches[0, n], words[0, t]) for t in range(2)) / 2 for n in range(6)]
    np.testing.assert_allclose(formulas.word_patches(p, w, m)[0].numpy(), filip, atol=1e-12)
    sparc = np.zeros(6)
    for t in range(2):
        s = np.array([float(patches[0, n] @ words[0, t]) for n in range(6)])
        s = (s - s.min()) / (s.max() - s.min())
        s = np.array([v if v >= 1 / 6 else 0.0 for v in s])
        sparc += s / s.sum() / 2
    np.testing.assert_allclose(formulas.grouped_weights(p, w, m)[0].numpy(), sparc, atol=1e-12)
    query, key = RNG.normal(size=(1, 2, 3)), RNG.normal(size=(1, 2, 5, 3))
    llip = sum(softmax(np.array([query[0, h] @ key[0, h, k] / 5.0 for k in range(5)])) for h in range(2)) / 2
    np.testing.assert_allclose(formulas.mixture(torch.from_numpy(query), torch.from_numpy(key), 5.0)[0].numpy(), llip, atol=1e-12)


def test_maps_of_a_tower_against_its_forward_pass_in_numpy_and_finite_differences() -> None:
    """The attention of a CLIP tower and the slope of the score at each of its entries, without autograd."""
    from tower_fixture import CLIP

    run = run_of("clip", *(o for o in CLIP if o.startswith(("parts.vision", "parts.text"))), "embed_dim=10", "parts.vision.depth=2")
    tower: Any = run.model.parts["vision"]
    torch.manual_seed(1)
    for p in run.model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    (image,) = noise(1)
    text = f64(torch.from_numpy(run.embed_text(["two red fish"])))[0]
    pixels = image / 127.5 - 1
    cut = pixels.reshape(3, 16, 3, 16, 3).transpose(0, 2, 4, 1, 3).reshape(9, -1)  # [N, 3 · 16 · 16]
    start = cut @ f64(tower.stem.weight).reshape(tower.width, -1).T
    start = np.concatenate([f64(tower.classes), start]) + f64(tower.positions)
    start = normed(tower.norm, start)

    def forward(change: dict[tuple[int, int, int, int], float]) -> tuple[float, list[np.ndarray], np.ndarray]:
        """The cosine with the text, all attention matrices and what the last block reads."""
        x, seen, read = start, [], start
        for i, block in enumerate(tower.transformer.blocks):
            read = x
            h = normed(block.norm1, x)
            d = tower.width // 2
            q, kv = linear(block.attention.q, h), linear(block.attention.kv, h)
            out, both = np.zeros_like(h), []
            for head in range(2):
                own = slice(head * d, (head + 1) * d)
                a = softmax(q[:, own] @ kv[:, own].T / d**0.5)
                both.append(a)
                a = a.copy()
                for (layer, which, row, column), by in change.items():
                    if (layer, which) == (i, head):
                        a[row, column] += by
                out[:, own] = a @ kv[:, tower.width :][:, own]
            seen.append(np.stack(both))
            x = x + linear(block.attention.out, out)
            x = x + mlp(block, normed(block.norm2, x))
        pooled = normed(tower.transformer.norm, x)[0] @ f64(run.model.parts["space"].image.weight).T
        return float(pooled @ text / np.linalg.norm(pooled)), seen, read

    score, attention, _ = forward({})
    np.testing.assert_allclose(score, run.score([image], ["two red fish"])[0, 0], atol=1e-5)
    slopes = [np.zeros_like(a) for a in attention]
    for i, a in enumerate(attention):
        for place in np.ndindex(a.shape):
            slopes[i][place] = (forward({(i, *place): 1e-4})[0] - forward({(i, *place): -1e-4})[0]) / 2e-4
    flow, rolled = np.eye(10), np.eye(10)
    for a, g in zip(attention, slopes, strict=True):
        flow = flow + np.maximum(a * g, 0).mean(0) @ flow
        rolled = (0.5 * a.mean(0) + 0.5 * np.eye(10)) @ rolled
    legrad = sum(np.maximum(g, 0).mean((0, 1)) for g in slopes)
    expected = {"gradient": flow[0, 1:], "rollout": rolled[0, 1:], "legrad": legrad[1:]}
    for method, reference in expected.items():
        (grid,) = run.maps.grids([image], ["two red fish"], method)
        np.testing.assert_allclose(grid.ravel(), reference, rtol=2e-3, atol=1e-6, err_msg=method)


SCORED = {
    "clip": ("clip",),
    "clip, class token": ("clip", "parts.vision.kind=clip", "parts.vision.patch=16"),
    "siglip": ("siglip", "parts.vision.kind=siglip", "parts.vision.patch=16", "embed_dim=32"),
    "coca": ("coca", "score=similarity"),
    "coca, by likelihood": ("coca",),
    "blip": ("blip", "teachers={}", "stages.0.objectives.info_nce=1", "stages.0.objectives.matching={weight: 1, pooler: none}"),
    "maskvlm": ("maskvlm",),
    "filip": ("filip",),
    "sparc": ("sparc",),
    "llip": ("llip",),
    "llava": SCORED_LLAVA,
}


@pytest.mark.parametrize("name", SCORED)
def test_recording_changes_no_score_and_every_method_gives_a_map(name: str) -> None:
    run = run_of(*SCORED[name])
    images, texts = noise(2), ["two red fish", "a blue star on the left"]
    before = run.score(images, texts, np.array([[0, 0], [1, 1]]))
    maps = maps_of(run)
    assert maps.methods and "locate" in run.capabilities
    with torch.enable_grad():
        p = run.maps._pass(images, texts)
        with watching(run.model.parts["vision"]) as seen:
            scores = run.maps._scores(p)
    np.testing.assert_allclose(scores.detach().numpy(), before, atol=1e-4)
    assert seen.own or name == "none"
    for method in maps.methods:
        grids = maps.grids(images, texts, method)
        assert all(g.shape == grids[0].shape and np.isfinite(g).all() and g.dtype == np.float32 for g in grids), method
        assert all(np.ptp(g) > 0 for g in grids), method
        alone = maps.grids(images[1:], texts[1:], method)[0]
        np.testing.assert_allclose(grids[1], alone, rtol=1e-2, atol=1e-2 * np.abs(alone).max(), err_msg=method)
    np.testing.assert_allclose(run.score(images, texts, np.array([[0, 0], [1, 1]])), before, atol=1e-6)
    if run.model.parts["vision"].extra == 0:
        assert "rollout" not in maps.methods or np.allclose(*(maps.grids(images[:1], [t], "rollout")[0] for t in texts))
    first = maps.methods[0]
    shapes = [(g - g.min()) / np.ptp(g) for g in (maps.grids(images[:1], [t], first)[0] for t in texts)]
    assert not np.allclose(*shapes, atol=1e-2), "it does not depend on the text"


def test_what_each_run_is_asked_first() -> None:
    first = {name: run_of(*SCORED[name]).maps.methods[0] for name in ("filip", "sparc", "llip", "blip", "llava", "clip")}
    assert first == {"filip": "words", "sparc": "words", "llip": "mixture", "blip": "cross", "llava": "answer", "clip": "gradient"}


TOWERS = {
    "mean": ("clip", *PLAIN),
    "class": ("clip", *PLAIN, "parts.vision.pool=class", "parts.vision.class_tokens=1"),
    "attention": ("clip", *PLAIN, "parts.vision.pool=attention"),
    "map": ("clip", *PLAIN, "parts.vision.pool=map"),
    "cascade": ("coca", *PLAIN, "score=similarity"),
    "clip": ("clip", "parts.vision.kind=clip", "parts.vision.patch=16"),
}


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96), (80, 48)])
@pytest.mark.parametrize("kind", TOWERS)
def test_the_one_patch_that_matters_has_the_highest_value(kind: str, height: int, width: int) -> None:
    run = run_of(*TOWERS[kind])
    tower = run.model.parts["vision"]
    text = "two red fish"
    picture, cell = one_white_patch(2, 0, 3, height, width)
    other, cell_of_other = one_white_patch(0, 1, 3, height, width)
    for method in run.maps.methods:
        local = method == "dense" or (method == "grad-cam" and kind not in ("class", "clip"))
        watches_white(tower, local)
        reads_channel(run, text, 0 if local and kind == "mean" else 1)
        heats = run.maps.heats([picture, other], [text, text], method)
        assert heats[0].shape == (height, width)
        assert inside(heats[0], cell) and inside(heats[1], cell_of_other), method
    found = run.locate([picture], [text], method="rollout")[0]
    assert found.box is not None and found.by == "rollout"
    left, top, right, bottom = found.box
    assert left <= (cell[2] + cell[3]) / 2 <= right and top <= (cell[0] + cell[1]) / 2 <= bottom
    assert right - left <= 2 * SIDE / 3 and bottom - top <= 2 * SIDE / 3


def test_a_map_lies_where_the_model_reads() -> None:
    grid = np.arange(4, dtype=np.float32).reshape(2, 2)
    heat = placed(grid, 4, 8, view_of(4, 8))
    assert heat[:, :2].max() == heat[:, 6:].max() == 0.0  # outside the central square
    np.testing.assert_allclose(heat[:, 2:6][[0, 0, -1, -1], [0, -1, 0, -1]], grid.ravel())  # middles of patches lie further in
    for y in range(4):
        for x in range(4):
            v, u = (float(np.clip((z + 0.5) / 2 - 0.5, 0, 1)) for z in (y, x))
            assert heat[y, x + 2] == pytest.approx(2 * v + u)
    whole = placed(grid, 4, 8, view_of(4, 8, "squash"))
    assert whole[0, 0] == 0 and whole[-1, -1] == 3 and whole.shape == (4, 8)


def test_the_box_is_around_the_part_with_the_highest_pixel() -> None:
    heat = np.zeros((6, 8), dtype=np.float32)
    heat[1:3, 1:4], heat[4:, 6:] = 0.8, 0.9
    heat[5, 7] = 1.0
    assert box_of(heat) == (6.0, 4.0, 8.0, 6.0) and box_of(heat, 0.95) == (7.0, 5.0, 8.0, 6.0)
    assert box_of(np.ones((3, 3))) is None


def test_scrambled_weights_are_put_back() -> None:
    run = run_of("clip")
    images, texts = noise(2), ["two red fish", "a star"]
    before = run.score(images, texts)
    with run.maps.random(1):
        inside_ = run.score(images, texts)
    assert not np.allclose(before, inside_, atol=1e-3)
    np.testing.assert_array_equal(run.score(images, texts), before)
    layer = nn.Linear(3, 3)
    kept = layer.weight.detach().clone()
    with pytest.raises(RuntimeError), scrambled([layer]):
        assert sorted(layer.weight.flatten().tolist()) == sorted(kept.flatten().tolist())
        raise RuntimeError
    assert torch.equal(layer.weight, kept)


def test_models_that_only_score_are_explained_by_covering_parts() -> None:
    from diptych.core.capabilities import FunctionModel

    def whiteness(images: Any, texts: Any) -> np.ndarray:
        return np.array([[im.astype(float).mean() for _ in texts] for im in images])

    picture, cell = one_white_patch(1, 2, 3, 60, 60)
    maps = maps_of(FunctionModel("white", score=whiteness))
    assert isinstance(maps, OcclusionMaps) and maps.methods == ("occlusion",)
    (heat,) = maps.heats([picture], ["anything"])
    assert inside(heat, cell)
    with pytest.raises(DiptychError, match="does not score"):
        maps_of(FunctionModel("mute", generate=lambda images, prompts, n: []))
    with pytest.raises(DiptychError, match="no map 'gradcam'.*grad-cam"):
        run_of("clip").maps.grids([picture], ["x"], "gradcam")
    with pytest.raises(DiptychError, match="1 text for 2 images"):
        run_of("clip").locate([picture, picture], ["x"])


def test_attention_that_is_not_recorded_is_an_error() -> None:
    from diptych.inference.maps.watching import Watched

    with pytest.raises(DiptychError, match="not recorded"):
        flow_map(Watched(), torch.zeros(1), "rollout", "class", 1)
