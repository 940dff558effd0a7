"""Bias on contrast sets: does an attribute that should not matter change the name that a model gives, or which image it prefers?

``bias``: the same scene in every colour (or size, position, background). The question is what the object is, which does not depend
on the attribute. ``naming``: share named correctly, over all groups; ``group_difference``: the best group's share minus the worst
group's; ``consistency``: share of sets in which all images get the same name; ``preference/<group>``: share of sets in which this
group's image fits the right name best, 1 / groups if none is preferred; ``max_skew``: see metrics/bias.py, top k of all images of a
concept, k being the number of its sets; its control is the same with groups assigned at random in each set. ``diptych metrics
bias``: the mean difference of scores in a file between the groups of each set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item, count_not_finite
from diptych.benchmarks.controls import blank
from diptych.benchmarks.matching.zeroshot import prompt, topk_credits
from diptych.benchmarks.metrics.bias import contrast, max_skew
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import distinct, of_credits, shares
from diptych.benchmarks.statistics import function_interval, mean, sign_flip_p
from diptych.benchmarks.tables import Table
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.source import Source

ASSIGNMENTS = 100  # random assignments of the groups, for the skew that chance alone gives
RESAMPLES = 400


@dataclass(frozen=True)
class Bias:
    """Whether an object's colour (size, position, background) changes its name for a model, or which image it prefers."""

    name: str = "bias"
    needs: tuple[str, ...] = ("score",)
    attribute: str = "colour"  # or size, position, background
    n: int = 48  # sets
    template: str = "a {}"
    seed: int = 0

    def items(self, source: Source) -> Items:
        """(contrast set, names of all concepts) of each."""
        from diptych.data.scenes.contrast import contrast_sets

        world = getattr(source, "world", None)
        if world is None or not hasattr(source, "concepts"):
            raise NotApplicable("contrast sets are built from scenes only; for your own pictures: bias-table")
        return Items((s, source.concepts()) for s in contrast_sets(world, self.attribute, self.n, self.seed))

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """One record per image of each set, with its score for every name. All are computed again if one is missing."""
        if all(f"{s.id}/{g}" in records for s, _ in items for g in s.groups):
            return
        names = items[0][1]
        images = [image for s, _ in items for image in s.images]
        scores = np.asarray(model.score([*images, blank(images[0])], [prompt(self.template, name) for name in names]))
        start = 0
        for s, _ in items:
            rows = scores[start : start + len(s.groups)]
            start += len(s.groups)
            records.add(self._record(s, g, rows[i], scores[-1], names) for i, g in enumerate(s.groups))

    def _record(self, s: Any, group: str, row: np.ndarray, grey: np.ndarray, names: Sequence[str]) -> Record:
        right = np.array([names.index(s.concept)])

        def credit(scores: np.ndarray) -> dict[str, float]:
            """1 if the right name has the highest of the scores [names]; a tie is shared."""
            return {"naming": float(topk_credits(scores[None], right)["top1"][0])}

        return {
            "item": f"{s.id}/{group}",
            "cluster": s.id,
            "attribute": s.attribute,
            "group": group,
            "class": s.concept,
            "predicted": names[int(np.argmax(row))] if np.isfinite(row).all() else None,
            "fit": float(row[right[0]]),
            "correct": credit(row),
            "blind": credit(grey),
            "chance": {"naming": 1 / len(names)},
            "nans": count_not_finite(row),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """The results that the module describes. Intervals resample whole sets."""
        records = by_item(records)
        clusters = [str(r["cluster"]) for r in records]
        groups = list(dict.fromkeys(r["group"] for r in records))
        fields: dict[str, Any] = {"n": len(records), "clusters": distinct(clusters), "higher_is_better": False}
        by_function = partial(function_interval, clusters=clusters, resamples=RESAMPLES)
        credit, member = np.array([r["correct"]["naming"] for r in records]), np.array([groups.index(r["group"]) for r in records])

        def difference(index: np.ndarray) -> float:
            """The best group's accuracy minus the worst group's, of the records at ``index``."""
            means = [credit[index][member[index] == g].mean() for g in range(len(groups)) if (member[index] == g).any()]
            return float(max(means) - min(means))

        gap = by_function(difference, share=True)
        skewed = by_function(lambda index: mean_skew([records[i] for i in index]))
        at_random = mean([mean_skew(reassigned(records, np.random.default_rng(i))) for i in range(ASSIGNMENTS)])
        return [
            *shares(self.name, records),
            Result(self.name, "group_difference", gap.value, gap.low, gap.high, **fields),
            *self._of_sets(records, groups),
            Result(self.name, "max_skew", skewed.value, skewed.low, skewed.high, controls={"dealt": at_random}, **fields),
        ]

    def _of_sets(self, records: Sequence[Record], groups: Sequence[str]) -> list[Result]:
        sets = sets_of(records)
        best = [_best_groups(rows) for rows in sets.values()]
        values = {"consistency": [float(len({r["predicted"] for r in rows}) == 1) for rows in sets.values()]}
        values |= {f"preference/{g}": [b.get(g, 0.0) for b in best] for g in groups}
        chance = 1 / len(groups)
        return [
            of_credits(self.name, metric, of_sets, list(sets), chance=chance if metric != "consistency" else None)
            for metric, of_sets in values.items()
        ]


def sets_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """{contrast set: its records}"""
    sets: dict[str, list[Record]] = {}
    for r in records:
        sets.setdefault(str(r["cluster"]), []).append(r)
    return sets


def _fit(record: Record) -> float:
    return -np.inf if record["fit"] is None else float(record["fit"])


def _best_groups(rows: Sequence[Record]) -> dict[str, float]:
    """1 for the group that fits best, shared in a tie."""
    best = max(map(_fit, rows))
    top = [r["group"] for r in rows if _fit(r) == best]
    return {g: 1 / len(top) for g in top}


def mean_skew(records: Sequence[Record]) -> float:
    """Max-skew among the images of each concept, mean over concepts. Records may repeat (bootstrap)."""
    by_concept: dict[str, list[Record]] = {}
    for r in records:
        by_concept.setdefault(r["class"], []).append(r)
    skews = []
    for rows in by_concept.values():
        groups = [r["group"] for r in rows]
        k = max(1, len(rows) // len(set(groups)))
        skews.append(max_skew(np.array([_fit(r) for r in rows]), groups, k))
    return mean(skews)


def reassigned(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """The records with the groups of each set in random order: what remains of a skew is chance."""
    result = []
    for rows in sets_of(records).values():
        order = rng.permutation(len(rows))
        result += [{**r, "group": rows[i]["group"]} for r, i in zip(rows, order, strict=True)]
    return result


# --- scores in a file: diptych metrics bias ---


def contrast_results(table: Table) -> list[Result]:
    """Rows: set, group, score, perhaps query. Mean difference between groups over sets that differ only in the group."""
    sets, groups = table.column("set", "id"), table.column("group", "id")
    scores = table.column("score", "number")
    queries = table.column("query", "id", default=None)
    results: list[Result] = []
    by_query: dict[str | None, list[int]] = {}
    for i, query in enumerate(queries):
        by_query.setdefault(query, []).append(i)
    for query, index in by_query.items():
        try:
            differences = contrast([scores[i] for i in index], [groups[i] for i in index], [sets[i] for i in index])
        except ValueError as error:
            raise DiptychError(f"{table.path}: {error}{f' for the query {query}' if query else ''}") from None
        for (a, b), by_set in differences.items():
            values, names = list(by_set.values()), [str(s) for s in by_set]
            p: dict[str, Any] = {"p of no difference": sign_flip_p(np.array(values))}
            label = f"{query}: {a} − {b}" if query else f"{a} − {b}"
            results.append(of_credits("bias", label, values, names, bounded=False, chance=0.0, controls=p))
    if not results:
        raise DiptychError(f"{table.path}: contrast sets need at least two groups")
    return results
