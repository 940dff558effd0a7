"""The items of a task as plain data in columns, small enough to be part of the page: texts are stored once, credits as numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from diptych.report.drawing.films import Film
from diptych.report.drawing.pictures import Pictures
from diptych.report.pages.cards import QUESTIONS, SAID, WANTED, shuffled
from diptych.report.records import own_scores
from diptych.report.sections.answers import Answers, TaskAnswers
from diptych.report.sections.differences import pairs
from diptych.report.sections.slices import fields, values_of
from diptych.training.run_files import Record

MOST = 100_000  # items on a page
LETTERS = 160  # of a text
PICTURES = 24  # with a picture, of each task: each adds some kilobytes
SLICES = 8  # fields


class Strings:
    """Texts by number, each stored once; −1: none."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._known: dict[str, int] = {}

    def of(self, text: str) -> int:
        """The number of a text."""
        if not text:
            return -1
        if len(text) > LETTERS:
            text = f"{text[: LETTERS - 1]}…"
        place = self._known.setdefault(text, len(self.all))
        if place == len(self.all):
            self.all.append(text)
        return place


def gathered_items(gathered: TaskAnswers, pictures: Pictures) -> dict[str, Any]:
    """The data of a task's items; ``{}`` if no item has a credit.

    ``items`` (names), ``clusters`` (numbers), ``text``, ``wanted`` and ``answers`` (a list for each model) as places in
    ``strings``; ``credits[metric][model][item]``, null where a model has none; ``slices: {field: {"values", "of"}}``;
    ``pictures: {item: src}``;
    ``more``: items that were left out.
    """
    heads = [m for m in gathered.heads if any(a.credits.get(m) for a in gathered.answers)]
    names = list(dict.fromkeys(i for a in gathered.answers for m in heads for i in a.credits.get(m, {})))
    if not names:
        return {}
    more, names = max(0, len(names) - MOST), names[:MOST]
    records = {name: record for a in reversed(gathered.answers) for name, record in a.by_item.items()}  # of the first model
    strings, clusters = Strings(), {name: a.cluster.get(name, name) for a in reversed(gathered.answers) for name in names}
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters.values()))}
    return {
        "task": gathered.task,
        "models": [a.recipe.label for a in gathered.answers],
        "colours": [a.index for a in gathered.answers],
        "first": _first(gathered),
        "metrics": heads,
        "lower": [m in gathered.lower for m in heads],
        "items": names,
        "clusters": [number[clusters[n]] for n in names],
        "text": [strings.of(_question(records.get(n, {}))) for n in names],
        "wanted": [strings.of(_text(records.get(n, {}), WANTED)) for n in names],
        "answers": [[strings.of(_answer(a.by_item.get(n, {}))) for n in names] for a in gathered.answers],
        "credits": [[[_short(a.credits.get(m, {}).get(n)) for n in names] for a in gathered.answers] for m in heads],
        "slices": _slices(gathered, names, records),
        "pictures": _pictures(gathered, names, pictures),
        "strings": strings.all,
        "more": more,
    }


def encoded(data: dict[str, Any]) -> str:
    """The data as JSON that cannot end the element that holds it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _first(gathered: TaskAnswers) -> list[int]:
    """The two models that are compared at first: the best, and the one behind it."""
    chosen = pairs(gathered)
    if not chosen:
        return [0, min(1, len(gathered.answers) - 1)]
    return [gathered.answers.index(chosen[0][0]), gathered.answers.index(chosen[0][1])]


def _short(value: float | None) -> float | int | None:
    """A credit with as few digits as it needs."""
    if value is None:
        return None
    return int(value) if value == int(value) else round(value, 4)


def _text(record: Record, names: Sequence[str]) -> str:
    value = next((record[k] for k in names if record.get(k) not in (None, "", [])), None)
    if isinstance(value, dict):
        value = value.get("correct")
    if isinstance(value, list):
        return "; ".join(str(v) for v in value[:4])
    return "" if value is None else " ".join(str(value).split())


def _question(record: Record) -> str:
    text = _text(record, QUESTIONS)
    given = record.get("captions") or record.get("texts")
    return text or (" / ".join(str(t) for t in given[:3]) if isinstance(given, list) else "")


def _answer(record: Record) -> str:
    """What a model said; else the option with the highest score, or the rank of the right one."""
    if said := _text(record, SAID):
        return said
    options, scores = record.get("options"), own_scores(record)
    if isinstance(options, list) and len(options) == len(scores) and all(isinstance(s, (int, float)) for s in scores):
        return str(options[max(range(len(scores)), key=lambda i: scores[i])])
    rank = record.get("rank")
    if isinstance(rank, dict):
        return ", ".join(f"{k}: rank {v:g}" for k, v in rank.items() if isinstance(v, (int, float)))[:LETTERS]
    return f"rank {rank:g}" if isinstance(rank, (int, float)) else ""


def _slices(gathered: TaskAnswers, names: Sequence[str], records: dict[str, Record]) -> dict[str, Any]:
    """The fields that group items: their values, and which one each item has (−1: none)."""
    result: dict[str, Any] = {}
    wanted = fields(gathered)[:SLICES]
    held = [dict(values_of(records.get(n, {}))) for n in names] if wanted else []
    for name in wanted:
        values = sorted({v[name] for v in held if name in v})
        place = {v: i for i, v in enumerate(values)}
        result[name] = {"values": values, "of": [place.get(v.get(name, ""), -1) for v in held]}
    return result


def _pictures(gathered: TaskAnswers, names: Sequence[str], pictures: Pictures) -> dict[str, str]:
    """The first picture of some items, those first for which the two best models differ; by the item's position."""
    place = {n: i for i, n in enumerate(names)}
    one, other = (gathered.answers[i] for i in _first(gathered))
    differ: list[Record] = []
    alike: list[Record] = []
    for record in shuffled(one.records):
        item = str(record["item"])
        if item in place:
            (differ if _differ(gathered, one, other, item) else alike).append(record)
    found: dict[str, str] = {}
    for record in [*differ, *alike][: 2 * PICTURES]:  # some may have none
        if len(found) == PICTURES:
            break
        shown = pictures.of(gathered.task, one, record)
        if not shown and not found and len(alike) + len(differ) > PICTURES:
            break  # the first has none: neither will the others
        if shown and not isinstance(shown[0], Film):
            found[str(place[str(record["item"])])] = str(shown[0])
    return found


def _differ(gathered: TaskAnswers, one: Answers, other: Answers, item: str) -> bool:
    head = gathered.head_of(one, item)
    return head is not None and item in other.credits.get(head, {}) and one.credits[head][item] != other.credits[head][item]
