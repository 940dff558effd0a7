"""Bias on your own images: which groups are ranked high for a sentence that names no group, and with what each group is associated.

``bias-table``: the data is any source of samples with a group (a further column of a table); the user gives the sentences. Per
sentence: ``max_skew@k/<sentence>`` (metrics/bias.py), with groups assigned at random as its control, and
``association/<group>/<sentence>``: mean score of the group minus that of the others, in standard deviations (0: none). ``diptych
metrics bias``: skew of what queries retrieve, and association with two attributes (Steed & Caliskan, arXiv:2010.15052), from
scores in a file; contrast sets in bias.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item, count_not_finite, readable
from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.metrics.bias import effect_size, max_skew, skew
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.probes.bias import contrast_results
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import distinct, of_credits
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tables import Table
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted
from diptych.data.source import Problem, Source

ASSIGNMENTS = 200
RESAMPLES = 500


@dataclass(frozen=True)
class BiasTable:
    """``Bias``, from a table of images and groups."""

    name: str = "bias-table"
    needs: tuple[str, ...] = ("score",)
    group: str = "group"  # the column
    texts: tuple[str, ...] = ()  # sentences that name no group
    k: int = 0  # top k; 0: a tenth of the images, at least 10
    n: int = 5000  # images, at most
    seed: int = 0

    def items(self, source: Source) -> Items:
        """The first n samples with an image and a value in the column ``group``. Raises NotApplicable without sentences, or if the
        samples are all of one group.
        """
        if not self.texts:
            raise NotApplicable("name sentences to rank the pictures by: bias-table?texts=a photo of a doctor&texts=…")
        samples: list[Any] = []
        problems: list[Problem] = []
        for sample in readable(source, problems):
            value = sample.extra.get(self.group)
            if sample.image is None or value in (None, ""):
                problems.append(Problem(sample.id, "has no image" if sample.image is None else f"has no '{self.group}'"))
            else:
                samples.append(sample)
            if len(samples) == self.n:
                break
        if len({str(s.extra[self.group]) for s in samples}) < 2:
            raise NotApplicable(f"needs pictures of two groups; the column '{self.group}' has fewer")
        return Items(samples, problems)

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """One record per image with its group and its score for every sentence, in the order of ``texts``."""
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
                    "nans": count_not_finite(row),
                }
                for s, row in zip(part, scores, strict=True)
            )
            if progress:
                progress(f"{self.name} {start + len(part)}/{len(todo)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        """Per sentence the maximal skew of the k best images (control: groups assigned at random) and, if all scores are finite,
        the effect size of each group against the others.
        """
        records = by_item(records)
        clusters = [str(r["cluster"]) for r in records]
        groups = np.array([r["group"] for r in records])
        k = min(self.k or max(10, len(records) // 10), len(records))
        fields: dict[str, Any] = {"n": len(records), "clusters": distinct(clusters), "nans": sum(r.get("nans", 0) for r in records)}
        results = []
        for j, text in enumerate(records[0]["sentences"] if records else ()):
            fit = lowest_if_not_finite(np.array([np.nan if r["fit"][j] is None else r["fit"][j] for r in records], dtype=float))

            def skewed(index: np.ndarray, fit: np.ndarray = fit) -> float:
                """The maximal skew of the k best images of a resample."""
                return max_skew(fit[index], groups[index].tolist(), k)

            v = function_interval(skewed, clusters, resamples=RESAMPLES)
            rng = np.random.default_rng(self.seed)
            at_random = mean([max_skew(fit, rng.permutation(groups).tolist(), k) for _ in range(ASSIGNMENTS)])
            more: dict[str, Any] = {"controls": {"dealt": at_random}, "higher_is_better": False}
            results.append(Result(self.name, f"max_skew@{k}/{text}", v.value, v.low, v.high, **more, **fields))
            if not np.isfinite(fit).all():
                continue  # a missing score has no mean
            for group in dict.fromkeys(groups.tolist()):

                def associated(index: np.ndarray, fit: np.ndarray = fit, group: str = group) -> float:
                    """The effect size of one group against the others in a resample; 0 if the resample has one side only."""
                    mine = groups[index] == group
                    return effect_size(fit[index][mine], fit[index][~mine]) if mine.any() and not mine.all() else 0.0

                v = function_interval(associated, clusters, resamples=RESAMPLES)
                results.append(Result(self.name, f"association/{group}/{text}", v.value, v.low, v.high, chance=0.0, **fields))
        return results


# --- scores in a file: diptych metrics bias ---


def score_file(scores: Path, k: int = 10) -> list[Result]:
    """The probe that the fields of the rows allow: with ``set`` contrast sets, with ``attribute`` association, else skew."""
    table = read_rows(scores)
    if table.has("set"):
        return contrast_results(table)
    return _association(table) if table.has("attribute") else _skew(table, k)


def _skew(table: Table, k: int) -> list[Result]:
    """Rows: query, item, group, score. The mean over queries of each group's Skew@k and of MaxSkew@k."""
    queries, items = table.column("query", "id"), table.column("item", "id", aliases=("id", "image"))
    groups, scores = table.column("group", "id"), table.column("score", "score")
    seen: set[tuple[str, str]] = set()
    by_query: dict[str, list[int]] = {}
    for i, pair in enumerate(zip(queries, items, strict=True)):
        if pair in seen:
            raise DiptychError(f"{table.where(i)}: item '{pair[1]}' of query '{pair[0]}' again")
        seen.add(pair)
        by_query.setdefault(pair[0], []).append(i)
    names = sorted(set(groups))
    values: dict[str, dict[str, float]] = {name: {} for name in names}  # {group: {query: skew}}
    largest = []
    for query, index in by_query.items():
        mine = [groups[i] for i in index]
        if set(mine) != set(names) or len(index) < k:
            missing = sorted(set(names) - set(mine))
            what = f"no item of the group '{missing[0]}'" if missing else f"{counted(len(index), 'item')}, fewer than --k {k}"
            raise DiptychError(f"{table.where(index[0])}: query '{query}' has {what}")
        of_group = skew(np.array([scores[i] for i in index]), mine, k)
        for name in names:
            values[name][query] = of_group[name]
        largest.append(max(of_group.values()))
    fields: dict[str, Any] = {"chance": 0.0, "nans": int(np.isnan(scores).sum())}
    results = [of_credits("bias", f"max skew@{k}", largest, list(by_query), bounded=False, higher_is_better=False, **fields)]
    for name in names:
        kept = {q: v for q, v in values[name].items() if v > -math.inf}
        absent = len(by_query) - len(kept)
        label = f"skew@{k} of {name}" + (f", {absent} of {len(by_query)} queries without any" if absent else "")
        if kept:
            results.append(of_credits("bias", label, list(kept.values()), list(kept), bounded=False, **fields))
        else:
            results.append(Result("bias", label, None, None, None, 0, 0, **fields))
    return results


def _association(table: Table) -> list[Result]:
    """Rows: image, group, attribute, text, score; two attributes. s = mean score with the first minus that with the second."""
    images, groups = table.column("image", "id"), table.column("group", "id")
    attributes, scores = table.column("attribute", "id"), table.column("score", "number")
    kinds = sorted(set(attributes))
    if len(kinds) != 2:
        raise DiptychError(f"{table.path}: association needs two attributes, got {len(kinds)}: {', '.join(kinds[:5])}")
    group_of: dict[str, str] = {}
    by_image: dict[str, dict[str, list[float]]] = {}
    for i, (image, group, attribute, score) in enumerate(zip(images, groups, attributes, scores, strict=True)):
        if group_of.setdefault(image, group) != group:
            raise DiptychError(
                f"{table.where(i)}: image '{image}' is of the group '{group}' here and of '{group_of[image]}' before"
            )
        by_image.setdefault(image, {}).setdefault(attribute, []).append(score)
    for image, known in by_image.items():
        if len(known) < 2:
            missing = next(a for a in kinds if a not in known)
            raise DiptychError(f"{table.path}: image '{image}' has no score with the attribute '{missing}'")
    names = list(by_image)
    s = np.array([mean(by_image[i][kinds[0]]) - mean(by_image[i][kinds[1]]) for i in names])
    member = np.array([group_of[i] for i in names])
    every = sorted(set(member.tolist()))
    results = []
    for group in every:
        mine = np.flatnonzero(member == group)
        label = f"{group}: {kinds[0]} − {kinds[1]}"
        results.append(of_credits("bias", label, s[mine], [names[i] for i in mine], bounded=False, chance=0.0))
    for a, b in combinations(every, 2):

        def effect(index: np.ndarray, a: str = a, b: str = b) -> float:
            """The effect size between the groups a and b in a resample."""
            return effect_size(s[index][member[index] == a], s[index][member[index] == b])

        at = function_interval(effect, names)
        results.append(Result("bias", f"effect size, {a} − {b}", at.value, at.low, at.high, len(names), len(names), chance=0.0))
    return results
