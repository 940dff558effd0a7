"""Two scenes that differ in one fact, and what is asked about both."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import numpy as np

from diptych.data.regions.conventions import Convention
from diptych.data.regions.locations import cells_of, location
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.graph import POSITIONS, Graph, Things, draw, is_held_out, other, swap_order
from diptych.data.scenes.layout import picture
from diptych.data.scenes.world import World

CHANGES = ("colour", "count", "concept", "order", "position")
TRIES = 400  # scenes drawn in search of one that suits


class Exchange(NamedTuple):
    """One question with its answer. truth: what a score needs beyond the answer. before: what was asked and answered before, to
    which the question refers.
    """

    kind: str
    skill: str
    question: str
    answer: str
    truth: dict[str, Any] = {}  # noqa: RUF012 - never changed
    before: tuple[tuple[str, str], ...] = ()


class Change(NamedTuple):
    """Two scenes that differ in one fact: ``what`` of group ``number``."""

    what: str
    number: int
    first: Graph
    second: Graph


class Setting(NamedTuple):
    """The world, and how boxes are written: a convention, or the number of location tokens along a side."""

    world: World
    boxes: Convention | int


Pair = tuple[Exchange, Exchange]  # the same question about two scenes or orders, with different answers
Builder = Callable[[Change, Setting, Random], list[Pair]]


def change(graph: Graph, what: str, world: World, random: Random) -> Change | None:
    """The scene with one fact changed, of a group drawn at random; None where it does not apply."""
    number = random.randrange(len(graph.things))
    things = graph.things[number]
    if what == "colour":
        if not things.colour:
            return None
        others = [t.colour for t in graph.things] if graph.relation == "front" else [things.colour]
        if len(set(world.palette) - set(others)) == 0:
            return None
        return Change(what, number, graph, _with(graph, number, colour=other(world.palette, random, *others)))
    if what == "count":
        most = world.max_objects - sum(t.count for t in graph.things) + things.count
        if graph.position or graph.relation == "front" or graph.side or things.size or most < 2:
            return None
        count = random.randint(1, most - 1)
        count += count >= things.count
        room = max(count, things.count) if len(graph.things) == 1 else 0
        return Change(what, number, graph._replace(room=room), _with(graph, number, count=count)._replace(room=room))
    if what == "concept":
        concept = other(world.names, random, *(t.concept for t in graph.things))
        return Change(what, number, graph, _with(graph, number, concept=concept))
    if what == "order":
        swapped = None if graph.side else swap_order(graph, world, random)
        return None if swapped is None else Change(what, 0, graph, swapped)
    if not graph.position:
        return None
    return Change(what, number, graph, graph._replace(position=other(POSITIONS, random, graph.position)))


def _with(graph: Graph, number: int, **changes: Any) -> Graph:
    things = list(graph.things)
    things[number] = things[number]._replace(**changes)
    return graph._replace(things=tuple(things))


def belong(graphs: tuple[Graph, ...], world: World) -> bool:
    """Whether the split may show these scenes together: some of them is held out, or none."""
    held = [is_held_out(graph, world) for graph in graphs]
    return any(held) if world.split == "heldout-combinations" else not any(held)


def drawn_changes(world: World, random: Random, seed: int, whats: tuple[str, ...]) -> Any:
    """Changes of one of these kinds, of scenes drawn one after the other, in a random order; as many as ``TRIES``. The two scenes
    share all that the truth leaves open, which ``seed`` decides.
    """
    for step in range(TRIES):
        graph = draw(world, random.getrandbits(62))._replace(seed=seed)
        found = change(graph, whats[(random.randrange(len(whats)) + step) % len(whats)], world, random)
        if found is not None and belong((found.first, found.second), world):
            yield found if random.random() < 0.5 else found._replace(first=found.second, second=found.first)


@lru_cache(maxsize=8)
def painted(graph: Graph, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """``picture``; the last few are kept, since several questions ask for the boxes of one scene."""
    return picture(graph, size)


def noun(things: Things) -> str:
    """The name of a group's kind, in the singular or plural that its count needs."""
    concept = by_name()[things.concept]
    return concept.name if things.count == 1 else concept.plural


def is_(things: Things) -> str:
    """The verb that a group needs."""
    return "is" if things.count == 1 else "are"


def box_of(graph: Graph, concept: str, size: int) -> tuple[float, ...]:
    """The box around all objects of a kind: left, top, right, bottom in pixels."""
    left, top, right, bottom = zip(*(b["box"] for b in painted(graph, size)[1] if b["concept"] == concept), strict=True)
    return float(min(left)), float(min(top)), float(max(right)), float(max(bottom))


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def written_box(box: tuple[float, ...], size: int, boxes: Convention | int) -> str:
    """A box in pixels as an answer writes it: four whole numbers in brackets, or two location tokens."""
    if isinstance(boxes, int):
        return "".join(map(location, cells_of([edge / size for edge in box], boxes)))
    numbers = boxes.numbers(box, size, size)
    digits = 2 if boxes.scale == 1 else 0
    return "[" + ", ".join(f"{n:.{digits}f}" for n in numbers) + "]"
