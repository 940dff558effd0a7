"""What the pictures of an index have in common: folders, columns with their values, dates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.index.index import Index

VALUES = 50  # a column with more has a range, or none


def facts_of(index: Index) -> dict[str, Any]:
    """``Index.facts``; kept until the index changes."""
    generation = index.catalog.generation()
    kept = index._facts
    if kept is None or kept[0] != generation:
        kept = index._facts = (generation, _facts_of(index))
    return dict(kept[1])


def _facts_of(index: Index) -> dict[str, Any]:
    catalog = index.catalog
    first, last = catalog.rows("SELECT min(date), max(date) FROM pictures WHERE state = 'ok' AND date != ''")[0]
    return {
        "count": len(index),
        "broken": catalog.one("SELECT count(*) FROM pictures WHERE state = 'broken'"),
        "width": index.width,
        "model": index.info["stamp"]["model"],
        "addresses": index.addresses,
        "folders": _folders(index),
        "columns": _columns(index),
        "dates": None if first is None else [first, last],
        "captions": bool(catalog.one("SELECT 1 FROM pictures WHERE state = 'ok' AND words != '' LIMIT 1")),
        "store": index.info["store"]["kind"],
        "recall": index.info["store"].get("recall"),
        "finished": index.finished,
    }


def _folders(index: Index) -> dict[str, int]:
    """Each folder, and those above it, with the pictures in it and below, in the order of the names."""
    counts: Counter[str] = Counter()
    for folder, n in index.catalog.rows("SELECT folder, count(*) FROM pictures WHERE state = 'ok' GROUP BY folder"):
        while folder:
            counts[folder] += n
            above = str(PurePosixPath(folder).parent)
            folder = "" if above in (".", "/") else above
    return dict(sorted(counts.items()))


def _columns(index: Index) -> dict[str, dict[str, Any]]:
    found: dict[str, Counter[Any]] = {}
    numbers: dict[str, list[Any]] = {}
    texts: set[str] = set()
    sql = "SELECT columns, count(*) FROM pictures WHERE state = 'ok' AND columns != '{}' GROUP BY columns"
    for text, n in index.catalog.rows(sql):
        for name, value in json.loads(text).items():
            values = found.setdefault(name, Counter())
            if len(values) <= VALUES or value in values:
                values[value] += n
            if isinstance(value, str):
                texts.add(name)
            else:
                limits = numbers.setdefault(name, [value, value])
                limits[0], limits[1] = min(limits[0], value), max(limits[1], value)
    result: dict[str, dict[str, Any]] = {}
    for name, values in found.items():
        kind = "text" if name in texts else "number"
        if len(values) <= VALUES:
            ordered = sorted(values.items(), key=lambda pair: (-pair[1], str(pair[0])))
            result[name] = {"type": kind, "values": [value for value, _ in ordered], "counts": [n for _, n in ordered]}
        elif kind == "number":
            result[name] = {"type": kind, "min": numbers[name][0], "max": numbers[name][1]}
        else:
            result[name] = {"type": kind}
    return result
