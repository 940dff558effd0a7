"""Contrast sets: does an attribute that should not matter change what the model says, or whom it prefers?

The same scene in every colour (or size, position, background). The question is what the thing is, which the attribute does
not bear on. ``naming``: share named rightly, all groups; ``group_difference``: the best group's share less the worst group's;
``consistency``: share of sets that get one and the same name throughout; ``preference/<group>``: share of sets in which
this group's picture fits the right name best, 1 / groups if none is preferred; ``max_skew``: see metrics/bias.py, top k of
all pictures of a concept, k being the number of its sets; its control is the same with groups dealt at random in each set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank
from diptych.benchmarks.metrics.bias import max_skew
from diptych.benchmarks.metrics.ranking import recall_at, standing
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean, mean_interval
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress, not_finite, shares
from diptych.benchmarks.tasks.zeroshot import prompt
from diptych.core.capabilities import Model
from diptych.data.source import Source

DEALS = 100  # random deals of the groups, for what skew luck alone gives
RESAMPLES = 400


@dataclass(frozen=True)
class Bias:
    name: str = "bias"
    needs: tuple[str, ...] = ("score",)
    attribute: str = "colour"  # or size, position, background
    n: int = 48  # sets
    template: str = "a {}"
    seed: int = 0

    def items(self, source: Source) -> Items:
        from diptych.data.scenes.contrast import contrast_sets

        world = getattr(source, "world", None)
        if world is None or not hasattr(source, "concepts"):
            raise NotApplicable("contrast sets are built from scenes only; for your own pictures: bias-table")
        return Items((s, source.concepts()) for s in contrast_sets(world, self.attribute, self.n, self.seed))

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        if all(f"{s.id}/{g}" in records for s, _ in items for g in s.groups):
            return
        names = items[0][1]
        images = [image for s, _ in items for image in s.images]
        scores = np.asarray(model.score([*images, blank(images[0])], [prompt(self.template, name) for name in names]))
        where = 0
        for s, _ in items:
            rows = scores[where : where + len(s.groups)]
            where += len(s.groups)
            right = np.array([name == s.concept for name in names])
            records.add(self._record(s, g, rows[i], scores[-1], right, names) for i, g in enumerate(s.groups))

    def _record(self, s: Any, group: str, row: np.ndarray, grey: np.ndarray, right: np.ndarray, names: Sequence[str]) -> Record:
        def credit(scores: np.ndarray) -> dict[str, float]:
            return {"naming": float(recall_at(1, *standing(scores[None], right[None]))[0])}

        finite = np.isfinite(row).all()
        return {
            "item": f"{s.id}/{group}",
            "cluster": s.id,
            "attribute": s.attribute,
            "group": group,
            "class": s.concept,
            "predicted": names[int(np.argmax(row))] if finite else None,
            "fit": float(row[right][0]),
            "correct": credit(row),
            "blind": credit(grey),
            "chance": {"naming": 1 / len(names)},
            "nans": not_finite(row),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        clusters = [str(r["cluster"]) for r in records]
        groups = list(dict.fromkeys(r["group"] for r in records))
        beside: dict[str, Any] = {"n": len(records), "clusters": len(set(clusters))}
        by_function = partial(function_interval, clusters=clusters, resamples=RESAMPLES)
        credit, member = np.array([r["correct"]["naming"] for r in records]), np.array([groups.index(r["group"]) for r in records])

        def gap(index: np.ndarray) -> float:
            shares_of = [credit[index][member[index] == g].mean() for g in range(len(groups)) if (member[index] == g).any()]
            return float(max(shares_of) - min(shares_of))

        found = shares(self.name, records)
        wide = by_function(gap, share=True)
        found.append(Result(self.name, "group_difference", wide.value, wide.low, wide.high, higher_is_better=False, **beside))
        found += self._of_sets(records, groups)
        skewed = by_function(lambda index: mean_skew([records[i] for i in index]))
        lucky = mean([mean_skew(dealt(records, np.random.default_rng(deal))) for deal in range(DEALS)])
        controls: dict[str, float | None] = {"dealt": lucky}
        found.append(
            Result(
                self.name, "max_skew", skewed.value, skewed.low, skewed.high, controls=controls, higher_is_better=False, **beside
            )
        )
        return found

    def _of_sets(self, records: Sequence[Record], groups: Sequence[str]) -> list[Result]:
        sets = sets_of(records)
        names = list(sets)
        same = [float(len({r["predicted"] for r in rows}) == 1) for rows in sets.values()]
        values: dict[str, list[float]] = {"consistency": same}
        preferred = [_shares_of_best(rows) for rows in sets.values()]
        values |= {f"preference/{g}": [p.get(g, 0.0) for p in preferred] for g in groups}
        found = []
        for metric, of_sets in values.items():
            v = mean_interval(of_sets, names)
            chance = 1 / len(groups) if metric != "consistency" else None
            found.append(Result(self.name, metric, v.value, v.low, v.high, len(names), len(names), chance))
        return found


def sets_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for r in records:
        found.setdefault(str(r["cluster"]), []).append(r)
    return found


def _fit(record: Record) -> float:
    return -np.inf if record["fit"] is None else float(record["fit"])


def _shares_of_best(rows: Sequence[Record]) -> dict[str, float]:
    """1 for the group that fits best, shared in a tie."""
    best = max(map(_fit, rows))
    top = [r["group"] for r in rows if _fit(r) == best]
    return {g: 1 / len(top) for g in top}


def mean_skew(records: Sequence[Record]) -> float:
    """Max-skew among the pictures of each concept, mean over concepts. Records may repeat (bootstrap)."""
    by_concept: dict[str, list[Record]] = {}
    for r in records:
        by_concept.setdefault(r["class"], []).append(r)
    skews = []
    for rows in by_concept.values():
        groups = [r["group"] for r in rows]
        k = max(1, len(rows) // len(set(groups)))
        skews.append(max_skew(np.array([_fit(r) for r in rows]), groups, k))
    return mean(skews)


def dealt(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """The groups of each set in random order: what is left is luck."""
    found = []
    for rows in sets_of(records).values():
        order = rng.permutation(len(rows))
        found += [{**r, "group": rows[i]["group"]} for r, i in zip(rows, order, strict=True)]
    return found
