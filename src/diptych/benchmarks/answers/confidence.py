"""Selective prediction and calibration of answers with a confidence: the results of ``diptych metrics selective`` and
``calibration``, and of questions with options that a model scored (formulas: ``metrics.selective``, ``metrics.calibration``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.metrics import calibration, selective
from diptych.benchmarks.records import Result
from diptych.benchmarks.results import distinct, of_credits, of_sums
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tables import Table
from diptych.core.errors import DiptychError

RISKS = (0.05, 0.1, 0.2)
MOST_WORK = 10_000_000  # items × resamples of a metric that needs sorting for each


def coverage_results(
    task: str,
    confidence: np.ndarray,
    credit: np.ndarray,
    clusters: Sequence[Hashable],
    risks: Sequence[float] = RISKS,
    names: tuple[str, str] = ("risk_coverage_area", "coverage@{:.0%}_risk"),
    controls: bool = False,
    **fields: Any,
) -> list[Result]:
    """The area under the risk-coverage curve and the coverage at each risk. ``confidence`` and ``credit``: float [N].

    Chance: the area of a constant confidence, which is the error rate. ``controls``: also the area of a perfect confidence.
    """
    resamples = int(np.clip(MOST_WORK // max(len(credit), 1), 200, 1000))
    fields |= {"n": len(credit), "clusters": distinct(clusters)}

    def result(metric: str, function: Callable[..., float], **more: Any) -> Result:
        """A result with its interval, for ``function(confidence, credit)``."""
        at = function_interval(lambda index: function(confidence[index], credit[index]), clusters, share=True, resamples=resamples)
        return Result(task, metric, at.value, at.low, at.high, **fields, **more)

    error = 1 - mean(credit)
    best = {"oracle": selective.area_under_risk(credit, credit), "constant": error} if controls else {}
    results = [result(names[0], selective.area_under_risk, chance=error, higher_is_better=False, controls=best)]
    return results + [result(names[1].format(risk), partial(selective.coverage_at_risk, risk=risk)) for risk in risks]


def calibration_results(
    task: str,
    confidence: np.ndarray,
    credit: np.ndarray,
    clusters: Sequence[Hashable],
    bins: int = calibration.BINS,
    controls: dict[str, float | None] | None = None,
    **fields: Any,
) -> list[Result]:
    """Expected calibration error and Brier score. ``confidence``: probabilities, float [N]; ``controls``: of the Brier score."""
    sums, errors = calibration.bin_sums(confidence, credit, bins), calibration.brier_items(confidence, credit)
    fields |= {"higher_is_better": False}
    return [
        of_sums(task, "ece", sums, calibration.ece_of_sums, clusters, **fields),
        of_credits(task, "brier", errors, clusters, **fields, controls=controls or {}),
    ]


# --- confidences in a file: diptych metrics selective, diptych metrics calibration ---


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], Table]:
    """Confidence and credit, float [N], clusters, and the table."""
    table = read_rows(path)
    ids = table.unique("id", aliases=("item", "question_id"))
    images = table.column("image", "id", aliases=("image_id", "cluster"), default=None)
    confidence = np.array(table.column("confidence", "score"))
    credit = np.array(table.column("correct", "truth", aliases=("credit",)))
    return confidence, credit, [name if image is None else image for image, name in zip(images, ids, strict=True)], table


def selective_file(
    records: Path, validation: Path | None = None, risks: Sequence[float] = RISKS, costs: Sequence[float] = (1, 10, 100)
) -> list[Result]:
    """Area under risk-coverage, coverage at risks and, with a validation file to choose the threshold on, effective reliability."""
    confidence, credit, clusters, _ = _read(records)
    nans = int(np.isnan(confidence).sum())
    names = ("area under risk", "coverage at risk {:g}")
    results = [
        of_credits("selective", "accuracy, all answered", credit, clusters, nans=nans),
        *coverage_results("selective", confidence, credit, clusters, risks, names, True, nans=nans),
    ]
    if validation is None:
        return results
    other_confidence, other_credit, others, _ = _read(validation)
    shared = set(clusters) & set(others)
    if shared:
        remedy = "the threshold must be chosen on other items"
        raise DiptychError(f"{validation}: {len(shared)} images or ids are also in {records}, the first '{min(shared)}'; {remedy}")
    for cost in costs:
        threshold = selective.best_threshold(other_confidence, other_credit, cost)
        values = selective.effective_reliability(confidence, credit, threshold, cost)
        always = mean(selective.effective_reliability(confidence, credit, -np.inf, cost))
        fields: dict[str, Any] = {"nans": nans, "controls": {"never answering": 0.0, "always answering": always}}
        results.append(of_credits("selective", f"reliability at cost {cost:g}", values, clusters, bounded=False, **fields))
    return results


def calibration_file(records: Path, bins: int = calibration.BINS) -> tuple[list[Result], list[calibration.Bin]]:
    """Expected calibration error, Brier score, and the bins of the reliability diagram."""
    confidence, credit, clusters, table = _read(records)
    bad = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
    if len(bad):
        raise DiptychError(f"{table.where(int(bad[0]))}: 'confidence' must be a probability in [0, 1], got {confidence[bad[0]]:g}")
    # A constant confidence: the rate of right answers.
    usual: dict[str, float | None] = {"constant": float(np.mean((mean(credit) - credit) ** 2))}
    results = [
        of_credits("calibration", "accuracy", credit, clusters),
        of_credits("calibration", "mean confidence", confidence, clusters),
        *calibration_results("calibration", confidence, credit, clusters, bins, usual),
    ]
    return results, calibration.reliability(confidence, credit, bins)
