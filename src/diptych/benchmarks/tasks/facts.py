"""Is what a caption says true? Exact, on the built-in world: objects, counts, colours, relation and place against the scene.

A caption is read by the world's own words. ``objects``: share of the named groups that are there; ``count``, ``colour``,
``relation``, ``position`` …: whether what it says of these holds, over the captions that say it of objects that are there; ``all_true``: something is
said, all of it could be read, and all of it holds. ``told``: share of the scene's groups that are named with their count, since saying little is safe.

``precision``: share of the single statements that are true, over all captions: that a group is there, its count, its colour, a relation … each is one, and
false where the object itself is not there. What cannot be read, or not be decided, is no part of it: ``unread`` is the share of all statements that it
makes up, and precision's band says what precision were if all of that was false, and if all was true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import mean, sums_interval
from diptych.benchmarks.tasks.base import Items, NotApplicable, shares
from diptych.benchmarks.tasks.captions import Captions
from diptych.core.sample import Sample
from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.language import NUMBERS
from diptych.data.scenes.sprites import PALETTE
from diptych.data.source import Source

METRICS = ("all_true", "objects", "count", "colour", "size", "relation", "side", "position", "background", "told")
RELATIONS = {
    "to the left of": ("left", False), "left of": ("left", False), "to the right of": ("left", True), "right of": ("left", True),
    "above": ("above", False), "below": ("above", True), "in front of": ("front", False), "behind": ("front", True),
}  # fmt: skip
POSITIONS = ("top left", "top right", "bottom left", "bottom right", "centre")
SIDES = {"above": "above", "below": "below", "to the left of": "left", "to the right of": "right"}
GROUP = "\0"  # stands for a group in the text around it


class Said(NamedTuple):
    things: list[dict[str, Any]]  # concept, count, colour, size: in the order of the text
    absent: list[str]
    relation: tuple[str, bool] | None  # and whether the second stands before the first
    side: str  # of a third group, to the first two
    position: str
    background: str
    unread: tuple[str, ...]  # pieces of the text that say something that is not understood


def _any(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


@lru_cache(maxsize=1)
def _noun() -> tuple[re.Pattern[str], dict[str, str]]:
    names = {noun: c.name for c in by_name().values() for noun in (c.name, c.plural)}
    amount = _any(("a", "an", *NUMBERS))
    return re.compile(
        rf"\b(?P<n>{amount})\s+(?:(?P<size>big|small)\s+)?(?:(?P<colour>{_any(PALETTE)})\s+)?(?P<noun>{_any(names)})\b"
    ), names


_RELATION = re.compile(rf"(?<={GROUP}) (?P<how>{_any(RELATIONS)}) (?={GROUP})")
_SIDE = re.compile(rf",? with {GROUP} (?P<how>{_any(SIDES)}) them\b")
_POSITION = re.compile(rf"(?<={GROUP}) in the (?P<how>{_any(POSITIONS)})\b")
_BACKGROUND = re.compile(rf", on (?P<how>{_any(KINDS)})\b")
_OPENING = re.compile(r"^\s*(?:a picture of|there (?:is|are)) ")
_BETWEEN = re.compile(rf"{GROUP}|[,.]|\b(?:and|but|with)\b|\b({_any(RELATIONS)})\b")  # what parts statements


def read(caption: str) -> Said:
    """What a caption in the world's language states."""
    pattern, names = _noun()
    text = _OPENING.sub("", re.sub(r"\s+", " ", caption.lower()))
    things, absent = [], []
    for found in pattern.finditer(text):
        count = 1 if found["n"] in ("a", "an") else NUMBERS.index(found["n"])
        if count:
            of = {name: found[name] or "" for name in ("colour", "size")}
            things.append({"concept": names[found["noun"]], "count": count, **of})
        else:
            absent.append(names[found["noun"]])
    rest = pattern.sub(GROUP, text)
    heard = []
    for known in (_SIDE, _RELATION, _POSITION, _BACKGROUND):  # of each kind, the first
        match = known.search(rest)
        heard.append(match["how"] if match else "")
        rest = known.sub(" ", rest, count=1)
    side, how, position, background = heard
    pieces = (piece.strip() for piece in _BETWEEN.split(rest) if piece)
    unread = tuple(piece for piece in pieces if piece)
    nothing = not (things or absent or unread)
    relation = RELATIONS[how] if how and len(things) > 1 else None
    return Said(things, absent, relation, SIDES.get(side, ""), position, background, ("",) if nothing else unread)


def _relation_holds(said: Said, graph: dict[str, Any]) -> bool:
    assert said.relation is not None
    first, second = (t["concept"] for t in said.things[:2])
    stated = (second, first) if said.relation[1] else (first, second)
    true = tuple(t["concept"] for t in graph["things"][:2])
    return bool(graph["relation"]) and (said.relation[0], stated) == (graph["relation"], true)


def statements(said: Said, graph: dict[str, Any]) -> list[tuple[str, bool | None]]:
    """Each single statement: of what kind, and whether it is true of a scene; None: the scene does not decide it, or it could not be read."""
    shown = {t["concept"]: t for t in graph["things"]}
    found: list[tuple[str, bool | None]] = []
    for t in said.things:
        there = shown.get(t["concept"])
        found += [("objects", there is not None), ("count", there is not None and t["count"] == there["count"])]
        if t["colour"]:
            found.append(("colour", there is not None and t["colour"] == there["colour"]))
        if t["size"]:  # only some groups have a size that can be named
            decided = there is None or there.get("size")
            found.append(("size", there is not None and t["size"] == there["size"] if decided else None))
    found += [("absent", concept not in shown) for concept in said.absent]
    if said.relation:
        found.append(("relation", _relation_holds(said, graph)))
    if said.side:
        third = graph["things"][2]["concept"] if len(graph["things"]) > 2 else ""
        true = graph.get("side") == said.side and said.things[-1]["concept"] == third
        found.append(("side", true if "side" in graph else None))
    if said.position:
        found.append(("position", said.position == graph["position"]))
    if said.background:
        found.append(("background", said.background == graph["background"] if "background" in graph else None))
    return found + [("unread", None) for _ in said.unread]


def judge(said: Said, graph: dict[str, Any]) -> dict[str, float]:
    """Credits for what was said; a metric is left out where nothing of the kind was."""
    shown = {t["concept"]: t for t in graph["things"]}
    there = [t for t in said.things if t["concept"] in shown]
    every = statements(said, graph)
    of = {name: [float(true) for kind, true in every if kind == name and true is not None] for name in METRICS}
    found: dict[str, float] = {}
    if said.things:
        found["objects"] = len(there) / len(said.things)
    about = statements(said._replace(things=there, relation=None, side=""), graph)
    for name in ("count", "colour", "size"):
        if credits := [float(true) for kind, true in about if kind == name and true is not None]:
            found[name] = mean(credits)
    if of["relation"] and len(there) == len(said.things):
        found["relation"] = mean(of["relation"])
    for name in ("side", "position", "background"):
        if of[name] and there:
            found[name] = mean(of[name])
    right = all(true for kind, true in every if true is not None)
    found["all_true"] = float(bool(said.things) and right and not said.unread)
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
        return {**record, "correct": judge(said, record["graph"]), "blind": blind, "unparsed": bool(said.unread) or not said.things}

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted((self.judge(r) for r in records), key=lambda r: str(r["item"]))
        order = derangement(len(records), seed=self.seed)
        others = [] if order is None else [(read(r["generated"]), records[i]["graph"]) for r, i in zip(records, order, strict=True)]
        shuffled = [judge(*pair) for pair in others]
        found = {r.metric: r for r in shares(self.name, records)}
        results = []
        for metric in (m for m in METRICS if m in found):
            looks = {"blind": [r["blind"] for r in records], "shuffled": shuffled}
            controls = {look: mean(v) for look, of in looks.items() if (v := [c[metric] for c in of if metric in c])}
            result = replace(found[metric], controls=controls)
            results.append(result if metric == "all_true" else replace(result, unparsed=0, band=None))  # of what could be read
        return [*results, *self._of_statements(records, others)]

    def _of_statements(self, records: list[Record], others: list[tuple[Said, dict[str, Any]]]) -> list[Result]:
        """precision and unread, from sums over statements; captions are what is drawn for their intervals."""
        own = _counts([(read(r["generated"]), r["graph"]) for r in records])
        clusters = [r["cluster"] for r in records]
        n, of, (true, read_, all_) = len(records), len(set(clusters)), own.sum(0)
        share = sums_interval(own, lambda s: 1 - s[..., 1] / s[..., 2], clusters, share=True)
        unread = Result(self.name, "unread", share.value, share.low, share.high, n, of, higher_is_better=False)
        if not read_:
            return [unread]
        with np.errstate(invalid="ignore"):  # a resample in which nothing can be read is left out
            at = sums_interval(own, lambda s: s[..., 0] / s[..., 1], clusters, share=True)
        looks = {"blind": [(read(r["generated_blind"]), r["graph"]) for r in records], "shuffled": others}
        sums = {look: _counts(pairs).sum(0) for look, pairs in looks.items() if pairs}
        controls = {look: float(s[0] / s[1]) for look, s in sums.items() if s[1]}
        lost = int(all_ - read_)
        band = (float(true / all_), float((true + lost) / all_)) if lost else None
        precision = Result(self.name, "precision", at.value, at.low, at.high, n, of, controls=controls, unparsed=lost, band=band)
        return [precision, unread]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        judged = [self.judge(r) for r in records]
        return {m: {r["item"]: r["correct"][m] for r in judged} for m in ("all_true", "told")}


def _counts(pairs: list[tuple[Said, dict[str, Any]]]) -> np.ndarray:
    """Of each caption, how many statements are true, how many could be decided, and how many there are: [n, 3]"""
    every = [[true for _, true in statements(said, graph)] for said, graph in pairs]
    return np.array([[s.count(True), len(s) - s.count(None), len(s)] for s in every], dtype=np.float64)
