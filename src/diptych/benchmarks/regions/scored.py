"""Results of tasks about regions: the model's, and beside them those of controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import credit_slices, of_credits
from diptych.benchmarks.statistics import mean

# Controls that need no model, then the model on a grey picture and with the phrase of another picture.
CONTROLS = ("centre", "whole", "largest", "random", "blind", "shuffled")


def results_of(task: str, records: Sequence[Record], *, bounded: bool = True) -> list[Result]:
    """The mean of each metric with its interval over pictures, chance, controls and slices."""
    results = []
    for metric in dict.fromkeys(m for r in records for m in r.get("correct", {})):
        rows = [r for r in records if metric in r["correct"]]
        credits = np.array([r["correct"][metric] for r in rows], dtype=np.float64)
        clusters = [r["cluster"] for r in rows]
        controls = {c: mean([r[c][metric] for r in rows]) for c in CONTROLS if all(metric in (r.get(c) or {}) for r in rows)}
        names = dict.fromkeys(n for r in rows for n in r.get("slices") or ())
        columns = {name: [(r.get("slices") or {}).get(name) for r in rows] for name in names}
        results.append(
            of_credits(
                task,
                metric,
                credits,
                clusters,
                bounded=bounded,
                chance=controls.get("random"),
                controls=controls,
                by=next((r["by"] for r in rows if r.get("by")), ""),
                unparsed=sum(bool(r.get("unparsed")) for r in rows),
                slices=credit_slices(credits, clusters, columns, bounded),
            )
        )
    return results
