"""Are the claims of a caption true? Exact, on the built-in world: objects, counts, colours, relation and place, compared with the
scene.

A caption is parsed by the world's own words. ``objects``: share of the named groups that are in the scene; ``count``, ``colour``,
``relation``, ``position`` …: whether the caption's claim about these is true, over the captions that make one about objects in the
scene; ``all_true``: something is claimed, all of it could be parsed, and all of it is true. ``told``: share of the scene's groups
that are named with their count, since a short caption is rarely false.

``precision``: share of the single statements that are true, over all captions: that a group is there, its count, its colour, a
relation … each is one, and false where the object itself is not there. Statements that cannot be parsed or decided do not count;
``unread`` is their share of all statements, and precision's band is its value if all of them were false, and if all were true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, by_item
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_sums, shares
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.texts.captions import Captions
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
GROUP = "\0"  # marks a group in the text around it


class Claims(NamedTuple):
    """What a caption claims of a scene."""

    things: list[dict[str, Any]]  # concept, count, colour, size: in the order of the text
    absent: list[str]
    relation: tuple[str, bool] | None  # and whether the second comes first
    side: str  # of a third group, to the first two
    position: str
    background: str
    unread: tuple[str, ...]  # pieces of the text that could not be parsed


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
_BETWEEN = re.compile(rf"{GROUP}|[,.]|\b(?:and|but|with)\b|\b({_any(RELATIONS)})\b")  # what separates statements


def parse_caption(caption: str) -> Claims:
    """The claims of a caption in the world's language."""
    pattern, names = _noun()
    text = _OPENING.sub("", re.sub(r"\s+", " ", caption.lower()))
    things, absent = [], []
    for group in pattern.finditer(text):
        count = 1 if group["n"] in ("a", "an") else NUMBERS.index(group["n"])
        if count:
            attributes = {name: group[name] or "" for name in ("colour", "size")}
            things.append({"concept": names[group["noun"]], "count": count, **attributes})
        else:
            absent.append(names[group["noun"]])
    rest = pattern.sub(GROUP, text)
    claims = []
    for kind in (_SIDE, _RELATION, _POSITION, _BACKGROUND):  # of each kind, the first
        match = kind.search(rest)
        claims.append(match["how"] if match else "")
        rest = kind.sub(" ", rest, count=1)
    side, how, position, background = claims
    pieces = (piece.strip() for piece in _BETWEEN.split(rest) if piece)
    unread = tuple(piece for piece in pieces if piece)
    nothing = not (things or absent or unread)
    relation = RELATIONS[how] if how and len(things) > 1 else None
    return Claims(things, absent, relation, SIDES.get(side, ""), position, background, ("",) if nothing else unread)


def _relation_holds(claims: Claims, graph: dict[str, Any]) -> bool:
    assert claims.relation is not None
    first, second = (t["concept"] for t in claims.things[:2])
    stated = (second, first) if claims.relation[1] else (first, second)
    true = tuple(t["concept"] for t in graph["things"][:2])
    return bool(graph["relation"]) and (claims.relation[0], stated) == (graph["relation"], true)


def statements(claims: Claims, graph: dict[str, Any]) -> list[tuple[str, bool | None]]:
    """(kind, whether it is true of the scene) of each single statement; None: the scene does not decide it, or it could not be
    parsed."""
    shown = {t["concept"]: t for t in graph["things"]}
    result: list[tuple[str, bool | None]] = []
    for t in claims.things:
        there = shown.get(t["concept"])
        result += [("objects", there is not None), ("count", there is not None and t["count"] == there["count"])]
        if t["colour"]:
            result.append(("colour", there is not None and t["colour"] == there["colour"]))
        if t["size"]:  # only some groups have a size with a name
            decided = there is None or there.get("size")
            result.append(("size", there is not None and t["size"] == there["size"] if decided else None))
    result += [("absent", concept not in shown) for concept in claims.absent]
    if claims.relation:
        result.append(("relation", _relation_holds(claims, graph)))
    if claims.side:
        third = graph["things"][2]["concept"] if len(graph["things"]) > 2 else ""
        true = graph.get("side") == claims.side and claims.things[-1]["concept"] == third
        result.append(("side", true if "side" in graph else None))
    if claims.position:
        result.append(("position", claims.position == graph["position"]))
    if claims.background:
        result.append(("background", claims.background == graph["background"] if "background" in graph else None))
    return result + [("unread", None) for _ in claims.unread]


def claim_credits(claims: Claims, graph: dict[str, Any]) -> dict[str, float]:
    """{metric: credit} of the claims about a scene; a metric is left out where nothing of the kind is claimed."""
    shown = {t["concept"]: t for t in graph["things"]}
    there = [t for t in claims.things if t["concept"] in shown]
    every = statements(claims, graph)
    of = {name: [float(true) for kind, true in every if kind == name and true is not None] for name in METRICS}
    credits: dict[str, float] = {}
    if claims.things:
        credits["objects"] = len(there) / len(claims.things)
    about = statements(claims._replace(things=there, relation=None, side=""), graph)
    for name in ("count", "colour", "size"):
        if values := [float(true) for kind, true in about if kind == name and true is not None]:
            credits[name] = mean(values)
    if of["relation"] and len(there) == len(claims.things):
        credits["relation"] = mean(of["relation"])
    for name in ("side", "position", "background"):
        if of[name] and there:
            credits[name] = mean(of[name])
    right = all(true for kind, true in every if true is not None)
    credits["all_true"] = float(bool(claims.things) and right and not claims.unread)
    named = {(t["concept"], t["count"]) for t in claims.things}
    credits["told"] = mean([float((t["concept"], t["count"]) in named) for t in graph["things"]])
    return credits


@dataclass(frozen=True)
class Facts(Captions):
    """Statements in captions against the truth of the scene."""

    name: str = "facts"

    def items(self, source: Source) -> Items:
        """Up to n scenes. Raises NotApplicable for other data: only a built-in world knows all that is true of a picture."""
        items = super().items(source)
        if not all("graph" in sample.extra for sample in items):
            raise NotApplicable("only scenes know all that is true of them (scenes:…)")
        return items

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        """What is kept of an item."""
        return self.with_credits({**super().record(item, generated, blind), "graph": item.extra["graph"], "answer": generated})

    def with_credits(self, record: Record) -> Record:
        """The record with its credits."""
        claims, blind = (parse_caption(record[field]) for field in ("generated", "generated_blind"))
        graph, unparsed = record["graph"], bool(claims.unread) or not claims.things
        return {**record, "correct": claim_credits(claims, graph), "blind": claim_credits(blind, graph), "unparsed": unparsed}

    def summarise(self, records: list[Record]) -> list[Result]:
        """The shares of ``METRICS`` with their controls, then ``precision`` and ``unread`` over single statements."""
        records = by_item(self.with_credits(r) for r in records)
        order = derangement(len(records), seed=self.seed)
        others = (
            []
            if order is None
            else [(parse_caption(r["generated"]), records[i]["graph"]) for r, i in zip(records, order, strict=True)]
        )
        conditions = {"blind": [r["blind"] for r in records], "shuffled": [claim_credits(*pair) for pair in others]}
        of_metric = {r.metric: r for r in shares(self.name, records)}
        results = []
        for metric in (m for m in METRICS if m in of_metric):
            controls = {condition: mean(v) for condition, of in conditions.items() if (v := [c[metric] for c in of if metric in c])}
            result = replace(of_metric[metric], controls=controls)
            results.append(result if metric == "all_true" else replace(result, unparsed=0, band=None))  # of what could be parsed
        return [*results, *self._of_statements(records, others)]

    def _of_statements(self, records: list[Record], others: list[tuple[Claims, dict[str, Any]]]) -> list[Result]:
        """precision and unread, from sums over statements; their intervals draw captions."""
        own = _counts([(parse_caption(r["generated"]), r["graph"]) for r in records])
        clusters, (true, decided, every) = [r["cluster"] for r in records], own.sum(0)
        unread = of_sums(self.name, "unread", own, lambda s: 1 - s[..., 1] / s[..., 2], clusters, higher_is_better=False)
        if not decided:
            return [unread]
        conditions = {"blind": [(parse_caption(r["generated_blind"]), r["graph"]) for r in records], "shuffled": others}
        sums = {condition: _counts(pairs).sum(0) for condition, pairs in conditions.items() if pairs}
        undecided = int(every - decided)
        fields: dict[str, Any] = {
            "controls": {condition: float(s[0] / s[1]) for condition, s in sums.items() if s[1]},
            "unparsed": undecided,
            "band": (float(true / every), float((true + undecided) / every)) if undecided else None,
        }
        with np.errstate(invalid="ignore"):  # a resample in which nothing could be parsed is left out
            return [of_sums(self.name, "precision", own, lambda s: s[..., 0] / s[..., 1], clusters, **fields), unread]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """What a paired test compares: the metrics that are means over items."""
        rows = [self.with_credits(r) for r in records]
        return {m: {r["item"]: r["correct"][m] for r in rows} for m in ("all_true", "told")}


def _counts(pairs: list[tuple[Claims, dict[str, Any]]]) -> np.ndarray:
    """Of each caption, how many statements are true, how many are decided, and how many there are: [n, 3]"""
    every = [[true for _, true in statements(claims, graph)] for claims, graph in pairs]
    return np.array([[s.count(True), len(s) - s.count(None), len(s)] for s in every], dtype=np.float64)
