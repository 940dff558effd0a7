"""The one rule of selection: settings are chosen by cross-validation on the training pictures, or not at all.

Folds keep near-duplicates together (``groups``) and have about equal shares of each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diptych.choose.ways.base import Choice, Support, Way
from diptych.inference.heads import Head

FOLDS = 5
TEMPERATURES = np.geomspace(0.05, 20, 121)


def fold_of(y: np.ndarray, groups: Sequence[int] | np.ndarray | None = None, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold in which each image is left out, int [N]; −1 for images that never are, as the only ones of their class.

    Classes are spread evenly over the folds, groups are never divided (a group counts as of the class of its first image).
    """
    y = np.asarray(y)
    groups = np.arange(len(y)) if groups is None else np.asarray(groups)
    rng = np.random.default_rng(seed)
    fold = np.full(len(y), -1)
    names, first = np.unique(groups, return_index=True)
    class_of = y[first]
    start = 0
    for label in np.unique(class_of):
        members = rng.permutation(names[class_of == label])
        if len(members) < 2:
            continue
        for i, group in enumerate(members):
            fold[groups == group] = (start + i) % folds
        start += len(members)  # so that small classes do not all begin with fold 0
    return fold


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    logits = np.asarray(logits, dtype=np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: np.ndarray = e / e.sum(-1, keepdims=True)
    return probabilities


def log_loss(logits: np.ndarray, y: np.ndarray) -> float:
    """The mean −log probability of the true classes, in nats."""
    p = softmax(logits)[np.arange(len(y)), y]
    return float(-np.log(np.maximum(p, 1e-300)).mean())


def balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """The mean over classes of the share that is named right."""
    right = logits.argmax(-1) == y
    return float(np.mean([right[y == label].mean() for label in np.unique(y)]))


def fitting_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature with the least ``log_loss`` (Guo et al. 2017, arXiv:1706.04599) of a grid from 0.05 to 20; 1 for no image."""
    if not len(y):
        return 1.0
    return float(min(TEMPERATURES, key=lambda t: log_loss(logits / t, y)))


def choose_settings(
    way: type[Way], support: Support, groups: np.ndarray | None = None, folds: int = FOLDS, seed: int | None = None
) -> Choice:
    """Settings of a way by cross-validation: the highest balanced accuracy over the images left out, then the least loss (at the
    temperature that fits), then the first of the grid. With one setting, the out-of-fold logits are computed all the same.

    Where no class has two pictures, nothing can be left out: the first of the grid, accuracy NaN.
    """
    settings = [dict(s) for s in way.grid(support)]
    n, classes = len(support.y), support.classes
    logits = np.full((n, classes), math.nan)
    if not way.needs_images:  # learns nothing from the images, so all of them are unseen
        ways = [(s, np.asarray(way(**s).fit(support.rows(np.arange(0))).logits(support.x))) for s in settings]
        return _best(ways, support, np.ones(n, dtype=bool), 0)
    fold = fold_of(support.y, groups, folds, support.seed if seed is None else seed)
    left_out = fold >= 0
    if not left_out.any():
        return Choice(settings[0], math.nan, logits)
    tried = []
    for setting in settings:
        out = logits.copy()
        for k in np.unique(fold[left_out]):
            head = way(**setting).fit(support.rows(np.flatnonzero(fold != k)))
            out[fold == k] = head.logits(support.x[fold == k])
        tried.append((setting, out))
    return _best(tried, support, left_out, len(np.unique(fold[left_out])))


def _best(tried: list[tuple[dict[str, object], np.ndarray]], support: Support, rows: np.ndarray, folds: int) -> Choice:
    y = support.y[rows]
    scored = []
    for _, logits in tried:
        temperature = fitting_temperature(logits[rows], y)
        accuracy, loss = balanced_accuracy(logits[rows], y), log_loss(logits[rows] / temperature, y)
        scored.append((round(accuracy, 12), -loss, temperature))
    best = max(range(len(tried)), key=lambda i: (scored[i][:2], -i))
    rows_tried = [{**s, "accuracy": a, "loss": -b} for (s, _), (a, b, _) in zip(tried, scored, strict=True)]
    return Choice(tried[best][0], scored[best][0], tried[best][1], scored[best][2], rows_tried, folds)


def learned(way: type[Way], support: Support, choice: Choice) -> Head:
    """The head of the chosen settings, learned from all training images."""
    return way(**choice.settings).fit(replace(support))
