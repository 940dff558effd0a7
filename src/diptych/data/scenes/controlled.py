"""Controlled tests: two scenes that differ in one thing, and a caption that is true of each alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.graph import (
    POSITIONS,
    Graph,
    Things,
    draw_things,
    is_held_out,
    other,
    swap_colours,
    swap_order,
)
from diptych.data.scenes.language import describe, lacking, outline, styles
from diptych.data.scenes.layout import picture
from diptych.data.scenes.world import RELATIONS, World
from diptych.data.source import Group

Twins = tuple[Graph, Graph]


def _single(world: World, random: Random, size: str = "", tinted: bool = False) -> Graph:
    things = draw_things(world, random, 1, world.focus, (size,))
    if tinted and not things.colour:
        things = things._replace(colour=other(world.palette, random))
    return Graph((things,), position=other(POSITIONS, random))


def _changed(graph: Graph, **changes: Any) -> Graph:
    return graph._replace(things=(graph.things[0]._replace(**changes), *graph.things[1:]))


def _object(world: World, random: Random) -> Twins:
    graph = _single(world, random)
    return graph, _changed(graph, concept=other(world.names, random, graph.things[0].concept))


def _count(world: World, random: Random) -> Twins:
    few, many = sorted(random.sample(range(1, world.max_objects + 1), 2))
    graph = Graph((draw_things(world, random, few, world.focus),), room=many)
    return graph, _changed(graph, count=many)


def _colour(world: World, random: Random) -> Twins:
    graph = _single(world, random, tinted=True)
    return graph, _changed(graph, colour=other(world.palette, random, graph.things[0].colour))


def _size(world: World, random: Random) -> Twins:
    graph = _single(world, random, size="big")
    return graph, _changed(graph, size="small")


def _position(world: World, random: Random) -> Twins:
    graph = _single(world, random)
    return graph, graph._replace(position=other(POSITIONS, random, graph.position))


def _pair(world: World, random: Random, tinted: bool) -> Graph:
    """Two groups of equal counts in a relation, of different colours."""
    relation = other(RELATIONS, random)
    count = 2 if relation != "front" and world.max_objects >= 4 and random.random() < 0.2 else 1
    while True:
        first = draw_things(world, random, count, world.focus)
        second = draw_things(world, random, count, taken=(first,))
        if first.colour != second.colour and (not tinted or (first.colour and second.colour)):
            return Graph((first, second) if random.random() < 0.5 else (second, first), relation)


def _relation(world: World, random: Random) -> Twins:
    graph = _pair(world, random, tinted=False)
    swapped = swap_order(graph, world, random)
    assert swapped is not None
    return graph, swapped


def _binding(world: World, random: Random) -> Twins:
    graph = _pair(world, random, tinted=True)
    swapped = swap_colours(graph, world, random)
    assert swapped is not None
    return graph, swapped


_MAKERS: dict[str, Callable[[World, Random], Twins]] = {
    "object": _object,
    "count": _count,
    "colour": _colour,
    "size": _size,
    "position": _position,
    "relation": _relation,
    "binding": _binding,
    "negation": _object,
}
SKILLS = tuple(_MAKERS)


def _belongs(twins: tuple[Graph, ...], world: World) -> bool:
    held = [is_held_out(graph, world) for graph in twins]
    return any(held) if world.split == "heldout-combinations" else not any(held)


def group(skill: str, world: World, seed: int, name: str) -> Group:
    """One test; which of its scenes comes first is random."""
    random = Random(seed)
    while not _belongs(twins := _MAKERS[skill](world, random), world):
        pass
    background = other(KINDS, random)
    style = random.choice(styles(twins[0], world.frames))
    pair = [graph._replace(seed=seed, background=background) for graph in twins]
    if random.random() < 0.5:
        pair.reverse()
    if skill == "negation":
        names = [graph.things[0].concept for graph in pair]
        texts = [lacking(outline(graph), absent) for graph, absent in zip(pair, reversed(names), strict=True)]
    else:
        texts = [describe(graph, style) for graph in pair]
    images, boxes = zip(*(picture(graph, world.size) for graph in pair), strict=True)
    known = {"graphs": [graph.as_dict() for graph in pair], "boxes": list(boxes)}
    return Group(name, skill, list(images), texts, known)


def _counts(world: World, random: Random) -> tuple[Graph, ...]:
    things = draw_things(world, random, 1, world.focus)
    return tuple(Graph((things._replace(count=n),), room=world.max_objects) for n in range(1, world.max_objects + 1))


def _positions(world: World, random: Random) -> tuple[Graph, ...]:
    graph = _single(world, random)
    return tuple(graph._replace(position=place) for place in POSITIONS)


def _colours(world: World, random: Random) -> tuple[Graph, ...]:
    graph = _single(world, random, tinted=True)
    shown = [c for c in world.palette if (graph.things[0].concept, c) not in world.held_out_colours]
    return tuple(_changed(graph, colour=c) for c in shown)


def _sizes(world: World, random: Random) -> tuple[Graph, ...]:
    graph = _single(world, random, size="big")
    return graph, _changed(graph, size="small")


def _relative_sizes(world: World, random: Random) -> tuple[Graph, ...]:
    first = draw_things(world, random, 1, world.focus, ("big",))
    second = draw_things(world, random, 1, sizes=("small",), taken=(first,))
    graph = Graph((first, second), "left")
    return graph, graph._replace(things=(first._replace(size="small"), second._replace(size="big")))


def _relative_positions(world: World, random: Random) -> tuple[Graph, ...]:
    pair = _pair(world, random, tinted=False)
    swapped = pair.things[1], pair.things[0]
    return tuple(pair._replace(relation=r, things=things) for r in ("left", "above") for things in (pair.things, swapped))


_SETS: dict[str, Callable[[World, Random], tuple[Graph, ...]]] = {
    "existence": _object,
    "count": _counts,
    "absolute position": _positions,
    "relative position": _relative_positions,
    "absolute size": _sizes,
    "relative size": _relative_sizes,
    "colour": _colours,
}
SETS = tuple(_SETS)


def attribute_set(kind: str, world: World, seed: int, name: str) -> Group:
    """Images that differ in one attribute alone, in one wording (after SPEC, arXiv:2312.00081).

    Existence: one image has the thing and the other does not; "a fox but no key" is true of one.
    """
    random = Random(seed)
    while not _belongs(graphs := _SETS[kind](world, random), world):
        pass
    background = other(KINDS, random)
    graphs = tuple(graph._replace(seed=seed, background=background) for graph in graphs)
    if kind == "existence":
        first, second = (graph.things[0].concept for graph in graphs)
        texts = [lacking(outline(graphs[0]), second), lacking(outline(graphs[1]), first)]
    else:
        frame = random.choice(range(world.frames))  # the first template of each relation: the same word order for all
        texts = [describe(graph, frame) for graph in graphs]
    images, boxes = zip(*(picture(graph, world.size) for graph in graphs), strict=True)
    return Group(name, kind, list(images), texts, {"graphs": [g.as_dict() for g in graphs], "boxes": list(boxes)})


def single_object(world: World, seed: int, concept: str) -> Graph:
    """A scene of one object, tinted or not, of any size, anywhere."""
    random = Random(seed)
    while True:
        colour = "" if world.natural and random.random() < 0.5 else other(world.palette, random)
        size = other(("", "", "big", "small"), random)
        graph = Graph((Things(1, concept, colour, size),), "", "", other(POSITIONS, random), other(KINDS, random), seed)
        if (world.split == "heldout-combinations" and colour) or not is_held_out(graph, world):
            return graph


def habit_pair(world: World, seed: int, concept: str) -> tuple[list[Graph], list[str]]:
    """A scene of one object in the habitual colour of its concept, the same scene in another colour, and their captions."""
    random = Random(seed)
    base = single_object(world, seed, concept)
    while True:
        colours = (world.habits[concept], other(world.palette, random, world.habits[concept]))
        pair = [_changed(base, colour=colour) for colour in colours]
        if not any(is_held_out(graph, world) for graph in pair):
            style = random.choice(styles(base, world.frames))
            return pair, [describe(graph, style) for graph in pair]
