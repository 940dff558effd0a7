"""``diptych choose`` for pictures with captions: models × ways, one table, one recommendation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.statistics import holm, mean_interval
from diptych.choose.captions import METRICS, captioned, pairs_of, tested
from diptych.choose.data import version_of
from diptych.choose.features import Progress, weights_of
from diptych.choose.maps import MAP_WAYS, Pairs, map_way_named
from diptych.choose.run import FORMAT, Load, check_folder, environment_of_run, file_name, held_record, made_of_now, open_folder
from diptych.choose.verdict import LEVEL, SEEDS, difference, numbers
from diptych.core.errors import DiptychError, Interrupted
from diptych.core.files import write_json

AS_IS = "as-is"


def choose_for_captions(
    models: Sequence[str], ways: Sequence[str], data_address: str, out: Path, load: Load, *, seeds: int = 1,
    seconds: float | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compares models and ways; writes results.json and a file for each cell, and returns what is in results.json. seeds: draws of
    the folds.

    Raises Interrupted after Ctrl-C: what is done is kept, and the same call continues.
    """
    ways = list(dict.fromkeys([AS_IS, *(ways or MAP_WAYS)]))
    for name in ways:
        map_way_named(name)
    began = time.monotonic()
    content = {"format": FORMAT, "kind": "captions", "data": data_address}
    check_folder(out, content)
    data = captioned(data_address, progress)
    version = hashlib.blake2b(repr((version_of(data.pictures), data.captions)).encode(errors="surrogateescape"), digest_size=16)
    open_folder(out, {**content, "pictures": version.hexdigest()})
    cells: list[dict[str, Any]] = []
    not_tried: list[dict[str, str]] = []
    interrupted = False
    total = len(models) * len(ways) * seeds
    try:
        for model in models:
            try:
                opened = load(model)
                pairs = pairs_of(opened, data, progress)
            except DiptychError as error:  # one model that cannot be had costs the others nothing
                not_tried.append({"model": model, "why": str(error)})
                continue
            for way in ways:
                for seed in range(seeds):
                    if progress:
                        progress("testing", len(cells), total)
                    if seconds is not None and time.monotonic() - began > seconds:
                        not_tried.append({"model": model, "way": way, "why": "the budget was spent"})
                        continue
                    made_of = made_of_now(weights_of(opened, pairs.x, pairs.t), way)
                    cells.append(_cell(out, model, way, seed, pairs, made_of))
    except KeyboardInterrupt:
        interrupted = True
    if not cells and not interrupted:
        raise DiptychError("; ".join(entry["why"] for entry in not_tried))
    clusters = {m: _clusters(data.groups.tolist(), [len(c) for c in data.captions], m) for m in METRICS}
    found = verdict_of(cells, clusters, np.repeat(np.arange(len(data.captions)), [len(c) for c in data.captions]))
    results = {
        "kind": "captions",
        "request": {"models": list(models), "ways": ways, "data": data_address, "seeds": seeds},
        "data": {
            "address": data_address,
            "pictures": len(data.captions),
            "captions": sum(map(len, data.captions)),
            "problems": [asdict(p) for p in data.pictures.problems],
            "notes": data.notes,
        },
        "cells": cells,
        "verdict": found,
        "sentences": sentences(found, cells),
        "not_tried": not_tried,
        "environment": environment_of_run(),
    }
    write_json(out / "results.json", results)
    if interrupted:
        raise Interrupted(f"interrupted: what is done is in {out}; the same command continues")
    return results


def _cell(out: Path, model: str, way: str, seed: int, pairs: Pairs, made_of: Mapping[str, str]) -> dict[str, Any]:
    path = out / "cells" / file_name(model) / f"{file_name(way)}-s{seed}.json"
    if (held := held_record(path, made_of)) is not None:
        return held
    made = {"model": model, "way": way, "seed": seed, "made_of": made_of, **tested(way, pairs, seed)}
    write_json(path, made)
    return made


def _clusters(groups: list[int], counts: list[int], metric: str) -> list[str]:
    """The group of each item of a metric: the captions of one picture, and of its near-duplicates, go together."""
    if metric.startswith("picture"):
        return [str(g) for g in groups]
    return [str(g) for g, n in zip(groups, counts, strict=True) for _ in range(n)]


Table = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]  # (model, way): seed: cell


def chosen_in_folds(table: Table, keys: Sequence[tuple[str, str]], owner: np.ndarray) -> tuple[dict[int, str], dict[str, int]]:
    """The credits in the first metric of choosing among these models and ways in each fold by the inner cross-validation there,
    which saw nothing of the fold: {seed: "0110…"}; and how often each was chosen. Over the seeds that all have, whose folds are the
    same for all. owner: the picture of each caption, int [M].
    """
    credits: dict[int, str] = {}
    picks: dict[str, int] = {}
    for seed in sorted(set.intersection(*(set(table[k]) for k in keys))):
        cells = {k: table[k][seed] for k in keys}
        fold = np.array(next(iter(cells.values()))["outer"])[owner]
        found = np.empty(len(owner), dtype="<U1")
        for f in range(fold.max() + 1):
            best = max(keys, key=lambda k: (round(cells[k]["inner_of_folds"][f], 9), -keys.index(k)))
            rows = np.flatnonzero(fold == f)
            found[rows] = np.array(list(cells[best]["credits"][METRICS[0]]))[rows]
            name = f"{best[1]} on {best[0]}"
            picks[name] = picks.get(name, 0) + 1
        credits[seed] = "".join(found)
    return credits, picks


def verdict_of(
    cells: Sequence[Mapping[str, Any]], clusters: Mapping[str, list[str]], owner: np.ndarray | None = None
) -> dict[str, Any]:
    """Rows for each model and way, the best by inner cross-validation first, with each metric's ``mean``, ``low``, ``high``, and
    ``against``: the winner's lead in the first metric. As ``verdict.verdict``.

    The winner is named by inner scores of all folds, in which every picture had a part, so its own number is a little too good.
    ``choice``: what is to be expected of it, from choosing anew in each fold (``chosen_in_folds``), with mean, low, high and picks;
    ``gain`` is that of the choice over the reference. owner: as there; None: the winner's own numbers.
    """
    table: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        table.setdefault((cell["model"], cell["way"]), {})[cell["seed"]] = cell
    inner = {key: sum(c["inner"] for c in of.values()) / len(of) for key, of in table.items()}
    order = sorted(table, key=lambda key: (-inner[key], list(MAP_WAYS).index(key[1]) if key[1] in MAP_WAYS else 99, key))
    learn = [key for key in order if key[1] != AS_IS]
    as_is = [key for key in order if key[1] == AS_IS]
    winner = (learn or as_is)[0] if order else None
    reference = as_is[0] if as_is else None
    first = METRICS[0]
    credits = {key: {seed: c["credits"][first] for seed, c in of.items()} for key, of in table.items()}
    tests = {k: difference(credits[winner], credits[k], clusters[first]) for k in order if winner is not None and k != winner}
    for key, p in zip(tests, holm([t["p"] for t in tests.values()]), strict=True):
        tests[key]["p_holm"] = p
    rows = []
    for key in order:
        metrics = {}
        for metric in METRICS:
            runs = [c["credits"][metric] for c in table[key].values()]
            averaged = [sum(c[i] == "1" for c in runs) / len(runs) for i in range(len(runs[0]))]
            at = mean_interval(averaged, clusters[metric])
            metrics[metric] = {"mean": at.value, "low": at.low, "high": at.high}
        own = list(table[key].values())
        rows.append(
            {
                "model": key[0],
                "way": key[1],
                "inner": inner[key],
                "metrics": metrics,
                "against": tests.get(key),
                "seconds": sum(c["seconds"] for c in own) / len(own),
                "settings": own[0]["settings"],
            }
        )
    gain = tests.get(reference) if reference is not None and winner != reference else None
    choice: dict[str, Any] | None = None
    if owner is not None and learn and all("outer" in cell for of in table.values() for cell in of.values()):
        made, picks = chosen_in_folds(table, learn, owner)
        if made:
            whole = mean_interval(np.mean([numbers(run) for run in made.values()], axis=0), clusters[first])
            choice = {"mean": whole.value, "low": whole.low, "high": whole.high, "picks": picks}
            gain = gain if reference is None else difference(made, credits[reference], clusters[first])
    worth = gain is None or (gain["p"] < LEVEL and gain["difference"] > 0)
    among = [min(c["among"][0] for c in cells), max(c["among"][1] for c in cells)] if cells else [0, 0]
    return {
        "rows": rows,
        "winner": winner,
        "reference": reference,
        "recommended": winner if worth else reference,
        "gain": gain,
        "choice": choice,
        "among": among,
        "seeds": max((len(of) for of in table.values()), default=0),
    }


def sentences(found: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdict in plain words."""
    if not found["rows"]:
        return ["Nothing could be tested."]
    rows = {(r["model"], r["way"]): r for r in found["rows"]}
    winner, reference, gain = found["winner"], found["reference"], found["gain"]
    best = rows[winner]["metrics"][METRICS[0]]
    low, high = found["among"]
    size = str(low) if low == high else f"{low} to {high}"
    lines = [
        f"{winner[1]} on {winner[0]} finds the picture of a caption among {size} pictures in {100 * best['mean']:.1f} % of cases "
        f"[{100 * best['low']:.1f}, {100 * best['high']:.1f}]: the best by cross-validation."
    ]
    if (choice := found.get("choice")) is not None:
        lines.append(
            f"Chosen anew in each fold, without the pictures that then test it, that is {100 * choice['mean']:.1f} % "
            f"[{100 * choice['low']:.1f}, {100 * choice['high']:.1f}], which is what to expect of new pictures."
        )
    if gain is not None:
        points = (
            f"{100 * gain['difference']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], p = {gain['p']:.2g}"
        )
        if found["recommended"] == winner:
            lines.append(f"Adapting is worth it here: {points} against {reference[0]} as it is.")
        elif gain["difference"] > 0:
            lines.append(f"No gain is shown over {reference[0]} as it is: {points}. Take it as it is, or add pictures.")
        else:
            lines.append(f"{reference[0]} as it is does not do worse: {points}. Take it as it is.")
    if found["seeds"] < SEEDS:
        lines.append("The intervals are over pictures; with --seeds 3 other folds are part of the comparison too.")
    return lines
