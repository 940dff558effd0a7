"""Scenes of many single objects: which there are, where, and what is seen of each."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np

from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.graph import Things, draw_things, other
from diptych.data.scenes.layout import blit, ground
from diptych.data.scenes.sprites import sprite
from diptych.data.scenes.world import World

# Longer sides as shares of the picture, for scenes of at most so many objects; neighbours differ by a factor of 1.3 or more.
SIDES = ((4, (0.24, 0.32, 0.42)), (7, (0.18, 0.24, 0.32)), (12, (0.14, 0.19, 0.26)), (99, (0.11, 0.15, 0.2)))
TINY = (0.09, 0.12)  # of small objects
SAME_COLOUR = 0.4  # chance that an object of the target's kind has its colour, too, and that another object has it
AGAIN = 0.35  # chance that an object repeats an earlier one, so that there are groups to refer to
TRIES = 30  # places that are tried for an object before the scene is drawn anew


class Thing(NamedTuple):
    """One object. x, y: the sprite's upper left corner in pixels; side: its longer side in pixels; tiny: whether it was drawn small
    on purpose.
    """

    concept: str
    colour: str
    side: int
    x: int
    y: int
    flip: bool
    tiny: bool = False


class Crowd(NamedTuple):
    """The truth of a scene. things: in painting order; the first object of ``target`` is what the scene was drawn around."""

    things: tuple[Thing, ...]
    background: str
    seed: int
    target: int = 0


class Seen(NamedTuple):
    """What is seen of an object: the tight box around its visible pixels, and the share of its pixels that is visible."""

    concept: str
    colour: str
    side: int
    box: tuple[int, int, int, int]
    visible: float
    tiny: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box: x, y in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def shape_of(thing: Thing) -> np.ndarray:
    """The opaque pixels of an object's sprite, bool [height, width]."""
    mask = sprite(thing.concept, thing.colour, thing.side).mask
    return mask[:, ::-1] if thing.flip else mask


def owners(crowd: Crowd, size: int) -> np.ndarray:
    """Of each pixel the number of the object that is seen there; −1: the background. int16 [size, size]."""
    owner = np.full((size, size), -1, np.int16)
    for number, thing in enumerate(crowd.things):
        mask = shape_of(thing)
        owner[thing.y : thing.y + mask.shape[0], thing.x : thing.x + mask.shape[1]][mask] = number
    return owner


def seen_of(crowd: Crowd, owner: np.ndarray) -> list[Seen]:
    """What is seen of each object."""
    result = []
    for number, thing in enumerate(crowd.things):
        mask = owner == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        share = int(mask.sum()) / int(shape_of(thing).sum())
        result.append(Seen(thing.concept, thing.colour, thing.side, box, share, thing.tiny))
    return result


def paint(crowd: Crowd, size: int) -> np.ndarray:
    """The picture, uint8 [size, size, 3]."""
    canvas = ground(crowd.background, Random(crowd.seed + 2), size).copy()
    for thing in crowd.things:
        blit(canvas, sprite(thing.concept, thing.colour, thing.side), thing.x, thing.y, thing.flip)
    return canvas.astype(np.uint8)


def draw_crowd(world: World, seed: int) -> Crowd:
    """A random scene that belongs to the world's split; the first object drawn is of a held-out combination or concept if the split
    is of these.
    """
    random = Random(seed)
    while True:
        placed = _placed(world, random, _kinds(world, random))
        if placed is not None:
            things, target = placed
            return Crowd(tuple(things), KINDS[random.randrange(len(KINDS))], seed, target)


def _kinds(world: World, random: Random) -> list[Things]:
    """Concept and colour of each object, the target's first: then as many of its kind as the world has distractors, then others."""
    count = random.randint(min(3, world.things), world.things)
    held = world.held_out_colours
    wanted = world.split == "heldout-combinations"
    target = draw_things(world, random, 1, world.focus)
    while ((target.concept, target.colour) in held) != wanted:
        target = draw_things(world, random, 1, world.focus)
    kinds = [target]
    while len(kinds) < min(count, 1 + world.distractors):
        colour = target.colour if random.random() < SAME_COLOUR else other(world.palette, random, target.colour)
        if (target.concept, colour) not in held or colour == target.colour:
            kinds.append(target._replace(colour=colour))
    own = len(kinds)
    while len(kinds) < count:
        if len(kinds) > own and random.random() < AGAIN:
            kinds.append(kinds[random.randrange(own, len(kinds))])
            continue
        thing = draw_things(world, random, 1, taken=(target,))
        if random.random() < SAME_COLOUR:
            thing = thing._replace(colour=target.colour)
        if (thing.concept, thing.colour) not in held:
            kinds.append(thing)
    return kinds


def _placed(world: World, random: Random, kinds: list[Things]) -> tuple[list[Thing], int] | None:
    """The objects at their places in painting order, and the number of the target among them; None if there is no room for one."""
    sides = next(sides for most, sides in SIDES if len(kinds) <= most)
    order = list(range(len(kinds)))
    random.shuffle(order)
    owner = np.full((world.size, world.size), -1, np.int16)
    pixels: list[int] = []
    things: list[Thing] = []
    for kind in (kinds[i] for i in order):
        tiny = random.random() < world.tiny
        side = max(6, round((TINY if tiny else sides)[random.randrange(len(TINY if tiny else sides))] * world.size))
        thing = Thing(kind.concept, kind.colour, side, 0, 0, random.random() < 0.5, tiny)
        mask = shape_of(thing)
        height, width = mask.shape
        for _ in range(TRIES):
            x, y = random.randrange(world.size - width + 1), random.randrange(world.size - height + 1)
            if not _hides_too_much(owner[y : y + height, x : x + width], mask, owner, pixels, world.crowded):
                break
        else:
            return None
        owner[y : y + height, x : x + width][mask] = len(things)
        pixels.append(int(mask.sum()))
        things.append(thing._replace(x=x, y=y))
    return things, order.index(0)


def _hides_too_much(under: np.ndarray, mask: np.ndarray, owner: np.ndarray, pixels: list[int], most: float) -> bool:
    """Whether a new object would leave less than 1 − ``most`` of the pixels of any earlier one."""
    covered, counts = np.unique(under[mask], return_counts=True)
    for number, hidden in zip(covered.tolist(), counts.tolist(), strict=True):
        if number >= 0 and int((owner == number).sum()) - hidden < (1 - most) * pixels[number]:
            return True
    return False
