"""One cell of the table: a model, a way, a number of shots and a seed. First its settings are chosen, later it is tested."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.calibration import brier, ece
from diptych.choose.select import balanced_accuracy, choose_settings, learned, log_loss, softmax
from diptych.choose.support import of_classes
from diptych.choose.ways import Choice, Support, Way, way_named
from diptych.core.errors import DiptychError
from diptych.data.subsets.shots import few
from diptych.inference.heads import Head

ALL = 0  # shots: every training picture
LEAST_FOR_OPEN = 4  # classes, of which half are learned and half are new


@dataclass(frozen=True, order=True)
class Cell:
    """Its place in the table. shots: pictures of each class, or ``ALL``."""

    model: str
    way: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """Its name in files and messages."""
        return f"{self.way} k{self.shots or 'all'} s{self.seed}"


@dataclass(frozen=True)
class Data:
    """What all cells of one model learn from and are tested on, as vectors. groups: of near-duplicates among the
    training pictures; ids: of these.
    """

    support: Support  # of all training pictures
    groups: np.ndarray
    ids: tuple[str, ...] = ()
    test_x: np.ndarray | None = None  # None until the test part is opened
    test_y: np.ndarray | None = None


def part_of(data: Data, cell: Cell) -> tuple[Support, np.ndarray]:
    """The support of a cell, and the groups of its pictures."""
    which = few(data.support.y, cell.shots, cell.seed)
    whole = data.support
    rest = np.setdiff1d(np.arange(len(whole.y)), which)
    unlabelled = whole.x[rest] if len(rest) else None
    part = replace(whole, x=whole.x[which], y=whole.y[which], unlabelled=unlabelled, seed=cell.seed)
    return part, data.groups[which]


def chosen(cell: Cell, data: Data) -> dict[str, Any]:
    """The record of a cell whose settings are chosen: what cross-validation on its training pictures says. ``skipped``: the reason
    why the way does not suit the model or the data.
    """
    way = way_named(cell.way)
    record: dict[str, Any] = {"model": cell.model, "way": cell.way, "shots": cell.shots, "seed": cell.seed}
    if reason := unsuited(way, data.support):
        return {**record, "skipped": reason}
    support, groups = part_of(data, cell)
    began = time.perf_counter()
    try:
        choice = choose_settings(way, support, groups)
    except DiptychError as error:
        return {**record, "skipped": str(error)}
    known = ~np.isnan(choice.logits).any(1)
    fits = bool(known.any())
    return {
        **record,
        "pictures": len(support.y),
        "settings": choice.settings,
        "accuracy": choice.accuracy if fits else None,
        "loss": log_loss(choice.logits[known] / choice.temperature, support.y[known]) if fits else None,
        "temperature": choice.temperature,
        "folds": choice.folds,
        "tried": len(choice.tried),
        "seconds": time.perf_counter() - began,
    }


def unsuited(way: type[Way], support: Support) -> str:
    """Why a way cannot be tried; "" if it can."""
    if way.needs_text and support.prompts is None:
        return "the model has no text vectors"
    if way.name == "descriptions" and not support.described:
        return "no descriptions were given (--descriptions FILE)"
    return ""


def tested(record: dict[str, Any], cell: Cell, data: Data) -> dict[str, Any]:
    """The record with what the chosen settings, learned from all of the cell's training pictures, achieve on the test part."""
    assert data.test_x is not None and data.test_y is not None
    way = way_named(cell.way)
    support, _ = part_of(data, cell)
    began = time.perf_counter()
    head = learned(way, support, Choice(record["settings"], 0.0, np.zeros(0)))
    seconds = time.perf_counter() - began
    logits = np.asarray(head.logits(data.test_x), dtype=np.float64)
    found = {
        **measures(logits, data.test_y, record["temperature"]),
        "learning_seconds": seconds,
        "parameters": parameters(head),
    }
    return {
        **record,
        "test": {**found, **inflation(way, support, record["settings"], data), **open_classes(way, record, support, data)},
    }


def measures(logits: np.ndarray, y: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """What logits [N, C] are worth on pictures of the classes y [N]. correct: "0110…", whether each is named right; named: the
    class that each is given; accuracy, balanced (over classes), and of the probabilities at the temperature loss, ece and brier.
    """
    p = softmax(logits / temperature)
    right = (logits.argmax(1) == y).astype(float)
    return {
        "correct": "".join(str(int(c)) for c in right),
        "named": logits.argmax(1).tolist(),
        "accuracy": float(right.mean()),
        "balanced": balanced_accuracy(logits, y),
        "loss": log_loss(logits / temperature, y),
        "ece": ece(p.max(1), right),
        "brier": brier(p.max(1), right),
    }


def parameters(head: Head) -> int:
    """How many numbers the head holds."""
    return sum(v.size for v in vars(head).values() if isinstance(v, np.ndarray))


def inflation(way: type[Way], support: Support, settings: dict[str, Any], data: Data) -> dict[str, Any]:
    """By how much the accuracy would be higher if the settings were chosen on the test part: what a way that peeks gains.

    Nothing if there is one setting.
    """
    grid = [dict(s) for s in way.grid(support)]
    if len(grid) < 2:
        return {}
    assert data.test_x is not None and data.test_y is not None
    logits = way.logits_of(grid, support, data.test_x)
    accuracies = [float((of.argmax(1) == data.test_y).mean()) for of in logits]
    if settings not in grid:
        return {}
    own = accuracies[grid.index(settings)]
    return {"inflation": max(accuracies) - own}


def open_classes(way: type[Way], record: dict[str, Any], support: Support, data: Data) -> dict[str, Any]:
    """Accuracy where half of the classes are learned and the others are known by their names alone.

    base, new: among the learned classes alone, and among the new ones alone (the usual report); base_joint, new_joint: of the same
    test pictures where any class can be named; joint: of all. Empty if the way cannot name new classes, or there are too few.
    """
    assert data.test_x is not None and data.test_y is not None
    classes = support.classes
    if classes < LEAST_FOR_OPEN or support.prompts is None:
        return {}
    half = (classes + 1) // 2
    base, new = list(range(half)), list(range(half, classes))
    learned_of = of_classes(support, base)
    if way.needs_images and len(np.unique(learned_of.y)) < 2:
        return {}
    head = way(**record["settings"]).fit(learned_of)
    both = head.with_classes(support.scale * of_classes(support, new).texts)
    if both is None:
        return {}
    own = data.test_y < half
    logits = np.asarray(both.logits(data.test_x))

    def share(rows: np.ndarray, among: Sequence[int]) -> float | None:
        """The share of these test pictures that is named right, if only these classes can be named."""
        if not rows.any():
            return None
        columns = np.array(among)
        return float((columns[logits[rows][:, columns].argmax(1)] == data.test_y[rows]).mean())  # type: ignore[index]

    everything = base + new
    return {
        "base": share(own, base),
        "new": share(~own, new),
        "base_joint": share(own, everything),
        "new_joint": share(~own, everything),
        "joint": share(np.ones(len(own), dtype=bool), everything),
    }
