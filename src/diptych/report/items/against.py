"""Two evaluations as one comparison, to see item by item where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.comparison.paired import Credits, paired_tests
from diptych.core.errors import DiptychError
from diptych.report.read import Comparison, Recipe, Test, load, readable
from diptych.report.records import credits_of, finite


def against(one: Path, other: Path) -> Comparison:
    """The runs or evaluations in two directories, side by side, with paired tests on the items that both have.

    Raises DiptychError if one of them is a comparison, has no records, or if they share no item of any task.
    """
    first, second = _single(one), _single(other)
    a, b = first.recipes[0], second.recipes[0]
    a.name, b.name = (a.name, b.name) if a.name != b.name else (str(one), str(other))
    a.label, b.label = (a.label, b.label) if a.label != b.label else (a.name, b.name)
    notes = [*first.notes, *second.notes]
    if first.data_fingerprint != second.data_fingerprint:
        notes.append(
            f"{a.label} was evaluated on '{first.data}', {b.label} on '{second.data}', or on another state of it: items are "
            "matched by their names alone."
        )
    runs = {recipe.name: {0: _credits(recipe, notes)} for recipe in (a, b)}
    shared = {key for key in runs[a.name][0] if runs[a.name][0][key].keys() & runs[b.name][0].get(key, {}).keys()}
    if not shared:
        raise DiptychError(
            f"{one} and {other} have no item of a task in common; evaluate both on the same data with the same tasks"
        )
    rows = paired_tests({name: {0: {k: v for k, v in seeds[0].items() if k in shared}} for name, seeds in runs.items()})
    numbers = ("difference", "low", "high", "p", "p_holm")
    return Comparison(
        path=first.path,
        title=f"{a.label} against {b.label}",
        created=max(first.created, second.created),
        data=first.data if first.data == second.data else "",
        data_fingerprint=first.data_fingerprint if first.data_fingerprint == second.data_fingerprint else "",
        recipes=[a, b],
        tests=[Test(r["task"], r["metric"], r["a"], r["b"], *(finite(r[k]) for k in numbers)) for r in rows],
        environment=first.environment if first.environment == second.environment else {},
        licences=[*first.licences, *(x for x in second.licences if x not in first.licences)],
        items={**second.items, **first.items},
        notes=notes,
        command=f"diptych report {one} --against {other}",
    )


def _single(path: Path) -> Comparison:
    found = load(path)
    if len(found.recipes) != 1 or not found.recipes[0].runs:
        raise DiptychError(f"{path} is a comparison; give a run or an evaluation in it, such as {path}/NAME-s0")
    return found


def _credits(recipe: Recipe, notes: list[str]) -> Credits:
    """The credits of each item, with its cluster."""
    result: Credits = {}
    evaluation = recipe.runs[0].evaluation
    for task in evaluation.record_files():
        records: list[dict[str, Any]] = readable(evaluation.records, [], notes, task)
        cluster = {str(r["item"]): str(r.get("cluster", r["item"])) for r in records}
        for metric, by_item in credits_of(task, records).items():
            result[task, metric] = {item: (credit, cluster[item]) for item, credit in by_item.items()}
    return result
