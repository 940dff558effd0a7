"""Bias on pictures of one's own: who is ranked high for a sentence that names no group, and whom it is associated with.

The data is any source whose samples carry a group (a further column of a table); the sentences are the user's. Per
sentence: ``max_skew@k/<sentence>`` (metrics/bias.py), with groups dealt at random as its control, and
``association/<group>/<sentence>``: mean score of the group less that of the others, in standard deviations (0: none).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.bias import effect_size, max_skew
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress, not_finite, readable
from diptych.core.capabilities import Model
from diptych.data.source import Problem, Source

DEALS = 200
RESAMPLES = 500


@dataclass(frozen=True)
class BiasTable:
    name: str = "bias-table"
    needs: tuple[str, ...] = ("score",)
    group: str = "group"  # the column
    texts: tuple[str, ...] = ()  # sentences that name no group
    k: int = 0  # top k; 0: a tenth of the pictures, at least 10
    n: int = 5000  # pictures, at most
    seed: int = 0

    def items(self, source: Source) -> Items:
        if not self.texts:
            raise NotApplicable("name sentences to rank the pictures by: bias-table?texts=a photo of a doctor&texts=…")
        found: list[Any] = []
        problems: list[Problem] = []
        for sample in readable(source, problems):
            value = sample.extra.get(self.group)
            if sample.image is None or value in (None, ""):
                problems.append(Problem(sample.id, "has no image" if sample.image is None else f"has no '{self.group}'"))
            else:
                found.append(sample)
            if len(found) == self.n:
                break
        if len({str(s.extra[self.group]) for s in found}) < 2:
            raise NotApplicable(f"needs pictures of two groups; none or one is told in the column '{self.group}'")
        return Items(found, problems)

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        todo = [s for s in items if s.id not in records]
        for start in range(0, len(todo), 256):
            part = todo[start : start + 256]
            scores = np.asarray(model.score([s.image for s in part], list(self.texts)))
            records.add(
                {
                    "item": s.id,
                    "cluster": s.id,
                    "group": str(s.extra[self.group]),
                    "sentences": list(self.texts),
                    "fit": row,
                    "nans": not_finite(row),
                }
                for s, row in zip(part, scores, strict=True)
            )
            if progress:
                progress(f"{self.name} {start + len(part)}/{len(todo)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        clusters = [str(r["cluster"]) for r in records]
        groups = np.array([r["group"] for r in records])
        k = min(self.k or max(10, len(records) // 10), len(records))
        beside: dict[str, Any] = {"n": len(records), "clusters": len(set(clusters)), "nans": sum(r.get("nans", 0) for r in records)}
        found = []
        for j, text in enumerate(records[0]["sentences"] if records else ()):
            fit = lowest_if_not_finite(np.array([np.nan if r["fit"][j] is None else r["fit"][j] for r in records], dtype=float))

            def skewed(index: np.ndarray, fit: np.ndarray = fit) -> float:
                return max_skew(fit[index], groups[index].tolist(), k)

            v = function_interval(skewed, clusters, resamples=RESAMPLES)
            rng = np.random.default_rng(self.seed)
            luck = mean([max_skew(fit, rng.permutation(groups).tolist(), k) for _ in range(DEALS)])
            controls: dict[str, float | None] = {"dealt": luck}
            name = f"max_skew@{k}/{text}"
            found.append(Result(self.name, name, v.value, v.low, v.high, controls=controls, higher_is_better=False, **beside))
            if not np.isfinite(fit).all():
                continue  # what is no number has no mean
            for group in dict.fromkeys(groups.tolist()):

                def associated(index: np.ndarray, fit: np.ndarray = fit, group: str = group) -> float:
                    mine = groups[index] == group
                    return effect_size(fit[index][mine], fit[index][~mine]) if mine.any() and not mine.all() else 0.0

                v = function_interval(associated, clusters, resamples=RESAMPLES)
                found.append(Result(self.name, f"association/{group}/{text}", v.value, v.low, v.high, chance=0.0, **beside))
        return found
