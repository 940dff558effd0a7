"""From the table to one recommendation: who is ahead, of whom that can be said, and whether adapting is worth it.

The winner is named by cross-validation on the training pictures, so the test pictures judge it without having chosen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diptych.benchmarks.crossed import Measured, estimate
from diptych.benchmarks.statistics import holm, paired_test

CONTROL = "majority"
NAMES_ALONE = ("zeroshot", "descriptions")  # nothing is learned from the pictures
SEEDS = 3  # from so many on, other seeds are part of the interval
LEVEL = 0.05

Run = str | Sequence[float]  # "0110…", whether each test picture is named right; or a number for each, with the measure as mean
Runs = Mapping[int, Run]  # by seed


def numbers(run: Run) -> np.ndarray:
    """The number of each test picture, float64 [N]."""
    return np.array([float(c) for c in run])


def credits_of(test: Mapping[str, Any]) -> Run:
    """What a cell's test says of each picture: of several labels, the number of mean average precision."""
    return test["correct"] if "correct" in test else test["credits"]["mAP"]  # type: ignore[no-any-return]


def verdict(records: Sequence[Mapping[str, Any]], clusters: Sequence[str]) -> dict[str, Any]:
    """The comparison of all cells with the most shots.

    rows: one for each model and way, the best by cross-validation first, with ``mean``, ``low``, ``high`` (accuracy on the test
    part; of several labels, mean average precision) and ``against``: the difference of the winner from it with its interval and p
    after Holm's correction. winner, reference: (model, way) of the best by cross-validation among those that learn, and of the best
    that learns nothing; None if there is none. recommended: (model, way). gain: of the winner over the reference, a row of
    ``against``; None without a reference. measure: ``accuracy`` or ``mAP``.
    """
    done = [r for r in records if r.get("test")]
    if not done:
        return {"rows": [], "winner": None, "reference": None, "recommended": None, "gain": None}
    ways = [r for r in done if r["way"] != CONTROL] or done  # where the time was spent, the control may have been tested alone
    most = max(ways, key=lambda r: (r["shots"] == 0, r["shots"]))["shots"]
    table: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in done:
        if record["shots"] == most:
            table.setdefault((record["model"], record["way"]), {})[record["seed"]] = record
    by_cross_validation = {key: _mean([r["accuracy"] for r in of.values()]) for key, of in table.items()}
    order = sorted(table, key=lambda key: (-by_cross_validation[key], _mean([r["loss"] for r in table[key].values()]), key))
    learn = [key for key in order if key[1] not in (CONTROL, *NAMES_ALONE) and by_cross_validation[key] > -1]
    names = [key for key in order if key[1] in NAMES_ALONE] or [key for key in order if key[1] == CONTROL]
    winner = learn[0] if learn else names[0] if names else None
    reference = names[0] if names else None
    runs = {key: {seed: credits_of(r["test"]) for seed, r in of.items()} for key, of in table.items()}
    tests = {key: difference(runs[winner], runs[key], clusters) for key in order if winner is not None and key != winner}
    for key, p in zip(tests, holm([t["p"] for t in tests.values()]), strict=True):
        tests[key]["p_holm"] = p
    rows = []
    for key in order:
        at = estimate([_measured(run, clusters) for run in runs[key].values()])
        rows.append(
            {
                "model": key[0],
                "way": key[1],
                "cross_validation": by_cross_validation[key] if by_cross_validation[key] > -1 else None,
                "mean": at.value,
                "low": at.low,
                "high": at.high,
                "seeds": len(runs[key]),
                "against": tests.get(key),
            }
        )
    gain = tests.get(reference) if reference is not None and winner is not None and winner != reference else None
    worth = gain is None or (gain["p"] < LEVEL and gain["difference"] > 0)
    recommended = winner if worth else reference
    measure = "accuracy" if all("correct" in r["test"] for r in done) else "mAP"
    found = {"winner": winner, "reference": reference, "recommended": recommended, "gain": gain}
    return {"rows": rows, **found, "shots": most, "measure": measure}


def _mean(values: Sequence[float | None]) -> float:
    """The mean; −1 where a value is not known, so that it comes last."""
    return -1.0 if not values or any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _measured(run: Run, clusters: Sequence[str]) -> Measured:
    values = numbers(run)
    return Measured(
        float(values.mean()),
        {str(i): float(c) for i, c in enumerate(values)},
        {str(i): cluster for i, cluster in enumerate(clusters)},
        range=(0.0, 1.0),
    )


def difference(a: Runs, b: Runs, clusters: Sequence[str]) -> dict[str, Any]:
    """a − b in accuracy, or another measure, on the same test pictures: difference, low, high, p. Over pictures and seeds from
    three seeds on; with fewer over pictures, the credit of each averaged over the seeds, those that both have if there are any.
    """
    seeds = sorted(set(a) & set(b))
    if seeds:
        a, b = ({seed: runs[seed] for seed in seeds} for runs in (a, b))
    if len(seeds) >= SEEDS:
        e = estimate([_measured(a[s], clusters) for s in seeds], [_measured(b[s], clusters) for s in seeds])
        if not np.isnan(p := e.p()):  # else nothing varied, neither over seeds nor over pictures
            return {"difference": e.value, "low": e.low, "high": e.high, "p": p}
    mean_a, mean_b = (np.mean([numbers(run) for run in runs.values()], axis=0) for runs in (a, b))
    test = paired_test(mean_a, mean_b, clusters)
    return {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The verdict in plain words."""
    if not found["rows"]:
        return ["Nothing could be tested."]
    rows = {(r["model"], r["way"]): r for r in found["rows"]}
    winner, reference, gain = found["winner"], found["reference"], found["gain"]
    if winner is None:
        return ["Nothing can be recommended: no picture could be left out, so cross-validation says nothing. Add pictures."]
    known = rows[winner]["cross_validation"] is not None
    what = "of the test pictures right" if found.get("measure") != "mAP" else "mean average precision on the test pictures"
    verb = "is the best by cross-validation: " if known else "names " if found.get("measure") != "mAP" else "has "
    best = f"{verb}{percent(rows[winner])} {what}."
    learns = winner[1] not in (CONTROL, *NAMES_ALONE)
    lines = [f"{'Of the ways that learn from the pictures, ' if learns else ''}{winner[1]} on {winner[0]} {best}"]
    unknown = [r for r in found["rows"] if r["cross_validation"] is None and r["way"] != CONTROL]
    if unknown:
        lines.append(
            f"No picture could be left out for {', '.join(dict.fromkeys(r['way'] for r in unknown))}, so cross-validation says "
            "nothing of them, and none is recommended. Add pictures."
        )
    if gain is not None:
        how = f"{100 * gain['difference']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}], p = {gain['p']:.2g}"
        against = f"{reference[1]} on {reference[0]}"
        if found["recommended"] == winner:
            lines.append(f"Adapting is worth it here: {how} against {against}, which learns nothing.")
        elif gain["difference"] > 0:
            lines.append(f"No gain is shown over {against}, which learns nothing: {how}. Take that one, or add pictures.")
        else:
            lines.append(f"{against} learns nothing and does as well ({winner[1]} minus {reference[1]}: {how}). Take that one.")
    better = [r for r in found["rows"] if r["against"] and r["against"]["p_holm"] < LEVEL and r["against"]["difference"] < 0]
    if better:
        listed = ", ".join(f"{r['way']} on {r['model']} ({percent(r)})" for r in better[:3])
        lines.append(
            f"On the test pictures {listed} did better than this choice, which cross-validation did not foresee. A choice by the "
            "test pictures needs other pictures to confirm it."
        )
    alike = [r for r in found["rows"] if r["against"] and r["against"]["p_holm"] >= LEVEL and r["way"] != CONTROL]
    if alike:
        listed = ", ".join(f"{r['way']} on {r['model']}" for r in alike[:6])
        more = f" and {len(alike) - 6} more" if len(alike) > 6 else ""
        lines.append(
            f"No difference from the best is shown for {listed}{more}: any of them will do as well, as far as these pictures tell."
        )
    return lines


def percent(row: Mapping[str, Any]) -> str:
    """``93.1 % [90.2, 95.6]``."""
    interval = "" if np.isnan(row["low"]) else f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * row['mean']:.1f} %{interval}"
