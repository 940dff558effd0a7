"""How many planted label errors `diptych.choose.label_errors` lists, which never sees the true labels: *right* is precision, the share of the listed pictures whose label is wrong; *listed* is
recall, the share of the wrong labels that is listed; both at the number that it lists by itself. *Right labels listed* is the share of right labels that it lists; *right at random* is the precision of a random list. Probabilities are out of fold (5 folds, logistic
regression). Clusters: Gaussian, 16 dimensions, 1,000 points; pictures: 500 of `scenes:small` with one thing each, named by its concept, as vectors of the packaged EfficientNet-Lite0 at 96 pixels. Labels are wrong at random, or
one class is often taken for another (*pairs*). Means and ranges of the seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.harness import Bench
from diptych.choose.label_errors import label_errors
from diptych.choose.select import fold_of, softmax
from diptych.choose.ways import Support, way_named
from diptych.core.arrays import unit_rows

Case = tuple[np.ndarray, np.ndarray, np.ndarray]  # probabilities out of fold, given labels, true labels
SEEDS = range(5)


def plant(true: np.ndarray, classes: int, wrong: float, pairs: bool, rng: np.random.Generator) -> np.ndarray:
    """Labels of which a share is wrong: another class at random, or always the next one."""
    changed = rng.random(len(true)) < wrong
    other = (true + (1 if pairs else rng.integers(1, classes, len(true)))) % classes
    return np.where(changed, other, true)


def out_of_fold(vectors: np.ndarray, given: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Probabilities of a linear probe for the pictures that it did not see, float [n, C]."""
    support = Support(unit_rows(vectors.astype(np.float32)), given, tuple(map(str, range(classes))), seed=seed)
    fold, result = fold_of(given, seed=seed), np.full((len(given), classes), np.nan)
    for k in np.unique(fold[fold >= 0]):
        head = way_named("probe")().fit(support.rows(np.flatnonzero(fold != k)))
        result[fold == k] = softmax(head.logits(support.x[fold == k]))
    return result


def clusters(seed: int, n: int = 1000, classes: int = 10, wrong: float = 0.1, pairs: bool = False, apart: float = 1.5) -> Case:
    """Gaussian clusters with planted errors. apart: the standard deviation of their centres; within a cluster it is 1."""
    rng = np.random.default_rng(seed)
    centres, true = apart * rng.normal(size=(classes, 16)), rng.integers(classes, size=n)
    given = plant(true, classes, wrong, pairs, rng)
    return out_of_fold(centres[true] + rng.normal(size=(n, 16)), given, classes, seed), given, true


def score(probabilities: np.ndarray, given: np.ndarray, true: np.ndarray) -> tuple[float, float, float, float]:
    """Precision (NaN if nothing is listed), recall (NaN if nothing is wrong), the estimated share of wrong labels, and the share of
    right labels that are listed.
    """
    found = label_errors(probabilities, given)
    listed, wrong = {e.index for e in found.errors}, set(np.flatnonzero(given != true).tolist())
    right = len(listed & wrong)
    precision = right / len(listed) if listed else np.nan
    recall = right / len(wrong) if wrong else np.nan
    return precision, recall, found.share, (len(listed) - right) / (len(given) - len(wrong))


def concept_vectors(n: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors of n pictures of one thing each, their concepts, and the number of these."""
    import torch
    from PIL import Image

    from diptych.data.sources import open_source
    from diptych.models.pretrained import load_efficientnet

    source = open_source("scenes:small?split=train")
    tower, drawn = load_efficientnet("lite0"), source.concept_samples(n)  # type: ignore[attr-defined]
    pixels = np.stack([np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC)) for image, _ in drawn])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (tower.mean, tower.std))
    rows = []
    with torch.inference_mode():
        for start in range(0, n, 50):
            x = torch.from_numpy(pixels[start : start + 50]).permute(0, 3, 1, 2).float() / 255
            rows.append(tower.features((x - mean) / std).mean((2, 3)).numpy())
    return np.concatenate(rows), np.array([label for _, label in drawn]), len(source.concepts())  # type: ignore[attr-defined]


def _row(bench: Bench, what: str, make: Callable[[int, float, bool], Case], wrong: float, pairs: bool) -> list[str]:
    scores = np.array([score(*make(seed, wrong, pairs)) for seed in (SEEDS[:2] if bench.quick else SEEDS)])
    cells = [f"{100 * v.mean():.0f} % [{100 * v.min():.0f}–{100 * v.max():.0f}]" if np.isfinite(v).all() else "—" for v in scores.T]
    cells[0] = cells[0] if wrong else "—"
    kind = "pairs" if pairs else "at random"
    return [what, f"{100 * wrong:.0f} %, {kind}" if wrong else "none", *cells, f"{100 * wrong:.0f} %"]


def run(bench: Bench) -> None:
    vectors, true, classes = concept_vectors(100 if bench.quick else 500)

    def pictures(seed: int, wrong: float, pairs: bool) -> Case:
        """The pictures with errors of this seed."""
        given = plant(true, classes, wrong, pairs, np.random.default_rng(seed))
        return out_of_fold(vectors, given, classes, seed), given, true

    def points(seed: int, wrong: float, pairs: bool) -> Case:
        """Clusters of this seed."""
        return clusters(seed, 300 if bench.quick else 1000, 10, wrong, pairs)

    def near(seed: int, wrong: float, pairs: bool) -> Case:
        """Clusters of this seed that overlap."""
        return clusters(seed, 300 if bench.quick else 1000, 10, wrong, pairs, apart=0.8)

    cases = [(0.0, False), (0.05, False), (0.1, False), (0.2, False), (0.1, True), (0.2, True)]
    for title, make in (
        ("10 clusters", points),
        ("10 overlapping clusters", near),
        (f"{classes} concepts of `scenes:small`", pictures),
    ):
        rows = [_row(bench, title, make, wrong, pairs) for wrong, pairs in cases]
        bench.table(["data", "wrong labels", "right", "listed", "estimated share", "right labels listed", "right at random"], rows)
