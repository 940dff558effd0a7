"""Probes of responsibility from files: memorisation, concept frequency, bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.inputs import Table, read_json, read_rows
from diptych.benchmarks.metrics import bias, frequency, memorization
from diptych.benchmarks.predictions.common import of_credits
from diptych.benchmarks.records import Result
from diptych.benchmarks.statistics import Interval, function_interval, mean, sign_flip_p
from diptych.core.errors import DiptychError


def judge_memorization(target: Path, reference: Path, objects: Path, k: int = 10) -> list[Result]:
    """Déjà vu. ``target``, ``reference``: .npz with ``text`` [N, E] (captions of training samples of the target model) and
    ``public`` [M, E] (images of a public set), embedded by each model; ``objects``: JSON with ``samples`` and ``public``, lists of labels.
    """
    document = read_json(objects)
    if not isinstance(document, dict) or not {"samples", "public"} <= set(document):
        raise DiptychError(f"{objects}: expected an object with 'samples' and 'public', each a list of lists of labels")
    labels = {}
    for name in ("samples", "public"):
        rows = document[name]
        if not isinstance(rows, list) or not all(isinstance(r, list) and all(isinstance(o, str) for o in r) for r in rows):
            raise DiptychError(f"{objects}: '{name}' must be a list of lists of labels")
        labels[name] = rows
    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, path in (("target", target), ("reference", reference)):
        text, public = _embeddings(path)
        for what, array in (("samples", text), ("public", public)):
            if len(array) != len(labels[what]):
                key = "text" if what == "samples" else "public"
                raise DiptychError(f"{path}: '{key}' has {len(array)} rows, but {objects} has {len(labels[what])} under '{what}'")
        try:
            found = memorization.predicted_objects(memorization.nearest(text, public, k), labels["public"])
            values[name] = memorization.precision_recall(found, labels["samples"])
        except ValueError as error:
            raise DiptychError(f"{objects}: {error}") from None
    samples = range(len(labels["samples"]))
    results = []
    for i, what in enumerate(("precision", "recall")):
        seen, unseen = values["target"][i], values["reference"][i]
        gap = memorization.population_gap(seen, unseen)
        results.append(
            of_credits(
                "memorization", f"population {what} gap", gap, samples, bounded=False, chance=0.0, ties=int((gap == 0).sum())
            )
        )
        results.append(of_credits("memorization", f"{what}, target", seen, samples, controls={"reference": mean(unseen)}))
    recall = values["target"][1] - values["reference"][1]
    area = of_credits("memorization", "area between recall curves", recall, samples, bounded=False, chance=0.0)
    p = sign_flip_p(memorization.population_gap(values["target"][1], values["reference"][1]))
    return [*results, replace(area, controls={"p of no recall gap": p})]


def _embeddings(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [file[name] if name in file.files else None for name in ("text", "public")]
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise DiptychError(f"{path}: not an .npz of numbers ({error})") from None
    for name, array in zip(("text", "public"), found, strict=True):
        if array is None or array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
            raise DiptychError(
                f"{path}: expected '{name}', numbers in 2 dimensions, got {'nothing' if array is None else array.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            raise DiptychError(f"{path}: '{name}', row {bad[0]} is not finite")
    text, public = found
    assert text is not None and public is not None
    if text.shape[1] != public.shape[1]:
        raise DiptychError(f"{path}: 'text' has width {text.shape[1]} but 'public' {public.shape[1]}")
    return text, public


def judge_frequency(counts: Path, results: Path, per_decade: int = 2) -> tuple[list[Result], list[frequency.Bin]]:
    """``counts``: a JSON object {concept: occurrences in the training data}; ``results``: rows with concept and correct."""
    known = read_json(counts)
    if not isinstance(known, dict) or not known:
        raise DiptychError(f"{counts}: expected an object of concepts and how often each occurs")
    for concept, count in known.items():
        if isinstance(count, bool) or not isinstance(count, int | float) or not (0 <= count < math.inf):
            raise DiptychError(f"{counts}: '{concept}': expected a number of occurrences, got {count!r:.60}")
    table = read_rows(results)
    concepts = table.column("concept", "id")
    correct = table.column("correct", "truth", aliases=("credit", "accuracy"))
    for i, concept in enumerate(concepts):
        if concept not in known:
            raise DiptychError(f"{table.where(i)}: the concept '{concept}' is not in {counts}")
    names = sorted(set(concepts))
    of: dict[str, list[float]] = {name: [] for name in names}
    for concept, credit in zip(concepts, correct, strict=True):
        of[concept].append(credit)
    occurrences, accuracy = np.array([float(known[n]) for n in names]), np.array([mean(of[n]) for n in names])

    def judge(name: str, function: Callable[..., float]) -> Result:
        def resampled(index: np.ndarray) -> float:
            return function(occurrences[index], accuracy[index])

        at = function_interval(resampled, names) if np.isfinite(resampled(np.arange(len(names)))) else Interval(*[math.nan] * 3)
        low, high = (at.low, at.high) if name.startswith("slope") else np.clip([at.low, at.high], -1, 1).tolist()
        return Result("frequency", name, at.value, low, high, len(names), len(names), chance=0.0)

    binned = judge("binned correlation (r)", lambda c, a: frequency.binned_correlation(c, a, per_decade))
    found = [
        judge("raw correlation (r)", frequency.correlation),
        judge("rank correlation (rho)", frequency.rank_correlation),
        binned,
        judge("slope per decade", frequency.slope),
    ]
    return found, frequency.log_bins(occurrences, accuracy, per_decade)


def judge_bias(scores: Path, k: int = 10) -> list[Result]:
    """Whichever the rows allow: with ``set`` contrast sets, with ``attribute`` association, else skew of what is retrieved."""
    table = read_rows(scores)
    if table.has("set"):
        return _contrast(table)
    if table.has("attribute"):
        return _association(table)
    return _skew(table, k)


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
    values: dict[str, list[float]] = {name: [] for name in names}
    largest, absent = [], dict.fromkeys(names, 0)
    for query, index in by_query.items():
        mine = [groups[i] for i in index]
        if set(mine) != set(names) or len(index) < k:
            lacking = sorted(set(names) - set(mine))
            what = f"no item of the group '{lacking[0]}'" if lacking else f"{len(index)} items, fewer than --k {k}"
            raise DiptychError(f"{table.where(index[0])}: query '{query}' has {what}")
        found = bias.skew(np.array([scores[i] for i in index]), mine, k)
        for name in names:
            absent[name] += found[name] == -math.inf
            values[name].append(found[name])
        largest.append(max(found.values()))
    queried = list(by_query)
    beside: dict[str, Any] = {"chance": 0.0, "nans": int(np.isnan(scores).sum())}
    results = [of_credits("bias", f"max skew@{k}", largest, queried, bounded=False, higher_is_better=False, **beside)]
    for name in names:
        kept = [(q, v) for q, v in zip(queried, values[name], strict=True) if v > -math.inf]
        note = f", {absent[name]} of {len(queried)} queries without any" if absent[name] else ""
        if kept:
            results.append(
                of_credits("bias", f"skew@{k} of {name}{note}", [v for _, v in kept], [q for q, _ in kept], bounded=False, **beside)
            )
        else:
            results.append(Result("bias", f"skew@{k} of {name}{note}", None, None, None, 0, 0, **beside))
    return results


def _association(table: Table) -> list[Result]:
    """Rows: image, group, attribute, text, score; two attributes. s = mean score with the first less that with the second."""
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
    for image, found in by_image.items():
        if len(found) < 2:
            raise DiptychError(
                f"{table.path}: image '{image}' has no score with the attribute '{next(a for a in kinds if a not in found)}'"
            )
    names = list(by_image)
    s = np.array([mean(by_image[i][kinds[0]]) - mean(by_image[i][kinds[1]]) for i in names])
    member = np.array([group_of[i] for i in names])
    results = []
    for group in sorted(set(member.tolist())):
        mine = np.flatnonzero(member == group)
        label = f"{group}: {kinds[0]} − {kinds[1]}"
        results.append(of_credits("bias", label, s[mine], [names[i] for i in mine], bounded=False, chance=0.0))
    pairs = [(a, b) for i, a in enumerate(sorted(set(member.tolist()))) for b in sorted(set(member.tolist()))[i + 1 :]]
    for a, b in pairs:

        def effect(index: np.ndarray, a: str = a, b: str = b) -> float:
            return bias.effect_size(s[index][member[index] == a], s[index][member[index] == b])

        at = function_interval(effect, names)
        results.append(Result("bias", f"effect size, {a} − {b}", at.value, at.low, at.high, len(names), len(names), chance=0.0))
    return results


def _contrast(table: Table) -> list[Result]:
    """Rows: set, group, score, maybe query. Mean difference between groups over sets that differ in the group alone."""
    sets, groups = table.column("set", "id"), table.column("group", "id")
    scores = table.column("score", "number")
    queries = table.column("query", "id", default=None)
    found: list[Result] = []
    for query in dict.fromkeys(queries):
        index = [i for i, q in enumerate(queries) if q == query]
        try:
            differences = bias.contrast([scores[i] for i in index], [groups[i] for i in index], [sets[i] for i in index])
        except ValueError as error:
            raise DiptychError(f"{table.path}: {error}{f' for the query {query}' if query else ''}") from None
        for (a, b), by_set in differences.items():
            values, names = list(by_set.values()), [str(s) for s in by_set]
            p: dict[str, Any] = {"p of no difference": sign_flip_p(np.array(values))}
            label = f"{query}: {a} − {b}" if query else f"{a} − {b}"
            found.append(of_credits("bias", label, values, names, bounded=False, chance=0.0, controls=p))
    if not found:
        raise DiptychError(f"{table.path}: contrast sets need at least two groups")
    return found
