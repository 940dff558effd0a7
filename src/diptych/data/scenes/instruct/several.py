"""Questions about several pictures, and their twins: the same pictures in another order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from diptych.core.errors import DiptychError
from diptych.data.scenes.graph import Graph, draw
from diptych.data.scenes.instruct.change import TRIES, Change, Exchange, Pair, Setting, belong, change, drawn_changes, is_, noun
from diptych.data.scenes.instruct.single import BACK, SINGLE, SUITED, WHERE
from diptych.data.scenes.language import NUMBERS, describe, meaning, phrase

ORDINALS = ("first", "second", "third", "fourth")


class Talk(NamedTuple):
    """One conversation: the pictures that it begins with, and what is asked and answered about them, in order."""

    graphs: tuple[Graph, ...]
    exchanges: tuple[Exchange, ...]


Twins = tuple[Talk, Talk]


def which(setting: Setting, random: Random, seed: int) -> Twins | None:
    """Which of two to four pictures a description is true of; the others differ from it in one fact each."""
    world, wanted = setting.world, random.randint(2, len(ORDINALS))
    right = draw(world, random.getrandbits(62))._replace(seed=seed)
    others: dict[str, Graph] = {}
    for _ in range(4 * wanted):
        made = change(right, random.choice(("colour", "count", "concept", "order", "position")), world, random)
        if made is not None and len(others) < wanted - 1:
            others.setdefault(meaning(made.second), made.second)
    others.pop(meaning(right), None)
    graphs = [right, *others.values()]
    if len(graphs) < wanted or not belong(tuple(graphs), world):
        return None
    random.shuffle(graphs)
    turned = [*graphs[1:], graphs[0]]
    question = f"which picture shows {describe(right, 0)}?"
    talks = []
    for order in (graphs, turned):
        place = order.index(right)
        answer = f"the {ORDINALS[place]} picture"
        exchange = Exchange("which", f"{wanted} pictures", question, answer, {"place": place, "of": wanted})
        talks.append(Talk(tuple(order), (exchange,)))
    return talks[0], talks[1]


def difference(c: Change) -> str:
    """What differs between the first and the second picture, in words."""
    a, b = c.first.things[c.number], c.second.things[c.number]
    if c.what == "colour":
        return f"the {noun(a)} {is_(a)} {a.colour} in the first picture and {b.colour} in the second"
    if c.what == "count":
        kind = f"{noun(a._replace(count=2))}"
        return f"{kind}: {NUMBERS[a.count]} in the first picture and {NUMBERS[b.count]} in the second"
    if c.what == "concept":
        return f"the first picture shows {phrase(a)} and the second {phrase(b)}"
    if c.what == "order":
        one, two = c.first.things[:2]
        relation = c.first.relation
        return (
            f"the {noun(one)} {is_(one)} {WHERE[relation]} the {noun(two)} in the first picture and {BACK[relation]} in the second"
        )
    return f"the {noun(a)} is in the {c.first.position} of the first picture and in the {c.second.position} of the second"


def differs(setting: Setting, random: Random, seed: int) -> Twins | None:
    """What differs between two pictures."""
    found = next(drawn_changes(setting.world, random, seed, ("colour", "count", "concept", "order", "position")), None)
    if found is None:
        return None
    skill = {"concept": "existence", "order": "relation"}.get(found.what, found.what)
    talks = []
    for c in (found, found._replace(first=found.second, second=found.first)):
        exchange = Exchange("differs", skill, "what differs between the two pictures?", difference(c), {"change": c.what})
        talks.append(Talk((c.first, c.second), (exchange,)))
    return talks[0], talks[1]


SEVERAL: dict[str, Callable[[Setting, Random, int], Twins | None]] = {"which": which, "differs": differs}
KINDS = (*SINGLE, *SEVERAL)


def twins(kind: str, setting: Setting, seed: int, others: tuple[str, ...] = (), turns: int = 1) -> Twins:
    """Two conversations that begin with a question of this kind, the same in both, with different answers. seed: decides all.

    others: the kinds of which further questions may be, if they fit the pictures; turns: how many questions at most, where one that
    refers to earlier ones counts with these. Raises DiptychError for a world in which no such question can be asked.
    """
    random = Random(seed)
    if kind in SEVERAL:
        for _ in range(TRIES):
            made = SEVERAL[kind](setting, random, seed)
            if made is not None:
                return made
        raise DiptychError(f"instruct: no question of the kind '{kind}' in {TRIES} tries; the world is too small for it")
    for c in drawn_changes(setting.world, random, seed, SUITED[kind]):
        pairs = SINGLE[kind](c, setting, random)
        if not pairs:
            continue
        chosen = [pairs[random.randrange(len(pairs))]]
        for more in random.sample(others, len(others)):
            found = [] if more == kind or more in SEVERAL else SINGLE[more](c, setting, random)
            if found:
                chosen.append(found[random.randrange(len(found))])
        kept: list[Pair] = []
        used = 0
        for pair in chosen:
            if not kept or used + len(pair[0].before) + 1 <= turns:
                kept.append(pair)
                used += len(pair[0].before) + 1
        firsts, seconds = zip(*kept, strict=True)
        return Talk((c.first,), tuple(firsts)), Talk((c.second,), tuple(seconds))
    raise DiptychError(f"instruct: no question of the kind '{kind}' in {TRIES} scenes; the world is too small for it")
