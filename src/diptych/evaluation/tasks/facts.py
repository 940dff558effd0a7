"""Is what a caption says true? Exact, on the built-in world: objects, counts, colours, relation and place against the scene.

A caption is read by the world's own words. ``objects``: share of the named groups that are there; ``count``, ``colour``,
``relation``, ``position``: whether what it says of these holds, over the captions that say it of objects that are there; ``all_true``: something is
said and all of it holds. ``told``: share of the scene's groups that are named with their count, since saying little is safe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from diptych.batch import Sample
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.language import NUMBERS
from diptych.data.scenes.sprites import PALETTE
from diptych.data.source import Source
from diptych.evaluation.controls import derangement
from diptych.evaluation.records import Record, Result
from diptych.evaluation.statistics import mean
from diptych.evaluation.tasks.base import Items, NotApplicable, shares
from diptych.evaluation.tasks.captions import Captions

METRICS = ("all_true", "objects", "count", "colour", "relation", "position", "told")
RELATIONS = {
    "to the left of": ("left", False), "left of": ("left", False), "to the right of": ("left", True), "right of": ("left", True),
    "above": ("above", False), "below": ("above", True), "in front of": ("front", False), "behind": ("front", True),
}  # fmt: skip
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "centre")


class Said(NamedTuple):
    things: list[dict[str, Any]]  # concept, count, colour: in the order of the text
    absent: list[str]
    relation: tuple[str, bool] | None  # and whether the second stands before the first
    position: str


@lru_cache(maxsize=1)
def _noun() -> tuple[re.Pattern[str], dict[str, str]]:
    names = {noun: c.name for c in by_name().values() for noun in (c.name, c.plural)}
    longest = sorted(names, key=len, reverse=True)
    amount = "|".join(("an?", *NUMBERS))
    return re.compile(
        rf"\b(?P<n>{amount})\s+(?:(?P<size>big|small)\s+)?(?:(?P<colour>{'|'.join(PALETTE)})\s+)?(?P<noun>{'|'.join(map(re.escape, longest))})\b"
    ), names


def read(caption: str) -> Said:
    """What a caption in the world's language states."""
    pattern, names = _noun()
    text = re.sub(r"^\s*a picture of ", "", caption.lower())
    things, absent = [], []
    for found in pattern.finditer(text):
        count = 1 if found["n"] in ("a", "an") else NUMBERS.index(found["n"])
        if count:
            things.append({"concept": names[found["noun"]], "count": count, "colour": found["colour"] or ""})
        else:
            absent.append(names[found["noun"]])
    relation = next(
        (r for phrase, r in RELATIONS.items() if re.search(rf"\b{phrase} (?:{'|'.join(('an?', *NUMBERS))}) ", text)), None
    )
    place = next((p for p in POSITIONS if re.search(rf"\bin the {p}\b", text)), "")
    return Said(things, absent, relation if len(things) > 1 else None, place)


def judge(said: Said, graph: dict[str, Any]) -> dict[str, float]:
    """Credits for what was said; a metric is left out where nothing of the kind was."""
    shown = {t["concept"]: t for t in graph["things"]}
    there = [t for t in said.things if t["concept"] in shown]
    found: dict[str, float] = {}
    if said.things:
        found["objects"] = len(there) / len(said.things)
    if there:
        found["count"] = mean([float(t["count"] == shown[t["concept"]]["count"]) for t in there])
    coloured = [t for t in there if t["colour"]]
    if coloured:
        found["colour"] = mean([float(t["colour"] == shown[t["concept"]]["colour"]) for t in coloured])
    if said.relation and len(there) == len(said.things):
        first, second = (t["concept"] for t in said.things[:2])
        stated = (second, first) if said.relation[1] else (first, second)
        true = tuple(t["concept"] for t in graph["things"][:2])
        found["relation"] = float(bool(graph["relation"]) and (said.relation[0], stated) == (graph["relation"], true))
    if said.position and there:
        found["position"] = float(said.position == graph["position"])
    right = all(v == 1 for v in found.values()) and not set(said.absent) & set(shown)
    found["all_true"] = float(bool(said.things) and right)
    told = {(t["concept"], t["count"]) for t in said.things}
    found["told"] = mean([float((t["concept"], t["count"]) in told) for t in graph["things"]])
    return found


@dataclass(frozen=True)
class Facts(Captions):
    name: str = "facts"

    def items(self, source: Source) -> Items:
        found = super().items(source)
        if not all("graph" in sample.extra for sample in found):
            raise NotApplicable("only scenes know all that is true of them (scenes:…)")
        return found

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        record = {**super().record(item, generated, blind), "graph": item.extra["graph"], "answer": generated}
        return self.judge(record)

    def judge(self, record: Record) -> Record:
        said = read(record["generated"])
        blind = judge(read(record["generated_blind"]), record["graph"])
        return {**record, "correct": judge(said, record["graph"]), "blind": blind, "unparsed": not said.things}

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted((self.judge(r) for r in records), key=lambda r: str(r["item"]))
        order = derangement(len(records), seed=self.seed)
        shuffled = (
            [] if order is None else [judge(read(r["generated"]), records[i]["graph"]) for r, i in zip(records, order, strict=True)]
        )
        found = {r.metric: r for r in shares(self.name, records)}
        results = []
        for metric in (m for m in METRICS if m in found):
            looks = {"blind": [r["blind"] for r in records], "shuffled": shuffled}
            controls = {look: mean(v) for look, of in looks.items() if (v := [c[metric] for c in of if metric in c])}
            results.append(replace(found[metric], controls=controls, band=None))
        return results

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        judged = [self.judge(r) for r in records]
        return {m: {r["item"]: r["correct"][m] for r in judged} for m in ("all_true", "told")}
