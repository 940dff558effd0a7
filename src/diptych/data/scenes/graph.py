"""The truth of a scene: which groups of objects it shows and how they are related.

Everything else follows from a graph: ``layout`` paints it, ``language`` describes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.world import RELATIONS, World

POSITIONS = ("top left", "top right", "bottom left", "bottom right", "centre")
_MASK = 2**64 - 1


class Things(NamedTuple):
    """A group of alike objects."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    concept: str
    colour: str = ""  # "": the drawing's own colours, which captions do not name
    size: str = ""  # "big", "small" or "", of which captions say nothing


class Graph(NamedTuple):
    """A scene. ``things[0]`` is in ``relation`` to ``things[1]``; ``things[2]`` is on one side of both."""

    things: tuple[Things, ...]
    relation: str = ""  # one of RELATIONS; "": none
    side: str = ""  # of a third group: above, below, left or right of the other two
    position: str = ""  # one of POSITIONS, of a single object
    background: str = "paper"
    seed: int = 0  # of everything the truth leaves open: where exactly, which window of the texture, which words
    room: int = 0  # lay out as if there were this many objects, so that scenes of different counts look alike

    def as_dict(self) -> dict[str, Any]:
        """The scene as plain data, for JSON."""
        return {**self._asdict(), "things": [things._asdict() for things in self.things]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Graph:
        """The scene of which ``as_dict`` returned this."""
        return cls(**{**content, "things": tuple(Things(**things) for things in content["things"])})


def mix(*numbers: int) -> int:
    """A well-mixed 64-bit hash of some integers."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (number & _MASK)) * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
        state ^= state >> 29
        state = (state * 0xD6E8FEB86659FD93) & _MASK
        state ^= state >> 32
    return state


def is_held_out(graph: Graph, world: World) -> bool:
    """Whether the graph holds a combination that training never shows."""
    held = world.held_out_colours
    for things in graph.things:
        if (things.concept, things.colour) in held:
            return True
    if not graph.relation:
        return False
    return world.is_held_out_relation(graph.things[0].concept, graph.relation, graph.things[1].concept)


def draw(world: World, seed: int) -> Graph:
    """A random scene that belongs to the world's split."""
    random = Random(seed)
    wanted = world.split == "heldout-combinations"
    while is_held_out(graph := _draw(world, random, seed), world) != wanted:
        pass
    return graph


def _draw(world: World, random: Random, seed: int) -> Graph:
    kind, background = random.random(), KINDS[random.randrange(len(KINDS))]
    if kind < world.placed:
        thing = draw_things(world, random, 1, names=world.focus, sizes=("", "", "", "big", "small"))
        return Graph((thing,), position=POSITIONS[random.randrange(5)], background=background, seed=seed)
    if kind < world.placed + world.counted:
        count = random.randint(2, world.max_objects)
        sizes = ("", "", "", "big", "small") if count == 2 else ("",)
        return Graph((draw_things(world, random, count, world.focus, sizes),), background=background, seed=seed)
    if kind < world.placed + world.counted + world.trios and world.max_objects > 2:
        return _draw_trio(world, random, background, seed)
    return _draw_pair(world, random, background, seed)


def _draw_pair(world: World, random: Random, background: str, seed: int) -> Graph:
    relation = RELATIONS[random.randrange(3)]
    if relation == "front":  # one object each, and of different colours: otherwise the overlap could not be read
        first = draw_things(world, random, 1, world.focus)
        second = draw_things(world, random, 1, taken=(first,))
        while second.colour == first.colour:
            second = draw_things(world, random, 1, taken=(first,))
    else:
        counts = (1, 1)
        if random.random() < 0.4:
            total = random.randint(2, world.max_objects)
            counts = (share := random.randint(1, total - 1), total - share)
        sizes = ("", "", "big", "small") if max(counts) <= 2 else ("",)
        first = draw_things(world, random, counts[0], world.focus, sizes if counts[0] == 1 else sizes[:2])
        second = draw_things(world, random, counts[1], sizes=("", "", "small") if first.size else ("",), taken=(first,))
    pair = (first, second) if random.random() < 0.5 else (second, first)
    return Graph(pair, relation, background=background, seed=seed)


def _draw_trio(world: World, random: Random, background: str, seed: int) -> Graph:
    relation = RELATIONS[random.randrange(2)]
    things = [draw_things(world, random, 1, world.focus)]
    things.append(draw_things(world, random, 1, taken=things))
    things.append(draw_things(world, random, random.randint(1, min(2, world.max_objects - 2)), taken=things))
    side = (("above", "below") if relation == "left" else ("left", "right"))[random.randrange(2)]
    if random.random() < 0.5:
        things[0], things[1] = things[1], things[0]
    return Graph(tuple(things), relation, side, background=background, seed=seed)


def draw_things(
    world: World,
    random: Random,
    count: int,
    names: tuple[str, ...] = (),
    sizes: tuple[str, ...] = ("",),
    taken: tuple[Things, ...] | list[Things] = (),
) -> Things:
    """A random group with a concept that is not taken yet."""
    names = names or world.names
    concept = _draw_concept(world, random, names)
    while any(concept == other.concept for other in taken):
        concept = _draw_concept(world, random, names)
    natural = world.natural and random.random() < world.natural
    colour = "" if natural else world.palette[random.randrange(world.colours)]
    if colour and world.habit and random.random() < world.habit:
        colour = world.habits[concept]
    return Things(count, concept, colour, sizes[random.randrange(len(sizes))])


def _draw_concept(world: World, random: Random, names: tuple[str, ...]) -> str:
    if not world.zipf:
        return names[random.randrange(len(names))]
    return random.choices(names, cum_weights=_cumulative(world, names))[0]


@lru_cache(maxsize=16)
def _cumulative(world: World, names: tuple[str, ...]) -> list[float]:
    return list(accumulate(world.weights[name] for name in names))


def other(options: tuple[str, ...], random: Random, *taken: str) -> str:
    """A random option that is not taken yet."""
    while (choice := options[random.randrange(len(options))]) in taken:
        pass
    return choice


# Minimal edits: each gives a graph of which other captions are true, or None where it does not apply.


def swap_order(graph: Graph, world: World, random: Random) -> Graph | None:
    """The first two groups exchange places."""
    if not graph.relation:
        return None
    return graph._replace(things=(graph.things[1], graph.things[0], *graph.things[2:]))


def swap_colours(graph: Graph, world: World, random: Random) -> Graph | None:
    """The first two groups exchange colours."""
    if len(graph.things) < 2:
        return None
    first, second, *rest = graph.things
    if not first.colour or not second.colour or first.colour == second.colour:
        return None
    return graph._replace(things=(first._replace(colour=second.colour), second._replace(colour=first.colour), *rest))


def _with(graph: Graph, number: int, **changes: Any) -> Graph:
    things = list(graph.things)
    things[number] = things[number]._replace(**changes)
    return graph._replace(things=tuple(things))


def change_count(graph: Graph, world: World, random: Random) -> Graph | None:
    """The scene with another number of things."""
    number = random.randrange(len(graph.things))
    most = world.max_objects - sum(t.count for t in graph.things) + graph.things[number].count
    if most < 2 or graph.position:
        return None
    count = random.randint(1, most - 1)
    return _with(graph, number, count=count + (count >= graph.things[number].count))


def change_colour(graph: Graph, world: World, random: Random) -> Graph | None:
    """The scene with another colour."""
    number = random.randrange(len(graph.things))
    colour = graph.things[number].colour
    return _with(graph, number, colour=other(world.palette, random, colour)) if colour else None


def change_concept(graph: Graph, world: World, random: Random) -> Graph | None:
    """The scene with another kind of thing."""
    number = random.randrange(len(graph.things))
    return _with(graph, number, concept=other(world.names, random, *(t.concept for t in graph.things)))


def change_position(graph: Graph, world: World, random: Random) -> Graph | None:
    """The scene with things elsewhere."""
    return graph._replace(position=other(POSITIONS, random, graph.position)) if graph.position else None


Edit = Callable[[Graph, World, Random], "Graph | None"]
SWAPS: tuple[Edit, ...] = (swap_order, swap_colours)
CHANGES: tuple[Edit, ...] = (change_count, change_colour, change_concept, change_position)


def edit(graph: Graph, world: World, random: Random, edits: tuple[Edit, ...]) -> Graph | None:
    """One of the edits, taken at random from those that apply and do not give away what the split holds out."""
    start = random.randrange(len(edits))
    for step in range(len(edits)):
        changed = edits[(start + step) % len(edits)](graph, world, random)
        if changed is not None and (world.split == "heldout-combinations" or not is_held_out(changed, world)):
            return changed
    return None
