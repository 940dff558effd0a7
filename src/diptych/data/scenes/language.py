"""Texts about a scene: captions in several wordings, their meanings, minimally false captions, questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from diptych.core.sample import Turn
from diptych.data.conversations.turns import DESCRIBE, question
from diptych.data.scenes.concepts import article, by_name
from diptych.data.scenes.graph import CHANGES, SWAPS, Graph, Things, edit, other
from diptych.data.scenes.world import World

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_RELATIONS = {
    "left": ("{a} left of {b}", "{b} right of {a}", "{a} to the left of {b}", "{b} to the right of {a}"),
    "above": ("{a} above {b}", "{b} below {a}"),
    "front": ("{a} in front of {b}", "{b} behind {a}"),
}
_PHRASES = {"left": ("left of", "right of"), "above": ("above", "below"), "front": ("in front of", "behind")}
_SIDES = {
    "above": "above them",
    "below": "below them",
    "left": "to the left of them",
    "right": "to the right of them",
}
FRAMES = 3  # "…", "a picture of …" and "there is …"; a world may know only the first ones


@lru_cache(maxsize=65536)
def phrase(things: Things) -> str:
    """ "a big red fox", "two keys"."""
    noun = by_name()[things.concept]
    words = [word for word in (things.size, things.colour) if word]
    if things.count == 1:
        return article(" ".join([*words, noun.name]))
    return " ".join([NUMBERS[things.count], *words, noun.plural])


@lru_cache(maxsize=65536)
def _key(things: Things) -> str:
    return " ".join([str(things.count), *(word for word in (things.size, things.colour) if word), things.concept])


def styles(graph: Graph, frames: int = FRAMES) -> list[int]:
    """The wordings that ``describe`` has for a graph."""
    templates = len(_RELATIONS[graph.relation]) if graph.relation else 1
    return [template * FRAMES + frame for template in range(templates) for frame in range(frames)]


def describe(graph: Graph, style: int) -> str:
    """All facts of the graph, in one of its wordings."""
    frame, template = style % FRAMES, style // FRAMES
    phrases = [phrase(things) for things in graph.things]
    first = graph.things[0]
    if graph.relation:
        pattern = _RELATIONS[graph.relation][template]
        text = pattern.format(a=phrases[0], b=phrases[1])
        first = graph.things[0] if pattern.startswith("{a}") else graph.things[1]
        if graph.side:
            text += f", with {phrases[2]} {_SIDES[graph.side]}"
    elif graph.position:
        text = f"{phrases[0]} in the {graph.position}"
    else:
        text = _listed(phrases)
    if frame == 0:
        return text
    return f"a picture of {text}" if frame == 1 else f"there {'is' if first.count == 1 else 'are'} {text}"


def _listed(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def meaning(graph: Graph, background: str = "", absent: str = "") -> str:
    """The facts stated, in one canonical form."""
    keys = [_key(things) for things in graph.things]
    if graph.relation:
        text = f"{keys[0]} {graph.relation} {keys[1]}"
        if graph.side:
            text += f" | {keys[2]} {graph.side}"
    else:
        text = " + ".join(sorted(keys))
        if graph.position:
            text += f" @ {graph.position}"
    return text + (f" | on {background}" if background else "") + (f" | no {absent}" if absent else "")


def outline(graph: Graph, colours: bool = False) -> Graph:
    """The graph reduced to the content of short captions: names and counts, perhaps colours."""
    things = tuple(Things(t.count, t.concept, t.colour if colours else "") for t in graph.things)
    return graph._replace(things=things, relation="", side="", position="")


def partial(graph: Graph, most: int) -> Graph:
    """The graph without its last groups, for captions that do not mention them."""
    kept = graph.things[:most]
    return graph._replace(things=kept, relation=graph.relation if len(kept) > 1 else "", side="")


def lacking(graph: Graph, absent: str) -> str:
    """ "a fox but no key"."""
    return f"{_listed([phrase(things) for things in graph.things])} but no {absent}"


def captions(graph: Graph, world: World, only_full: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Captions, meanings and negatives of a scene; or ``only_full`` paraphrases of the full description."""
    shown = tuple(things.concept for things in graph.things)  # none of these is absent, whether mentioned or not
    if 0 < world.told < len(graph.things):
        graph = partial(graph, world.told)
    random = Random(graph.seed + 1)
    texts, meanings, negatives = [], [], []
    fact, wordings = meaning(graph), styles(graph, world.frames)
    start = random.randrange(len(wordings))
    for number in range(min(only_full or world.full, len(wordings))):
        style = wordings[(start + 5 * number) % len(wordings)]  # no length has a divisor in common with 5: no wording twice
        wrong = edit(graph, world, random, SWAPS) or edit(graph, world, random, CHANGES)
        texts.append(describe(graph, style))
        meanings.append(fact)
        negatives.append(describe(wrong, style) if wrong else "")
    if only_full:
        return texts, meanings, negatives
    if random.random() < world.short:
        brief = outline(graph, colours=random.random() < 0.5)
        wrong = edit(brief, world, random, CHANGES)
        if (text := describe(brief, 0)) not in texts:  # with few facts, the short form is the full one
            texts.append(text)
            meanings.append(meaning(brief))
            negatives.append(describe(wrong, 0) if wrong else "")
    if random.random() < world.long:
        absent = other(world.names, random, *shown) if random.random() < 0.5 else ""
        tail = f", on {graph.background}" + (f" and with no {absent}" if absent else "")
        style = random.choice(wordings)
        wrong = edit(graph, world, random, SWAPS) or edit(graph, world, random, CHANGES)
        texts.append(describe(graph, style) + tail)
        meanings.append(meaning(graph, graph.background, absent))
        negatives.append(describe(wrong, style) + tail if wrong else "")
    if random.random() < world.absent:
        brief = outline(graph)
        absent = other(world.names, random, *shown)
        present = random.randrange(len(brief.things))
        wrong = brief._replace(things=tuple(t._replace(concept=absent) if i == present else t for i, t in enumerate(brief.things)))
        texts.append(lacking(brief, absent))
        meanings.append(meaning(brief, absent=absent))
        negatives.append(lacking(wrong, brief.things[present].concept))
    return texts, meanings, negatives


def questions(graph: Graph, world: World) -> list[dict[str, str]]:
    """Questions of every kind the scene can answer; as many existence questions say yes as no."""
    random = Random(graph.seed + 3)
    chosen = graph.things[random.randrange(len(graph.things))]
    noun = by_name()[chosen.concept]
    absent = by_name()[other(world.names, random, *(t.concept for t in graph.things))]
    one = chosen.count == 1
    asked = [
        ("count", f"how many {noun.plural} are there?", NUMBERS[chosen.count]),
        ("existence", f"is there {article(noun.name)}?" if one else f"are there {noun.plural}?", "yes"),
        ("existence", f"is there {article(absent.name)}?" if one else f"are there {absent.plural}?", "no"),
    ]
    if chosen.colour:
        subject = f"is the {noun.name}" if one else f"are the {noun.plural}"
        asked.append(("colour", f"what colour {subject}?", chosen.colour))
    if graph.position:
        asked.append(("what-is", f"what is in the {graph.position}?", noun.name))
    if graph.relation:
        forth, back = _PHRASES[graph.relation]
        pair = graph.things[:2]
        if random.random() < 0.5:
            pair, forth, back = pair[::-1], back, forth
        a, b = (by_name()[t.concept].name if t.count == 1 else by_name()[t.concept].plural for t in pair)
        verb = "is" if pair[0].count == 1 else "are"
        asked.append(("relation", f"{verb} the {a} {forth} the {b}?", "yes"))
        asked.append(("relation", f"{verb} the {a} {back} the {b}?", "no"))
        asked.append(("what-is", f"what is {forth} the {b}?", a))
    return [{"question": question, "answer": answer, "kind": kind} for kind, question, answer in asked]


SHORT = "Answer the question using a single word or phrase."


def conversation(graph: Graph, asked: Sequence[dict[str, str]], caption: str, most: int) -> list[Turn]:
    """Some of a scene's questions with their answers, at most ``most``; a request for a description counts as two, since its answer
    is much longer.

    Every other question asks for a short answer in the words that benchmarks use.
    """
    random = Random(graph.seed + 5)
    pairs = [(q["question"] + random.choice(("", f" {SHORT}")), q["answer"]) for q in asked]
    chosen = random.sample([*pairs, *[(DESCRIBE, caption)] * 2], len(pairs) + 2)
    chosen = list(dict.fromkeys(chosen))[:most]
    turns = [Turn(role, text) for pair in chosen for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [question(turns[0].text), *turns[1:]]


def options(graph: Graph, world: World, asked: dict[str, str], most: int = 4) -> tuple[list[str], list[str]]:
    """The possible answers to a question of ``questions``, in random order, and for each a caption that says the same.

    At most ``most`` where any concept or colour could be; the right one is always among them.
    """
    random = Random(f"{graph.seed} {asked['question']}")
    kind, question, answer = asked["kind"], asked["question"].rstrip("?"), asked["answer"]
    nouns = {noun: c for c in by_name().values() for noun in (c.name, c.plural)}
    if kind == "count":
        noun = question.removeprefix("how many ").removesuffix(" are there")
        return _shuffled(random, [(NUMBERS[n], phrase(Things(n, nouns[noun].name))) for n in range(1, world.max_objects + 1)])
    if kind == "existence":
        thing = question.removeprefix("is there ").removeprefix("are there ")
        verb, bare = question.split()[0], thing.removeprefix("an ").removeprefix("a ")
        return _shuffled(random, [("yes", f"there {verb} {thing}"), ("no", f"there {verb} no {bare}")])
    if kind == "relation":
        text = question.partition(" the ")[2]
        where = next(p for pair in _PHRASES.values() for p in pair if f" {p} the " in text)
        back = next(b if where == a else a for a, b in _PHRASES.values() if where in (a, b))
        a, b = text.split(f" {where} the ")
        things = {t.concept: t.count for t in graph.things}
        a, b = (phrase(Things(things[c], c)) for c in (nouns[a].name, nouns[b].name))
        return _shuffled(random, [("yes", f"{a} {where} {b}"), ("no", f"{a} {back} {b}")])
    if kind == "colour":
        tinted = next(
            t
            for t in graph.things
            if question.endswith((f" the {by_name()[t.concept].name}", f" the {by_name()[t.concept].plural}"))
        )
        others = random.sample([c for c in world.palette if c != answer], min(most, len(world.palette)) - 1)
        return _shuffled(random, [(c, phrase(Things(tinted.count, tinted.concept, c))) for c in [answer, *others]])
    place = question.removeprefix("what is ")
    right = next(t for t in graph.things if t.concept == nouns[answer].name)
    known = {t.concept for t in graph.things}
    others = random.sample([c for c in world.names if c not in known], min(most - 1, len(world.names) - len(known)))
    shown = [right._replace(concept=c, colour="", size="") for c in [right.concept, *others]]
    return _shuffled(random, [(_noun(t), f"{phrase(t)} {place}") for t in shown])


def _noun(things: Things) -> str:
    concept = by_name()[things.concept]
    return concept.name if things.count == 1 else concept.plural


def _shuffled(random: Random, pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    random.shuffle(pairs)
    return [answer for answer, _ in pairs], [statement for _, statement in pairs]


def extra(graph: Graph, boxes: list[dict[str, Any]], world: World) -> dict[str, Any]:
    """All that is known of a scene beyond its captions."""
    return {
        "graph": graph.as_dict(),
        "boxes": boxes,
        "labels": [things.concept for things in graph.things],
        "questions": questions(graph, world),
    }
