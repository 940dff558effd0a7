"""Do models know what they saw often? Accuracy on a concept against how often training showed it (Udandarao et al.,
arXiv:2404.04125).

Zero-shot naming, with ``counts`` (a JSON file {concept: times}) or counted over the labels of ``train``, the address of
the training data. ``correlation``: Pearson's r with log10 of the count over concepts, ``binned_correlation`` that over bins of half a
decade, ``rank_correlation`` with the concepts never seen; ``slope``: what ten times the data adds. Intervals: over concepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.metrics import frequency as law
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress
from diptych.benchmarks.tasks.labels import frequencies, labelled
from diptych.benchmarks.tasks.published import content
from diptych.benchmarks.tasks.zeroshot import ZeroShot
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.source import Source

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "correlation": law.correlation,
    "binned_correlation": law.binned_correlation,
    "rank_correlation": law.rank_correlation,
    "slope": law.slope,
}


@dataclass(frozen=True)
class Frequency(ZeroShot):
    name: str = "frequency"
    n: int = 400
    counts: str = ""
    train: str = ""
    counted: int = 2000  # so many samples of ``train``

    def items(self, source: Source) -> Items:
        """Those of zero-shot naming, with the count of each class behind."""
        if not (self.counts or self.train):
            raise NotApplicable("it needs what training showed how often: ?counts=counts.json or ?train=ADDRESS")
        found = super().items(source)
        known = self._known()
        return Items([(image, label, names, known.get(names[label], 0)) for image, label, names in found], found.problems)

    def _known(self) -> dict[str, int]:
        if self.counts:
            table = content(self.counts)
            if not isinstance(table, dict) or not all(isinstance(v, int) and v >= 0 for v in table.values()):
                raise DiptychError(f'{self.counts}: expected {{"concept": times, …}} with whole numbers')
            return table
        from diptych.data.sources import open_source

        return dict(frequencies([names for _, names in labelled(open_source(self.train), self.counted)])[0])

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        kept = Records()
        if any(f"concept-{i:05d}" not in records for i in range(len(items))):
            super().run(model, [item[:3] for item in items], kept, progress)
            times = {f"concept-{i:05d}": item[3] for i, item in enumerate(items)}
            records.add({**r, "frequency": times[r["item"]], "cluster": r["class"]} for r in kept.all())

    def summarise(self, records: list[Record]) -> list[Result]:
        by_class: dict[str, list[Record]] = {}
        for r in sorted(records, key=lambda r: str(r["item"])):
            by_class.setdefault(r["class"], []).append(r)
        names = sorted(by_class)
        counts = np.array([by_class[name][0]["frequency"] for name in names], dtype=np.float64)
        accuracy = {
            look: np.array([mean([r[look]["top1"] for r in by_class[name]]) for name in names])
            for look in ("correct", "blind", "shuffled")
            if all(look in r for r in records)
        }
        found = []
        for metric, compute in METRICS.items():

            def resampled(index: np.ndarray, compute: Callable[[np.ndarray, np.ndarray], float] = compute) -> float:
                return compute(counts[index], accuracy["correct"][index])

            at = function_interval(resampled, names, resamples=500) if len(names) > 2 else None
            value = compute(counts, accuracy["correct"])
            known = math.isfinite(value) and at is not None
            low, high = (at.low, at.high) if known and at is not None else (None, None)
            controls = {look: _known_or_none(compute(counts, of)) for look, of in accuracy.items() if look != "correct"}
            found.append(
                Result(self.name, metric, value if known else None, low, high, len(names), len(names), 0.0, False, controls)
            )
        return found


def _known_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
