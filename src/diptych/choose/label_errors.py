"""Pictures whose label is probably wrong, from probabilities by heads that did not see them: confident learning (Northcutt, Jiang &
Chuang 2021, arXiv:1911.00068).

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.files import read_json_or
from diptych.inference.adapted import FILE as ADAPTED
from diptych.inference.predict.calibration import read_calibration

CHECK = "labels-to-check.csv"  # what the commands write
MOST_DOUBTFUL = 0.4  # estimated share of wrong labels above which the classifier, and not the labels, is the likelier to be wrong
COLUMNS = ("picture", "label", "likelier", "confidence", "margin")


@dataclass(frozen=True)
class LabelError:
    """A picture whose label is probably wrong.

    index: its row. given, likelier: classes. confidence: the probability of the given class. margin: this less that of the likelier
    class (normalised margin); the lower, the more probably the label is wrong.
    """

    index: int
    given: int
    likelier: int
    confidence: float
    margin: float


@dataclass(frozen=True)
class LabelErrors:
    """What was concluded from all pictures.

    errors: the pictures that are probably labelled wrong, the surest first. share: of all labels that are wrong, as estimated.
    joint: the estimated share of pictures with each given (row) and true class, float64 [C, C]; its sum is 1. used: the pictures
    with probabilities, of the N given.
    """

    errors: list[LabelError]
    share: float
    joint: np.ndarray
    used: int


def label_errors(probabilities: np.ndarray, labels: np.ndarray, rank: Literal["margin", "confidence"] = "margin") -> LabelErrors:
    """The probably wrong labels among N pictures.

    From each given class i and each other class j, the number of pictures is n · joint[i, j], rounded; these are the pictures of
    class i for which j exceeds i the most (prune by noise rate, section 3.3). Pictures for which the given class is the likeliest
    stay. probabilities: float [N, C], out of fold; rows with NaN are not used. labels: int [N]. rank: by the margin or by the
    probability of the given class. DiptychError if shapes or labels do not fit.
    """
    p, given = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or given.shape != p.shape[:1]:
        raise DiptychError(f"probabilities {list(p.shape)} and labels {list(given.shape)}: expected [N, C] and [N]")
    rows = np.flatnonzero(np.isfinite(p).all(1))
    p, given = p[rows], given[rows].astype(np.int64)
    if len(given) and not (given.min() >= 0 and given.max() < p.shape[1]):
        raise DiptychError(f"labels from {given.min()} to {given.max()}: expected 0 to {p.shape[1] - 1}")
    joint = confident_joint(p, given)
    if not len(given):
        return LabelErrors([], 0.0, joint, 0)
    chosen = set()
    for i in range(len(joint)):
        members = np.flatnonzero(given == i)
        for j in range(len(joint)):
            if i == j or not (count := round(len(given) * joint[i, j])):
                continue
            ahead = p[members, j] - p[members, i]
            chosen |= {int(m) for m in members[np.argsort(-ahead, kind="stable")[:count]]}
    errors = []
    for m in sorted(chosen):
        others = np.where(np.arange(p.shape[1]) == given[m], -np.inf, p[m])
        likelier = int(others.argmax())
        own = float(p[m, given[m]])
        if p[m, likelier] > own:
            errors.append(LabelError(int(rows[m]), int(given[m]), likelier, own, own - float(p[m, likelier])))
    errors.sort(key=lambda e: (e.margin if rank == "margin" else e.confidence, e.index))
    return LabelErrors(errors, float(1 - np.trace(joint)), joint, len(given))


def confident_joint(p: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The estimated joint of given and true classes, float64 [C, C] (section 3.1, equations 1 to 3); zeros for no picture.

    A picture counts for the likeliest of the classes whose threshold it reaches: the mean probability of the class over the
    pictures that are labelled so. Counts are scaled to the number of pictures of each given class.
    """
    classes = p.shape[1]
    members = np.bincount(given, minlength=classes)
    # A class without pictures has no threshold, and nobody is confidently in it.
    thresholds = np.array([p[given == j, j].mean() if members[j] else np.inf for j in range(classes)])
    reached = np.where(p >= thresholds - 1e-12, p, -np.inf)
    confident = np.isfinite(reached.max(1)) if len(p) else np.zeros(0, dtype=bool)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (given[confident], reached[confident].argmax(1)), 1)
    empty = (counts.sum(1) == 0) & (members > 0)
    counts[empty, empty] = 1  # none is confidently anywhere: the labels are taken as they are
    scaled = counts / np.maximum(counts.sum(1, keepdims=True), 1) * members[:, None]
    total = scaled.sum()
    joint: np.ndarray = scaled / total if total else scaled
    return joint


def of_adapted(folder: Path) -> tuple[LabelErrors, list[dict[str, object]]]:
    """The probably wrong labels among the training pictures of an adapted model, and the same as plain data (``rows_of``).

    DiptychError if the folder does not have its out-of-fold probabilities and the ids of its pictures.
    """
    data: dict[str, Any] = read_json_or(folder / ADAPTED, {})
    names = data.get("classes", [])
    kept = read_calibration(folder, len(names), float(data.get("temperature", 1.0)))
    pictures: dict[str, Any] = read_json_or(folder / "pictures.json", {})
    ids = [name for name, left in zip(pictures.get("ids", []), pictures.get("left_out", []), strict=True) if left]
    if kept is None or len(ids) != len(kept[1]):
        raise DiptychError(f"{folder}: has no out-of-fold probabilities of its training pictures; adapt the model again")
    found = label_errors(*kept)
    return found, rows_of(found, names, ids)


def rows_of(found: LabelErrors, names: Sequence[str], ids: Sequence[str]) -> list[dict[str, object]]:
    """The errors as plain data with ids and names: picture, label, likelier, confidence, margin."""
    return [
        {
            "picture": ids[e.index],
            "label": names[e.given],
            "likelier": names[e.likelier],
            "confidence": e.confidence,
            "margin": e.margin,
        }
        for e in found.errors
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of ``rows_of`` as the text of a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
