"""How often the sets of `diptych predict` hold the true class of new pictures, at an error rate of 0.1. *Others*: from as many pictures as were learned from, which the model did not see (`--calibrate`),
for which at least 90 % is guaranteed on average. *Out of fold*: from the training pictures themselves, by heads that did not see them, which is what an adapted model uses by itself; nothing is guaranteed there,
since the final head learned from more pictures than these heads, and since settings were chosen on them. Ten overlapping Gaussian clusters in 16 dimensions, logistic regression with settings chosen by
cross-validation, 2,000 new points; means of 20 seeds, with the standard error of the coverage."""

from __future__ import annotations

import numpy as np

from bench.harness import Bench
from diptych.choose.select import choose_settings, learned, softmax
from diptych.choose.ways import Support, way_named
from diptych.core.arrays import unit_rows
from diptych.inference.predict.conformal import KINDS, Kind, calibrated, uniform

ERROR, CLASSES, NEW = 0.1, 10, 2000


def one(seed: int, shots: int) -> dict[tuple[str, Kind], tuple[float, float, float]]:
    """Coverage, mean size of the sets and share of pictures that are unsure, of each source of calibration and each kind."""
    rng = np.random.default_rng(seed)
    centres, way = 0.8 * rng.normal(size=(CLASSES, 16)), way_named("probe")

    def points(y: np.ndarray) -> np.ndarray:
        """Points of these classes."""
        return unit_rows((centres[y] + rng.normal(size=(len(y), 16))).astype(np.float32))

    y, others, new = (
        np.repeat(np.arange(CLASSES), shots),
        rng.integers(CLASSES, size=CLASSES * shots),
        rng.integers(CLASSES, size=NEW),
    )
    support = Support(points(y), y, tuple(map(str, range(CLASSES))), seed=seed)
    choice = choose_settings(way, support)
    head = learned(way, support, choice)
    given = {
        "others": (softmax(head.logits(points(others)) / choice.temperature), others),
        "out of fold": (softmax(choice.logits / choice.temperature), y),
    }
    p, result = softmax(head.logits(points(new)) / choice.temperature), {}
    for name, (probabilities, labels) in given.items():
        for kind in KINDS:
            draws = uniform([f"{seed} {i}" for i in range(NEW)]) if kind == "aps" else None
            sets = calibrated(probabilities, labels, ERROR, kind, str(seed)).sets(p, draws)
            size = sets.sum(1)
            result[name, kind] = (float(sets[np.arange(NEW), new].mean()), float(size.mean()), float((size != 1).mean()))
    return result


def run(bench: Bench) -> None:
    seeds = range(2 if bench.quick else 20)
    for shots in (4, 16) if bench.quick else (4, 16, 50):
        found = [one(seed, shots) for seed in seeds]
        rows = []
        for name, kind in found[0]:
            values = np.array([f[name, kind] for f in found])
            error = values[:, 0].std(ddof=1) / len(seeds) ** 0.5
            cells = [
                f"{100 * values[:, 0].mean():.1f} ± {100 * error:.1f} %",
                f"{values[:, 1].mean():.2f}",
                f"{100 * values[:, 2].mean():.0f} %",
            ]
            rows.append([str(shots), name, kind, *cells])
        bench.table(["pictures a class", "calibrated on", "sets", "hold the true class", "mean size", "unsure"], rows)
