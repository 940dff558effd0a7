"""CLIP's towers written out in NumPy and float64, one text or image at a time, with a hook for what an adapter changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plain_fixture import f64, linear, normed

CLIP = [
    "data.train=scenes:small?length=64",
    *(f"parts.{p}.{k}" for p in ("vision", "text") for k in ("kind=clip", "width=16", "heads=2", "hidden=24")),
    "parts.text.width=12",
    "parts.vision.depth=3",
    "parts.text.depth=3",
    "embed_dim=10",
    "parts.vision.patch=16",
    "data.tokenizer.vocab_size=320",
    "precision=fp32",
    "trackers=[]",
    "device=cpu",
]
Edit = Callable[[int, np.ndarray], np.ndarray]  # the tokens [L, D] before a block, from its number and those that reach it


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True)
    return result


def attention(layer: Any, x: np.ndarray, causal: bool) -> np.ndarray:
    """Each head in a loop; a token sees those before it, or all."""
    L, D = x.shape
    d = D // layer.heads
    q, kv = linear(layer.q, x), linear(layer.kv, x)
    out = np.zeros((L, D))
    for h in range(layer.heads):
        own = slice(h * d, (h + 1) * d)
        k, v = kv[:, own], kv[:, D + h * d : D + (h + 1) * d]
        for i in range(L):
            sees = slice(0, i + 1 if causal else L)
            out[i, own] = softmax(q[i, own] @ k[sees].T / d**0.5) @ v[sees]
    result: np.ndarray = linear(layer.out, out)
    return result


def mlp(block: Any, x: np.ndarray) -> np.ndarray:
    x = linear(block.mlp[0], x)
    result: np.ndarray = linear(block.mlp[2], x / (1 + np.exp(-1.702 * x)))  # CLIP's approximation of GELU
    return result


def blocks(
    tower: Any,
    x: np.ndarray,
    edit: Edit = lambda i, x: x,
    behind: Callable[[int, str, np.ndarray], np.ndarray] = lambda i, name, h: h,
) -> np.ndarray:
    """All blocks and the last norm. behind: what is done with what attention or MLP of a block gives."""
    causal = getattr(tower, "causal", False)
    for i, block in enumerate(tower.transformer.blocks):
        x = edit(i, x)
        x = x + behind(i, "attention", attention(block.attention, normed(block.norm1, x), causal))
        x = x + behind(i, "mlp", mlp(block, normed(block.norm2, x)))
    result: np.ndarray = normed(tower.transformer.norm, x)
    return result


def words_of(model: Any, text: str) -> np.ndarray:
    """Vectors of [BOS], the words and [EOS], without positions: [T, D]."""
    ids, mask = model.tokenizer.encode_batch([text])
    result: np.ndarray = f64(model.parts["text"].embedding.weight)[ids[0, : int(mask.sum())]]
    return result


def places_of(model: Any) -> np.ndarray:
    result: np.ndarray = f64(model.parts["text"].positions)
    return result


def patches_of(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Class token and patches with positions, after the first norm: [1 + N, D], for pixels [3, H, W] in [−1, 1]."""
    vision = model.parts["vision"]
    p, weight = vision.patch, f64(vision.stem.weight)
    side = pixels.shape[1] // p
    rows = [f64(vision.classes)[0]]
    for y in range(side):
        for x in range(side):
            cut = pixels[:, y * p : (y + 1) * p, x * p : (x + 1) * p]
            rows.append((weight * cut).sum((1, 2, 3)))
    result: np.ndarray = normed(vision.norm, np.stack(rows) + f64(vision.positions))
    return result


def unit(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return result
