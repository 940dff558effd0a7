"""Exact preferences from scenes: the rejected answer is the right one with a single fact changed.

A description is written twice in the same wording, of the scene and of a scene that differs in the colour, the count, the kind or
the place of one group; a short answer is replaced by another possible answer to the same question. So what is wrong, and where, is
known without a judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from diptych.data.conversations.turns import DESCRIBE
from diptych.data.preferences import Preference
from diptych.data.preferences.spans import differing
from diptych.data.scenes import language
from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.facts import facts_of
from diptych.data.scenes.graph import POSITIONS, Graph, is_held_out, other
from diptych.data.scenes.world import World

FACTS = ("colour", "count", "object", "relation", "position")
_SIDES = {"above": "below", "below": "above", "left": "right", "right": "left"}

Change = Callable[[Graph, int, World, Random], "tuple[Graph, int] | None"]  # of a scene and a wording: another scene and wording


class Pair(NamedTuple):
    """A question with two answers."""

    prompt: str
    preference: Preference


def _with(graph: Graph, number: int, **changes: object) -> Graph:
    """The scene with one group changed."""
    things = tuple(t._replace(**changes) if i == number else t for i, t in enumerate(graph.things))  # type: ignore[arg-type]
    return graph._replace(things=things)


def _colour(graph: Graph, style: int, world: World, random: Random) -> tuple[Graph, int] | None:
    """Another colour of a group of which captions name the colour."""
    coloured = [i for i, things in enumerate(graph.things) if things.colour]
    if not coloured:
        return None
    number = coloured[random.randrange(len(coloured))]
    return _with(graph, number, colour=other(world.palette, random, graph.things[number].colour)), style


def _count(graph: Graph, style: int, world: World, random: Random) -> tuple[Graph, int] | None:
    """Another number of objects in a group, never one: "a fox" is true of three foxes."""
    if graph.position:
        return None
    number = random.randrange(len(graph.things))
    most = world.max_objects - sum(t.count for t in graph.things) + graph.things[number].count
    counts = [n for n in range(2, most + 1) if n != graph.things[number].count]
    return (_with(graph, number, count=counts[random.randrange(len(counts))]), style) if counts else None


def _object(graph: Graph, style: int, world: World, random: Random) -> tuple[Graph, int] | None:
    """A kind of thing that the scene does not show."""
    number = random.randrange(len(graph.things))
    return _with(graph, number, concept=other(world.names, random, *(t.concept for t in graph.things))), style


def _relation(graph: Graph, style: int, world: World, random: Random) -> tuple[Graph, int] | None:
    """The opposite relation, or the opposite side of the third group. The groups keep their order in the words: the scene has them
    exchanged, and the wording is the one that begins with the other group.
    """
    if not graph.relation:
        return None
    if graph.side and random.random() < 0.5:
        return graph._replace(side=_SIDES[graph.side]), style
    template, frame = divmod(style, language.FRAMES)
    return graph._replace(things=(graph.things[1], graph.things[0], *graph.things[2:])), (template ^ 1) * language.FRAMES + frame


def _position(graph: Graph, style: int, world: World, random: Random) -> tuple[Graph, int] | None:
    """Another place of a single object."""
    return (graph._replace(position=other(POSITIONS, random, graph.position)), style) if graph.position else None


CHANGES: dict[str, Change] = {
    "colour": _colour,
    "count": _count,
    "object": _object,
    "relation": _relation,
    "position": _position,
}


def description_pair(graph: Graph, world: World, random: Random, facts: Sequence[str] = FACTS) -> Pair | None:
    """The request for a description, with a true one and the same with one fact changed; None if no such fact can be changed
    without showing what the world's split holds out.
    """
    if 0 < world.told < len(graph.things):
        graph = language.partial(graph, world.told)
    wordings = language.styles(graph, world.frames)
    style = wordings[random.randrange(len(wordings))]
    chosen = language.describe(graph, style)
    for fact in random.sample(list(facts), len(facts)):
        changed = CHANGES[fact](graph, style, world, random)
        if changed is None or (world.split != "heldout-combinations" and is_held_out(changed[0], world)):
            continue
        return Pair(DESCRIBE, preference(chosen, language.describe(*changed), fact, graph))
    return None


def question_pair(graph: Graph, world: World, random: Random, facts: Sequence[str] = FACTS) -> Pair | None:
    """One of the scene's questions, its answer and another answer of the same kind; None if no question is about such a fact. Half
    of the questions ask for a short answer in the words that benchmarks use.
    """
    known = [q for q in language.questions(graph, world) if fact_of(q["kind"]) in facts]
    if not known:
        return None
    asked = known[random.randrange(len(known))]
    wrong = _wrong_answer(asked, graph, world, random)
    words = asked["question"] + random.choice(("", f" {language.SHORT}"))
    return Pair(words, preference(asked["answer"], wrong, fact_of(asked["kind"]), graph))


def fact_of(kind: str) -> str:
    """Which fact an answer to a question of this kind states."""
    return {"count": "count", "colour": "colour", "relation": "relation"}.get(kind, "object")


def _wrong_answer(asked: dict[str, str], graph: Graph, world: World, random: Random) -> str:
    """Another possible answer to a question."""
    kind, answer = asked["kind"], asked["answer"]
    if answer in ("yes", "no"):
        return "no" if answer == "yes" else "yes"
    if kind == "count":
        return other(language.NUMBERS[1 : world.max_objects + 1], random, answer)
    if kind == "colour":
        return other(world.palette, random, answer)
    concept = by_name()[other(world.names, random, *(t.concept for t in graph.things))]
    return concept.name if answer in by_name() else concept.plural


def preference(chosen: str, rejected: str, fact: str, graph: Graph) -> Preference:
    """The pair with the spans in which the answers differ and the facts of the scene in words."""
    right, wrong = differing(chosen, rejected)
    return Preference(chosen, rejected, wrong, right, fact, tuple(facts_of(graph)))


def pair_of(graph: Graph, world: World, describe: float, facts: Sequence[str] = FACTS) -> Pair | None:
    """The pair of a scene, always the same for the same scene. describe: the chance that it is a description."""
    random = Random(graph.seed + 7)
    makers = [description_pair, question_pair]
    if random.random() >= describe:
        makers.reverse()
    if describe in (0.0, 1.0):
        makers = makers[:1]
    return next((pair for make in makers if (pair := make(graph, world, random, facts)) is not None), None)
