"""How well a model knows concepts that were frequent or rare in training (Udandarao et al., arXiv:2404.04125).

``correlation``: Pearson's r of accuracy with log10 of the count over concepts, ``binned_correlation`` that over bins of half a
decade, ``rank_correlation`` with the concepts that never occurred; ``slope``: what ten times the data adds. Intervals: over
concepts. ``frequency``: zero-shot classification, with ``counts`` (a JSON file {concept: count}) or counted over the labels of
``train``, the address of the training data. ``diptych metrics frequency``: the same from credits in a file. A counts file must
name every concept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item
from diptych.benchmarks.inputs import read_json, read_rows
from diptych.benchmarks.labels import frequencies, labelled
from diptych.benchmarks.matching.zeroshot import ZeroShot
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, nearest
from diptych.data.source import Source

RESAMPLES = 1000

# --- the formulas: ``counts`` int [C], how often each concept occurred; ``accuracy`` float [C] ---


@dataclass(frozen=True)
class Bin:
    """A range of concept frequency: its bounds, concepts and mean score."""

    low: float  # occurrences: low <= count < high
    high: float
    concepts: int
    frequency: float  # geometric mean of the counts in it
    accuracy: float  # mean over the concepts in it


def log_bins(counts: np.ndarray, accuracy: np.ndarray, per_decade: int = 2) -> list[Bin]:
    """Concepts in bins of equal width in log10; empty bins and concepts that never occurred are left out."""
    counts, accuracy = _checked(counts, accuracy)
    logs = np.log10(np.where(counts > 0, counts, 1))
    which = np.floor(logs * per_decade + 1e-9).astype(int)
    bins = []
    for b in np.unique(which[counts > 0]):
        mine = (which == b) & (counts > 0)
        ends = 10 ** (b / per_decade), 10 ** ((b + 1) / per_decade)
        bins.append(Bin(*ends, int(mine.sum()), float(10 ** logs[mine].mean()), float(accuracy[mine].mean())))
    return bins


def correlation(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """Pearson's r of log10(count) and accuracy over the concepts that occurred; NaN where either does not vary."""
    counts, accuracy = _checked(counts, accuracy)
    return _pearson(np.log10(counts[counts > 0]), accuracy[counts > 0])


def rank_correlation(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """Spearman's ρ over all concepts, also those that never occurred; ties get their mean rank."""
    counts, accuracy = _checked(counts, accuracy)
    return _pearson(_ranks(counts), _ranks(accuracy))


def binned_correlation(counts: np.ndarray, accuracy: np.ndarray, per_decade: int = 2) -> float:
    """Pearson's r over the bins, as in the paper's figures. Binning hides the scatter: report it with the raw one."""
    bins = log_bins(counts, accuracy, per_decade)
    return _pearson(np.log10([b.frequency for b in bins]), np.array([b.accuracy for b in bins]))


def slope(counts: np.ndarray, accuracy: np.ndarray) -> float:
    """What ten times the data adds to the accuracy, by least squares (the log-linear law); NaN where the counts do not vary."""
    counts, accuracy = _checked(counts, accuracy)
    x, y = np.log10(counts[counts > 0]), accuracy[counts > 0]
    if len(x) < 2 or np.ptp(x) == 0:
        return float("nan")
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def _checked(counts: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts, accuracy = np.asarray(counts, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if counts.shape != accuracy.shape:
        raise ValueError(f"{len(counts)} counts but {len(accuracy)} accuracies")
    if (counts < 0).any():
        raise ValueError("a count below 0")
    return counts, accuracy


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which.ravel()]


def frequency_results(
    task: str, names: Sequence[str], counts: np.ndarray, accuracy: np.ndarray, controls: dict[str, np.ndarray], per_decade: int = 2
) -> list[Result]:
    """correlation, binned_correlation, rank_correlation and slope of concepts; no value if too little varies.

    ``controls``: {name: accuracy [C]}.
    """
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "correlation": correlation,
        "binned_correlation": partial(binned_correlation, per_decade=per_decade),
        "rank_correlation": rank_correlation,
        "slope": slope,
    }
    results = []
    for name, metric in metrics.items():

        def resampled(index: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float] = metric) -> float:
            """The metric over a resample of classes."""
            return metric(counts[index], accuracy[index])

        values = {control: metric(counts, of) for control, of in controls.items()}
        fields: dict[str, Any] = {"n": len(names), "clusters": len(names), "chance": 0.0, "higher_is_better": False}
        fields["controls"] = {control: v if math.isfinite(v) else None for control, v in values.items()}
        if len(names) < 3 or not math.isfinite(metric(counts, accuracy)):
            results.append(Result(task, name, None, None, None, **fields))
            continue
        at = function_interval(resampled, names, resamples=RESAMPLES)
        low, high = (at.low, at.high) if name == "slope" else np.clip([at.low, at.high], -1, 1).tolist()
        results.append(Result(task, name, at.value, low, high, **fields))
    return results


def read_counts(path: str | Path, concepts: Collection[str]) -> dict[str, float]:
    """{concept: occurrences in the training data} of a JSON file. Raises DiptychError if one of ``concepts`` is missing."""
    counts = read_json(path)
    if not isinstance(counts, dict) or not counts:
        raise DiptychError(f'{path}: expected an object {{"concept": occurrences, …}}')
    for concept, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int | float) or not (0 <= count < math.inf):
            raise DiptychError(f"{path}: expected a number of occurrences of '{concept}', got {count!r:.60}")
    missing = sorted(set(concepts) - set(counts))
    if missing:
        raise DiptychError(
            f"{path}: no count of the concept '{missing[0]}'{nearest(missing[0], counts)}; write 0 if it never occurs"
        )
    return counts


# --- the task ---


@dataclass(frozen=True)
class Frequency(ZeroShot):
    """How the score of a concept depends on how often training showed it."""

    name: str = "frequency"
    n: int = 400
    counts: str = ""
    train: str = ""
    counted: int = 2000  # the number of samples of ``train``

    def items(self, source: Source) -> Items:
        """(image, label, names of all classes, occurrences of its class) of each."""
        if not (self.counts or self.train):
            raise NotApplicable("it needs how often training showed each concept: ?counts=counts.json or ?train=ADDRESS")
        items = super().items(source)
        counts = self._counts({names[label] for _, label, names in items})
        return Items([(image, label, names, counts.get(names[label], 0)) for image, label, names in items], items.problems)

    def _counts(self, concepts: Collection[str]) -> dict[str, Any]:
        if self.counts:
            return read_counts(self.counts, concepts)
        from diptych.data.sources import open_source

        return dict(frequencies([names for _, names in labelled(open_source(self.train), self.counted)])[0])

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """The records of zero-shot classification, each with how often training showed its class. The cluster is the class, since
        the count is a property of the class.
        """
        own = Records()
        if any(f"concept-{i:05d}" not in records for i in range(len(items))):
            super().run(model, [item[:3] for item in items], own, progress)
            occurrences = {f"concept-{i:05d}": item[3] for i, item in enumerate(items)}
            records.add({**r, "frequency": occurrences[r["item"]], "cluster": r["class"]} for r in own.all())

    def summarise(self, records: list[Record]) -> list[Result]:
        """How top-1 accuracy depends on the counts, over classes, with the same for the controls."""
        by_class: dict[str, list[Record]] = {}
        for r in by_item(records):
            by_class.setdefault(r["class"], []).append(r)
        names = sorted(by_class)
        counts = np.array([by_class[name][0]["frequency"] for name in names], dtype=np.float64)
        accuracy = {
            condition: np.array([mean([r[condition]["top1"] for r in by_class[name]]) for name in names])
            for condition in ("correct", "blind", "shuffled")
            if all(condition in r for r in records)
        }
        return frequency_results(self.name, names, counts, accuracy.pop("correct"), accuracy)


# --- credits in a file: diptych metrics frequency ---

NAMES = {
    "correlation": "raw correlation (r)",
    "rank_correlation": "rank correlation (rho)",
    "binned_correlation": "binned correlation (r)",
    "slope": "slope per decade",
}


def score_files(counts: Path, results: Path, per_decade: int = 2) -> tuple[list[Result], list[Bin]]:
    """The results and the bins. ``counts``: a JSON object {concept: occurrences in the training data}; ``results``: rows with
    concept and correct."""
    table = read_rows(results)
    concepts = table.column("concept", "id")
    known = read_counts(counts, concepts)
    credits: dict[str, list[float]] = {name: [] for name in sorted(set(concepts))}
    for concept, credit in zip(concepts, table.column("correct", "truth", aliases=("credit", "accuracy")), strict=True):
        credits[concept].append(credit)
    occurrences, accuracy = np.array([float(known[n]) for n in credits]), np.array([mean(v) for v in credits.values()])
    of_metric = {r.metric: r for r in frequency_results("frequency", list(credits), occurrences, accuracy, {}, per_decade)}
    return [replace(of_metric[metric], metric=name) for metric, name in NAMES.items()], log_bins(occurrences, accuracy, per_decade)
