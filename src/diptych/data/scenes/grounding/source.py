"""The source of ``scenes:regions``."""

from __future__ import annotations

import hashlib
from collections import Counter
from random import Random
from typing import Any

from diptych.core.sample import Captions, Region, Sample
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.graph import Things, other
from diptych.data.scenes.grounding.crowd import Crowd, Seen, draw_crowd, owners, paint, seen_of
from diptych.data.scenes.grounding.refer import KINDS, NUMBERS, Reference, chosen, references, wrong_versions
from diptych.data.scenes.language import phrase
from diptych.data.scenes.world import World

FORMAT = 1  # counts up when the same address gives other scenes or texts
FRAMES = ("{}", "a picture of {}", "there is {}")
MENTIONED = 6  # kinds of things that a caption names at most
_REGIONS = 21  # a stream of seeds of its own

Kinds = list[tuple[str, str, int]]  # concept, colour, how many


class RegionScenes(Drawn):
    """Scenes of single objects, drawn on demand: each object that a phrase fits alone is a region with its visible box, its exact
    mask and wrong versions of the phrase. The target of a scene always is one. ``named``: every object is a region, with its colour
    and name as phrase, which others may share.

    Extra: ``boxes``, of all objects in painting order ({box, concept, colour, visible}), and ``refer``, parallel to the regions
    ({kind, object, distractors, small, target}): distractors are other objects of the same concept; small, whether the box covers
    less than a fiftieth of the picture.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return ("image", "text", "negatives", "regions")

    def fingerprint(self) -> str:
        """A hash of the world's options and of all that the pixels depend on."""
        return hashlib.sha256(f"regions {FORMAT} {self.world.fingerprint()}".encode()).hexdigest()[:16]

    def crowd(self, index: int) -> Crowd:
        """The scene at ``index``: of the draws of its seed the first with a phrase that fits the target alone."""
        return self._found(index)[0]

    def _found(self, index: int) -> tuple[Crowd, Any, list[Seen]]:
        size = self.world.size
        for attempt in range(1000):
            crowd = draw_crowd(self.world, self._seed(_REGIONS, index, attempt))
            owner = owners(crowd, size)
            seen = seen_of(crowd, owner)
            if any(references(seen, crowd.target, size, (kind,)) for kind in KINDS):
                return crowd, owner, seen
        raise RuntimeError(f"{self.address}: no scene {index} with a phrase that fits one object alone")  # pragma: no cover

    def drawn(self, index: int) -> Sample:
        """The sample at ``index``, from 0 on."""
        world = self.world
        crowd, owner, seen = self._found(index)
        random = Random(crowd.seed + 3)
        regions, refer = [], []

        def said(text: str) -> str:
            """A phrase as the regions have it: a name alone has no article."""
            return text.removeprefix("the ") if world.named else text

        for number, o in enumerate(seen):
            reference = Reference("colour", o.concept, o.colour) if world.named else chosen(seen, number, world.size, random)
            if reference is None:
                continue
            wrong = tuple(map(said, wrong_versions(reference, seen, number, world, random))) if world.wrong else ()
            mask = owner == number if world.masks else None
            left, top, right, bottom = o.box
            point = o.centre if world.masks and owner[int(o.centre[1]), int(o.centre[0])] == number else None
            regions.append(
                Region((float(left), float(top), float(right), float(bottom)), said(reference.words()), mask, wrong, point)
            )
            refer.append(_facts(reference, seen, number, crowd.target, world.size))
        texts, meanings, negatives = captions(seen, world, random)
        boxes = [{"box": list(o.box), "concept": o.concept, "colour": o.colour, "visible": round(o.visible, 4)} for o in seen]
        extra = {"boxes": boxes, "refer": refer, "labels": sorted({o.concept for o in seen})}
        name = f"{world.split}/{index}"
        text = Captions(texts, meanings)
        return Sample(name, extra, image=paint(crowd, world.size), text=text, negatives=negatives, regions=regions)


def _facts(reference: Reference, seen: list[Seen], number: int, target: int, size: int) -> dict[str, Any]:
    o = seen[number]
    area = (o.box[2] - o.box[0]) * (o.box[3] - o.box[1])
    return {
        "kind": reference.kind,
        "object": number,
        "distractors": sum(other_.concept == o.concept for other_ in seen) - 1,
        "small": area < size**2 / 50,
        "target": number == target,
    }


def captions(seen: list[Seen], world: World, random: Random) -> tuple[list[str], list[str], list[str]]:
    """A caption that lists the kinds of things, at most ``MENTIONED`` of them, its meaning, and a wrong version of it."""
    groups: Kinds = [(concept, colour, n) for (concept, colour), n in Counter((o.concept, o.colour) for o in seen).items()]
    random.shuffle(groups)
    mentioned = groups[:MENTIONED]
    frame = FRAMES[random.randrange(world.frames)]
    wrong = falsified(mentioned, groups, world, random)
    meaning = " + ".join(sorted(" ".join((str(n), colour, concept)) for concept, colour, n in mentioned))
    return [frame.format(listed(mentioned))], [meaning], [frame.format(listed(wrong)) if wrong else ""]


def listed(groups: Kinds) -> str:
    """ "a red fish, two blue keys and a green star"."""
    texts = [_named(*group) for group in groups]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _named(concept: str, colour: str, count: int) -> str:
    if count == 1:
        return phrase(Things(1, concept, colour))
    return " ".join((NUMBERS[count] if count < len(NUMBERS) else str(count), phrase(Things(2, concept, colour)).partition(" ")[2]))


def falsified(mentioned: Kinds, groups: Kinds, world: World, random: Random) -> Kinds | None:
    """The groups with the colours of two exchanged, or one colour changed, so that it is false; None if nothing was found."""
    held: frozenset[tuple[str, str]] = frozenset() if world.split == "heldout-combinations" else world.held_out_colours
    pairs = [
        (i, j)
        for i in range(len(mentioned))
        for j in range(i)
        if mentioned[i][1] != mentioned[j][1] and mentioned[i][0] != mentioned[j][0]
    ]
    random.shuffle(pairs)
    tries = []
    for i, j in pairs:
        swapped = list(mentioned)
        swapped[i], swapped[j] = (
            (mentioned[i][0], mentioned[j][1], mentioned[i][2]),
            (mentioned[j][0], mentioned[i][1], mentioned[j][2]),
        )
        tries.append(swapped)
    for i, (concept, colour, n) in enumerate(mentioned):
        tries.append([*mentioned[:i], (concept, other(world.palette, random, colour), n), *mentioned[i + 1 :]])
    for version in tries:
        named = [(concept, colour) for concept, colour, _ in version]
        if len(set(named)) == len(named) and held.isdisjoint(named) and any(g not in groups for g in version):
            return version
    return None
