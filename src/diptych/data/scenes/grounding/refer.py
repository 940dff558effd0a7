"""Phrases that refer to one object of a scene, what makes them true, and minimally wrong versions of them.

A phrase is used only where it is clearly true of one object and clearly false of all others: a difference in place or size too
small to see makes it unclear, and it is then not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from diptych.data.scenes.concepts import by_name
from diptych.data.scenes.grounding.crowd import Seen
from diptych.data.scenes.world import World

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
KINDS = ("name", "colour", "size", "extreme", "relation")
RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}  # axis, and 1 where less is true
EXTREMES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
OPPOSITE = {"left of": "right of", "above": "below", "leftmost": "rightmost", "topmost": "bottommost", "smaller": "bigger"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
MARGIN = 0.06  # of the picture's side: a smaller difference in place is unclear
RATIO = 1.25  # of sides: a smaller one is unclear
WHOLE = 0.8  # of its pixels must be visible of an object where its size is spoken of


class Reference(NamedTuple):
    """What a phrase says. colour "": it names none; word: of the size, the extreme or the relation; the anchor are all objects of a
    concept (and colour), as many as ``number``.
    """

    kind: str
    concept: str
    colour: str = ""
    word: str = ""
    anchor: str = ""
    anchor_colour: str = ""
    number: int = 0

    def words(self) -> str:
        """The phrase in English."""
        noun = by_name()[self.concept]
        colour = f"{self.colour} " if self.colour else ""
        if self.kind == "size":
            return f"the {self.word} of the two {colour}{noun.plural}"
        if self.kind == "extreme":
            return f"the {self.word} {colour}{noun.name}"
        if self.kind != "relation":
            return f"the {colour}{noun.name}"
        there = by_name()[self.anchor]
        tint = f"{self.anchor_colour} " if self.anchor_colour else ""
        many, name = (f"{NUMBERS[self.number]} ", there.plural) if self.number > 1 else ("", there.name)
        return f"the {colour}{noun.name} {self.word} the {many}{tint}{name}"


def alike(seen: Sequence[Seen], concept: str, colour: str) -> list[int]:
    """Numbers of the objects of a concept, and of a colour unless it is ""."""
    return [i for i, o in enumerate(seen) if o.concept == concept and colour in ("", o.colour)]


def holds(reference: Reference, seen: Sequence[Seen], number: int, size: int) -> bool | None:
    """Whether a phrase is true of an object; None: unclear. size: of the picture, in pixels."""
    own = alike(seen, reference.concept, reference.colour)
    if number not in own:
        return False
    if reference.kind == "size":
        return _is_sized(reference.word, [seen[i] for i in own], own.index(number))
    if reference.kind == "extreme":
        axis, sign = EXTREMES[reference.word]
        places = {i: sign * seen[i].centre[axis] for i in own}
        mine = places.pop(number)
        if not places:
            return False
        return _before(mine, min(places.values()), size)
    if reference.kind == "relation":
        axis, sign = RELATIONS[reference.word]
        there = alike(seen, reference.anchor, reference.anchor_colour)
        if len(there) != reference.number or number in there:
            return False
        return _before(sign * seen[number].centre[axis], min(sign * seen[i].centre[axis] for i in there), size)
    return True


def _before(a: float, b: float, size: int) -> bool | None:
    return None if abs(a - b) < MARGIN * size else a < b


def _is_sized(word: str, two: Sequence[Seen], which: int) -> bool | None:
    if len(two) != 2:
        return False
    sides = two[which].side, two[1 - which].side
    if min(o.visible for o in two) < WHOLE or max(sides) < RATIO * min(sides):
        return None
    return (sides[0] > sides[1]) == (word == "bigger")


def fits_alone(reference: Reference, seen: Sequence[Seen], number: int, size: int) -> bool:
    """Whether a phrase is clearly true of one object and clearly false of all others."""
    return all(holds(reference, seen, i, size) is (i == number) for i in range(len(seen)))


def references(seen: Sequence[Seen], number: int, size: int, kinds: Sequence[str] = KINDS) -> list[Reference]:
    """All phrases of these kinds that fit an object alone."""
    o = seen[number]
    made = []
    for kind in kinds:
        if kind == "name":
            made.append(Reference(kind, o.concept))
        elif kind == "colour":
            made.append(Reference(kind, o.concept, o.colour))
        elif kind in ("size", "extreme"):
            words = EXTREMES if kind == "extreme" else ("smaller", "bigger")
            made += [Reference(kind, o.concept, colour, word) for colour in (o.colour, "") for word in words]
        else:
            anchors = dict.fromkeys(
                pair for s in seen if s.concept != o.concept for pair in ((s.concept, s.colour), (s.concept, ""))
            )
            for concept, colour in anchors:
                count = len(alike(seen, concept, colour))
                if count < len(NUMBERS):
                    made += [Reference(kind, o.concept, o.colour, word, concept, colour, count) for word in RELATIONS]
    return [r for r in made if fits_alone(r, seen, number, size)]


def chosen(seen: Sequence[Seen], number: int, size: int, random: Random) -> Reference | None:
    """A phrase that fits an object alone: first a kind at random, so that no kind is rare because few of its phrases fit. None if
    none fits.
    """
    for kind in random.sample(KINDS, len(KINDS)):
        if found := references(seen, number, size, (kind,)):
            return found[random.randrange(len(found))]
    return None


def wrong_versions(reference: Reference, seen: Sequence[Seen], number: int, world: World, random: Random) -> list[str]:
    """Phrases with one attribute changed that are clearly false of the object; at most ``world.wrong``, in random order. Those that
    would name what the split holds out are left out.
    """
    held: frozenset[tuple[str, str]] = frozenset() if world.split == "heldout-combinations" else world.held_out_colours
    changed = [reference._replace(colour=c) for c in world.palette if reference.colour and c != reference.colour]
    changed += [reference._replace(concept=c) for c in random.sample(world.seen, min(len(world.seen), 6))]
    if reference.word:
        table = next((t for t in (RELATIONS, EXTREMES) if reference.word in t), None)
        words = list(table) if table else ["smaller", "bigger"]
        changed += [reference._replace(word=word) for word in words if word != reference.word]
    if reference.anchor:
        tint = reference.anchor_colour
        changed += [reference._replace(anchor_colour=c) for c in world.palette if tint and c != tint]
    right = {reference.words()}
    usable = [
        r
        for r in dict.fromkeys(changed)
        if (r.concept, r.colour) not in held
        and (r.anchor, r.anchor_colour) not in held
        and r.anchor != r.concept
        and holds(r, seen, number, world.size) is False
    ]
    texts = [text for text in dict.fromkeys(r.words() for r in usable) if text not in right]
    random.shuffle(texts)
    return texts[: world.wrong]
