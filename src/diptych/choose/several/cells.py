"""One cell of the table for pictures with several labels. As ``choose.cells``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.calibration import ece
from diptych.benchmarks.metrics.several import f1_macro, f1_micro, mean_average_precision
from diptych.choose.cells import Cell, Data, parameters, unsuited
from diptych.choose.several.data import few_of_each
from diptych.choose.several.select import Calibration, choose_several, log_loss
from diptych.choose.several.ways import several_way, unfit
from diptych.choose.ways import Support
from diptych.core.errors import DiptychError


def part_of(data: Data, cell: Cell) -> tuple[Support, np.ndarray]:
    """The support of a cell, and the groups of its pictures."""
    which = few_of_each(data.support.y, cell.shots, cell.seed)
    return replace(data.support.rows(which), seed=cell.seed), data.groups[which]


def chosen(cell: Cell, data: Data) -> dict[str, Any]:
    """The record of a cell whose settings are chosen. ``accuracy`` is the mean average precision out of fold."""
    record: dict[str, Any] = {"model": cell.model, "way": cell.way, "shots": cell.shots, "seed": cell.seed}
    if reason := unfit(cell.way):
        return {**record, "skipped": f"does not fit pictures with several labels: {reason}"}
    way = several_way(cell.way)
    if reason := unsuited(way, data.support):
        return {**record, "skipped": reason}
    support, groups = part_of(data, cell)
    began = time.perf_counter()
    try:
        choice = choose_several(way, support, groups)
    except DiptychError as error:
        return {**record, "skipped": str(error)}
    known = not np.isnan(choice.score)
    return {
        **record,
        "pictures": len(support.y),
        "settings": choice.settings,
        "accuracy": choice.score if known else None,
        "loss": choice.loss if known else None,
        "calibration": choice.calibration.to_dict(),
        "folds": choice.folds,
        "tried": len(choice.tried),
        "seconds": time.perf_counter() - began,
    }


def tested(record: dict[str, Any], cell: Cell, data: Data) -> dict[str, Any]:
    """The record with what the chosen settings, learned from all of the cell's pictures, achieve on the test part."""
    assert data.test_x is not None and data.test_y is not None
    way = several_way(cell.way)
    support, _ = part_of(data, cell)
    began = time.perf_counter()
    head = way(**record["settings"]).fit(support)
    seconds = time.perf_counter() - began
    scores = np.asarray(head.logits(data.test_x), dtype=np.float64)
    calibration = Calibration.from_dict(record["calibration"])
    found = {"learning_seconds": seconds, "parameters": parameters(head), **measures(scores, data.test_y, calibration)}
    grid = [dict(s) for s in way.grid(support)]
    if len(grid) > 1 and record["settings"] in grid:
        every = [mean_average_precision(s, data.test_y)[0] for s in way.logits_of(grid, support, data.test_x)]
        found["inflation"] = max(every) - every[grid.index(record["settings"])]
    return {**record, "test": found}


def measures(scores: np.ndarray, targets: np.ndarray, calibration: Calibration) -> dict[str, Any]:
    """What scores [N, L] are worth on pictures with these labels. accuracy: mean average precision; credits: its number for each
    picture (benchmarks/metrics/several.py), and those of F1 over labels and over decisions; loss and ece of the probabilities.
    """
    given = calibration.given(scores)
    found = {
        "mAP": mean_average_precision(scores, targets),
        "F1 macro": f1_macro(given, targets),
        "F1 micro": f1_micro(given, targets),
    }
    p = calibration.probabilities(scores).ravel()
    return {
        "accuracy": found["mAP"][0],
        "credits": {name: [round(float(c), 9) for c in credits] for name, (_, credits) in found.items()},
        "values": {name: value for name, (value, _) in found.items()},
        "named": int(given.sum()),
        "loss": log_loss(calibration, scores, targets),
        "ece": ece(p, targets.ravel().astype(float)),
    }
