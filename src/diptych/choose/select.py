"""The one rule of selection: settings are chosen by cross-validation on the training pictures, or not at all.

Folds keep near-duplicates together (``groups``) and have about equal shares of each class.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from diptych.choose.ways.base import Choice, Support, Way
from diptych.inference.heads import Head

FOLDS = 5
ROOM = 1 << 30  # bytes of logits that stay in memory
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
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(-1, keepdims=True)
    return float((np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y]).mean())


def balanced_accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """The mean over classes of the share that is named right."""
    return _mean_over_classes(logits.argmax(-1) == y, y)


def _mean_over_classes(right: np.ndarray, y: np.ndarray) -> float:
    _, of_class, counts = np.unique(y, return_inverse=True, return_counts=True)
    return float((np.bincount(of_class, right) / counts).mean())


def fitting_temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The temperature with the least ``log_loss`` (Guo et al. 2017, arXiv:1706.04599) of a grid from 0.05 to 20; 1 for no image.

    The loss is convex in 1 / temperature, so it falls and then rises along the grid, and halving finds the least.
    """
    if not len(y):
        return 1.0
    loss = cache(lambda i: log_loss(logits / TEMPERATURES[i], y))
    low, high = 0, len(TEMPERATURES) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= loss(middle + 1) else (middle + 1, high)
    return float(TEMPERATURES[low])


def choose_settings(
    way: type[Way], support: Support, groups: np.ndarray | None = None, folds: int = FOLDS, seed: int | None = None
) -> Choice:
    """Settings of a way by cross-validation: the highest balanced accuracy over the images left out, then the least loss (at the
    temperature that fits), then the first of the grid. With one setting, the out-of-fold logits are computed all the same.

    Where no class has two pictures, nothing can be left out: the first of the grid, accuracy NaN.
    """
    settings = [dict(s) for s in way.grid(support)]
    fold = fold_of(support.y, groups, folds, support.seed if seed is None else seed)
    logits = _room(len(settings), len(support.y), support.classes)
    if not way.needs_images:  # learns nothing from the images, so all of them are unseen
        fold = np.maximum(fold, 0)
        for out, found in zip(logits, way.logits_of(settings, support.rows(np.arange(0)), support.x), strict=True):
            out[:] = found
    elif not (fold >= 0).any():
        return Choice(settings[0], math.nan, np.array(logits[0]))
    else:
        for k in np.unique(fold[fold >= 0]):
            unseen = way.logits_of(settings, support.rows(np.flatnonzero(fold != k)), support.x[fold == k])
            for out, found in zip(logits, unseen, strict=True):
                out[fold == k] = found
    chosen = _best(settings, logits, support.y, fold)
    return chosen if way.needs_images else replace(chosen, folds=0)


def _room(settings: int, images: int, classes: int) -> np.ndarray:
    """Logits that are not known yet [S, N, C]; in a temporary file if they take more than ``ROOM``."""
    shape = (settings, images, classes)
    if 4 * math.prod(shape) <= ROOM:
        return np.full(shape, math.nan, dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        held = np.memmap(file, np.float32, "w+", shape=shape)
    held[:] = math.nan
    return held


def _best(settings: list[dict[str, object]], logits: np.ndarray, y: np.ndarray, fold: np.ndarray) -> Choice:
    """The choice from the logits of each setting [S, N, C] by heads that did not see the images of a fold, which is −1 if none left
    them out.
    """
    rows = fold >= 0
    best, accuracies = _chosen(logits, y, rows)
    temperatures = [fitting_temperature(out[rows], y[rows]) for out in logits]
    losses = [log_loss(out[rows] / t, y[rows]) for out, t in zip(logits, temperatures, strict=True)]
    named = logits[best].argmax(-1)
    for k in np.unique(fold[rows]) if len(settings) > 1 and len(np.unique(fold[rows])) > 1 else ():
        named[fold == k] = logits[_chosen(logits, y, rows & (fold != k))[0]].argmax(-1)[fold == k]
    tried = [{**s, "accuracy": a, "loss": b} for s, a, b in zip(settings, accuracies, losses, strict=True)]
    accuracy = _mean_over_classes(named[rows] == y[rows], y[rows])
    return Choice(settings[best], accuracy, np.array(logits[best]), temperatures[best], tried, len(np.unique(fold[rows])))


def _chosen(logits: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[int, list[float]]:
    """The setting that the rule chooses by some images, and the balanced accuracy of each on them."""
    accuracies = [round(balanced_accuracy(out[rows], y[rows]), 12) for out in logits]
    ahead = [i for i, accuracy in enumerate(accuracies) if accuracy == max(accuracies)]
    if len(ahead) == 1:
        return ahead[0], accuracies
    fitted = {i: logits[i][rows] / fitting_temperature(logits[i][rows], y[rows]) for i in ahead}
    return min(ahead, key=lambda i: (log_loss(fitted[i], y[rows]), i)), accuracies


def learned(way: type[Way], support: Support, choice: Choice) -> Head:
    """The head of the chosen settings, learned from all training images."""
    return way(**choice.settings).fit(support)
