"""Questions about one picture, of each kind: the same words about both scenes of a ``Change``, with different answers."""

from __future__ import annotations

from random import Random
from typing import Any

from diptych.data.scenes.concepts import article, by_name
from diptych.data.scenes.graph import Graph, Things
from diptych.data.scenes.instruct.change import (
    Builder,
    Change,
    Exchange,
    Pair,
    Setting,
    box_of,
    is_,
    noun,
    overlap,
    painted,
    written_box,
)
from diptych.data.scenes.language import NUMBERS, phrase

WHERE = {"left": "left of", "above": "above", "front": "in front of"}
BACK = {"left": "right of", "above": "below", "front": "behind"}
FURTHER = {"left": ("further left", "on the left"), "above": ("higher", "at the top")}
SIDES = (("left", "right"), ("top", "bottom"))  # along x and along y
MARGIN = 0.04  # an object within this distance of the middle is on neither side
APART = 0.3  # boxes of the two scenes overlap at most this much, so that no one box is right of both


def _pair(kind: str, skill: str, question: str, first: Any, second: Any, **truths: tuple[Any, Any]) -> Pair:
    """One question with its answer in either scene; truths: for each name, the value of either."""
    given = [{name: both[i] for name, both in truths.items()} for i in (0, 1)]
    return Exchange(kind, skill, question, first, given[0]), Exchange(kind, skill, question, second, given[1])


def yes_no(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """Whether something is so: yes of one scene, no of the other."""
    a, b = c.first.things[c.number], c.second.things[c.number]
    asked: list[str] = []  # true of the first scene, and then of the second
    if c.what == "colour":
        asked = [f"{is_(t)} the {noun(t)} {t.colour}?" for t in (a, b)]
    elif c.what == "count":
        asked = [f"{is_(t)} there exactly {NUMBERS[t.count]} {noun(t)}?" for t in (a, b)]
    elif c.what == "concept":
        asked = [f"is there {article(noun(t))}?" if t.count == 1 else f"are there {noun(t)}?" for t in (a, b)]
    elif c.what == "order":
        asked = [
            f"{is_(g.things[0])} the {noun(g.things[0])} {WHERE[g.relation]} the {noun(g.things[1])}?" for g in (c.first, c.second)
        ]
    else:
        asked = [f"is the {noun(a)} in the {g.position}?" for g in (c.first, c.second)]
    skill = {"concept": "existence", "order": "relation"}.get(c.what, c.what)
    return [_pair("yes-no", skill, asked[0], "yes", "no"), _pair("yes-no", skill, asked[1], "no", "yes")]


def _parted(graph: Graph, concept: str, size: int, axis: int) -> tuple[int, int] | None:
    """How many objects are on either side of the middle; None if one is too near to it to say."""
    centres = [(b["box"][axis] + b["box"][axis + 2]) / 2 / size - 0.5 for b in painted(graph, size)[1] if b["concept"] == concept]
    if any(abs(centre) < MARGIN for centre in centres):
        return None
    low = sum(centre < 0 for centre in centres)
    return low, len(centres) - low


def count(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """How many there are, as a sum over the sides of the picture or over kinds of things."""
    if c.what != "count":
        return []
    pairs, graphs = [], (c.first, c.second)
    concept = c.first.things[c.number].concept
    for axis, (low, high) in enumerate(SIDES):
        parts = [_parted(graph, concept, setting.world.size, axis) for graph in graphs]
        if parts[0] is not None and parts[1] is not None:
            question = f"how many {by_name()[concept].plural} are there? count {low} and {high}"
            first, second = (f"{x} {low} + {y} {high} = {x + y}" for x, y in (parts[0], parts[1]))
            totals = (sum(parts[0]), sum(parts[1]))
            pairs.append(_pair("count", "sides", question, first, second, parts=(parts[0], parts[1]), total=totals))
    if len(c.first.things) > 1:
        groups = [sorted(graph.things, key=lambda t: t.concept) for graph in graphs]
        sums = [sum(t.count for t in group) for group in groups]
        first, second = (
            f"{' + '.join(f'{t.count} {noun(t)}' for t in group)} = {total}" for group, total in zip(groups, sums, strict=True)
        )
        each = [tuple(t.count for t in group) for group in groups]
        pairs.append(
            _pair("count", "kinds", "how many things are there? count each kind", first, second, parts=(each[0], each[1]),
                  total=(sums[0], sums[1]))
        )  # fmt: skip
    return pairs


def refuse(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """What a thing is like that one scene shows and the other lacks."""
    if c.what != "concept":
        return []
    pairs = []
    for shown in (0, 1):
        things = (c.first, c.second)[shown].things[c.number]
        nothing = f"there {is_(things)} no {noun(things)}"
        asked = [("number", f"how many {by_name()[things.concept].plural} are there?", NUMBERS[things.count], "there are none")]
        if things.colour:
            asked.append(("colour", f"what colour {is_(things)} the {noun(things)}?", things.colour, nothing))
        if c.first.position:
            asked.append(("place", f"where is the {noun(things)}?", f"in the {c.first.position}", nothing))
        for skill, question, answer, absent in asked:
            answers = (absent, answer) if shown else (answer, absent)
            pairs.append(_pair("refuse", skill, question, *answers, absent=(bool(shown), not shown)))
    return pairs


def correct(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """A statement, true of one scene and false of the other, and a question about something else."""
    graphs, pairs = (c.first, c.second), []
    for right in (0, 1):  # the scene of which the statement is true
        true, false = graphs[right], graphs[1 - right]
        things, actual = true.things[c.number], false.things[c.number]
        if c.what == "colour":
            stated, fact = f"the {noun(things)} {is_(things)} {things.colour}", f"the {noun(things)} {is_(things)} {actual.colour}"
            asked, final = "how many things are there?", NUMBERS[sum(t.count for t in true.things)]
        elif c.what == "count" and things.colour:
            stated, fact = (f"there {is_(t)} {phrase(Things(t.count, t.concept))}" for t in (things, actual))
            asked, final = "what colour?", things.colour
        elif c.what == "order" and true.things[0].colour:
            a, b = true.things[:2]
            stated, fact = (f"the {noun(a)} {is_(a)} {way[true.relation]} the {noun(b)}" for way in (WHERE, BACK))
            asked, final = f"what colour {is_(a)} the {noun(a)}?", a.colour
        else:
            continue
        answers = (f"right; {final}", f"no, {fact}; {final}")
        skill = "relation" if c.what == "order" else c.what
        first, second = answers[right], answers[1 - right]
        pairs.append(
            _pair("correct", skill, f"{stated}. {asked}", first, second, false=(bool(right), not right), fact=(fact, fact),
                  final=(final, final))
        )  # fmt: skip
    return pairs


def box(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """Where something is, as a box; of two things also which one is on a side."""
    size = setting.world.size
    pairs: list[Pair] = []
    if c.what not in ("order", "position") or c.first.relation == "front":
        return []

    def pair(skill: str, question: str, named: tuple[Things, Things], name: bool) -> None:
        """Adds the question, unless the boxes in the two scenes are nearly the same."""
        boxes = box_of(c.first, named[0].concept, size), box_of(c.second, named[1].concept, size)
        if overlap(*boxes) > APART:
            return
        texts = [written_box(b, size, setting.boxes) for b in boxes]
        answers = [f"{phrase(t)} {text}" if name else text for t, text in zip(named, texts, strict=True)]
        names = (phrase(named[0]), phrase(named[1])) if name else ("", "")
        pairs.append(_pair("box", skill, question, *answers, box=boxes, name=names))

    for things in c.first.things:
        if things.count == 1:
            pair("place", f"where is the {noun(things)}? answer with its box", (things, things), name=False)
    if c.what == "order" and all(t.count == 1 for t in c.first.things):
        side = FURTHER[c.first.relation][1]
        pair("side", f"what is {side}? give its name and its box", (c.first.things[0], c.second.things[0]), name=True)
    return pairs


def follow(c: Change, setting: Setting, random: Random) -> list[Pair]:
    """Questions that refer to the answers before them, which are the same in both scenes."""
    graph = c.first
    if c.what not in ("order", "colour") or graph.relation not in FURTHER or len(graph.things) > 2:
        return []
    if any(t.count != 1 or not t.colour for t in graph.things):
        return []
    names = sorted(noun(t) for t in graph.things)
    question = f"which is {FURTHER[graph.relation][0]}, the {names[0]} or the {names[1]}?"
    asked = [
        [
            (question, f"the {noun(g.things[0])}"),
            ("what colour is it?", g.things[0].colour),
            ("and the other one?", g.things[1].colour),
        ]
        for g in (c.first, c.second)
    ]
    step = 0 if c.what == "order" else c.number + 1
    first, second = (Exchange("follow", ("first", "second", "third")[step], *of[step], {}, tuple(of[:step])) for of in asked)
    return [(first, second)]


SINGLE: dict[str, Builder] = {"yes-no": yes_no, "count": count, "refuse": refuse, "correct": correct, "box": box, "follow": follow}
SUITED = {  # the changes of which a kind has questions
    "yes-no": ("colour", "count", "concept", "order", "position"),
    "count": ("count",),
    "refuse": ("concept",),
    "correct": ("colour", "count", "order"),
    "box": ("order", "position"),
    "follow": ("order", "colour"),
}
