"""Contrast sets: one scene several times, changed in one attribute only."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.graph import POSITIONS, Graph, mix
from diptych.data.scenes.layout import picture
from diptych.data.scenes.world import SPLITS, World

ATTRIBUTES = ("colour", "size", "position", "background")
_CONTRASTS = 7  # a stream of seeds of its own


@dataclass(frozen=True)
class ContrastSet:
    """``images[g]`` shows ``concept`` with the attribute's value ``groups[g]``; nothing else differs."""

    id: str
    attribute: str
    concept: str
    groups: tuple[str, ...]
    images: list[np.ndarray]  # uint8 [height, width, 3] each


def contrast_sets(world: World, attribute: str, n: int, seed: int = 0) -> list[ContrastSet]:
    """n sets, the concepts in turn. Concepts of which training never saw a colour are left out of sets of colours."""
    if attribute not in ATTRIBUTES:
        raise DiptychError(f"contrast sets: no attribute '{attribute}'{nearest(attribute, ATTRIBUTES)}")
    values = {"colour": world.palette, "size": ("small", "big"), "position": POSITIONS, "background": tuple(KINDS)}[attribute]
    held = world.held_out_colours
    seen = [c for c in world.names if attribute != "colour" or not any((c, k) in held for k in values)]
    concepts = seen or list(world.names)
    return [_set(world, attribute, values, concepts[i % len(concepts)], mix(seed, SPLITS.index(world.split), _CONTRASTS, i), i)
            for i in range(n)]  # fmt: skip


def _set(world: World, attribute: str, values: tuple[str, ...], concept: str, seed: int, number: int) -> ContrastSet:
    from diptych.data.scenes.controlled import single_object

    graph = single_object(world, seed, concept)
    if attribute == "colour" or not graph.things[0].colour:
        colours = [k for k in world.palette if (concept, k) not in world.held_out_colours]
        graph = graph._replace(things=(graph.things[0]._replace(colour=Random(seed).choice(colours)),))
    images = [picture(_changed(graph, attribute, value), world.size)[0] for value in values]
    return ContrastSet(f"{attribute}/{number}", attribute, concept, values, images)


def _changed(graph: Graph, attribute: str, value: str) -> Graph:
    changes: dict[str, Any] = {attribute: value}
    if attribute in ("colour", "size"):
        return graph._replace(things=(graph.things[0]._replace(**changes),))
    return graph._replace(**changes)
