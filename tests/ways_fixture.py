"""Gaussian clusters as image vectors with class names near their centres, and a plain descent with numerical gradients."""

from __future__ import annotations

import numpy as np

from diptych.choose.ways import Support
from diptych.core.arrays import unit_rows


def clusters(classes=4, shots=8, width=16, seed=0, noise=1.0, templates=3, shuffled=False, texts=True):
    """A support whose classes are clusters; ``shots`` may be a list. shuffled: labels at random."""
    random = np.random.default_rng(seed)
    centres, all_share = random.standard_normal((classes, width)), 1.5 * random.standard_normal(width)
    y = np.repeat(np.arange(classes), shots)
    x = unit_rows(all_share + centres[y] + noise * random.standard_normal((len(y), width))).astype(np.float32)
    prompts = centres[:, None] - all_share / 2 + random.standard_normal((classes, templates, width)) / 2
    y = random.permutation(y) if shuffled else y
    names = tuple(f"class {i}" for i in range(classes))
    return Support(x, y, names, unit_rows(prompts).astype(np.float32) if texts else None, scale=20.0, seed=seed)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(logits, y):
    highest = logits.max(-1)
    sums = np.exp(logits - highest[:, None]).sum(-1)
    return np.mean([np.log(s) + h - row[label] for s, h, row, label in zip(sums, highest, logits, y, strict=True)])


def slope(loss, parameter, step=1e-6):
    """Central differences of a loss of one array, entry by entry."""
    out = np.zeros_like(parameter)
    for i in np.ndindex(*parameter.shape):
        moved = parameter.copy()
        moved[i] += step
        above = loss(moved)
        moved[i] -= 2 * step
        out[i] = (above - loss(moved)) / (2 * step)
    return out


def descend(loss, parameter, rates, optimiser, decay=0.0, eps=1e-8):
    """Updates of one float64 array at these rates, as the optimisers' papers have them."""
    p, m, v = np.array(parameter, dtype=np.float64), 0.0, 0.0
    for t, rate in enumerate(rates, 1):
        g = slope(lambda q, t=t: loss(q, t - 1), p)
        if optimiser == "sgd":
            m = 0.9 * m + g
            p = p - rate * m
            continue
        if optimiser == "adam":
            g = g + decay * p
        else:
            p = p - rate * decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
    return p
