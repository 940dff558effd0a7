"""The built-in world as a data source."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Captions, Conversation, Sample
from diptych.data.scenes import language
from diptych.data.scenes.controlled import SETS, SKILLS, attribute_set, group, habit_pair, single_object
from diptych.data.scenes.graph import SWAPS, Graph, draw, edit, mix
from diptych.data.scenes.layout import picture
from diptych.data.scenes.world import SPLITS, World, parse
from diptych.data.source import Group, Problem

_SCENES, _SINGLES, _GROUPS, _SETS, _HABITS = 0, 1, 2, 3, 4  # streams of seeds that never meet


def open_scenes(address: str) -> Scenes:
    """``scenes:``, ``scenes:small``, ``scenes:full?size=96&split=test`` …"""
    return Scenes(parse(address), address)


class Scenes:
    """Scenes drawn on demand; ``scenes[i]`` depends on the world's options and i alone."""

    skills: tuple[str, ...] = SKILLS
    set_kinds: tuple[str, ...] = SETS

    def __init__(self, world: World, address: str = "scenes:"):
        self.world = world
        self.address = address
        self.problems: list[Problem] = []

    @property
    def image_size(self) -> int:
        """Pixels, height and width, of every picture."""
        return self.world.size

    def __len__(self) -> int:
        return len(self.world)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.address} has {len(self)} samples; there is no number {index}")
        return self._sample(self.graph(index), f"{self.world.split}/{index}")

    def fingerprint(self) -> str:
        return self.world.fingerprint()

    def split(self, name: str) -> Scenes:
        """One of train, validation, test, heldout-combinations, heldout-concepts: each has seeds of its own."""
        preset, _, query = self.address.partition("?")
        options = [option for option in query.split("&") if option and not option.startswith("split=")]
        return Scenes(self.world.with_split(name), f"{preset}?{'&'.join([*options, f'split={name}'])}")

    def _seed(self, *stream: int) -> int:
        return mix(self.world.seed, SPLITS.index(self.world.split), *stream)

    def graph(self, index: int) -> Graph:
        return draw(self.world, self._seed(_SCENES, index))

    def _sample(self, graph: Graph, name: str, only_full: int = 0) -> Sample:
        image, boxes = picture(graph, self.world.size)
        texts, meanings, negatives = language.captions(graph, self.world, only_full)
        extra = language.extra(graph, boxes, self.world)
        turns = language.conversation(graph, extra["questions"], texts[0], self.world.ask) if self.world.ask else []
        conversation = Conversation(turns) if turns else None
        return Sample(name, extra, image=image, text=Captions(texts, meanings), negatives=negatives, turns=conversation)

    def twin(self, graph: Graph | dict[str, Any]) -> Sample | None:
        """The same scene with two groups or their colours swapped; None if it has no twin the split may show.

        ``graph`` is what a sample's ``extra["graph"]`` holds. Wording, background and, where counts and sizes
        allow, the places of the objects are those of the scene itself.
        """
        graph = Graph.from_dict(graph) if isinstance(graph, dict) else graph
        swapped = edit(graph, self.world, Random(graph.seed + 4), SWAPS)
        return None if swapped is None else self._sample(swapped, f"twin/{graph.seed:x}")

    def groups(self, skill: str, n: int) -> list[Group]:
        """n controlled tests of one skill."""
        if skill not in SKILLS:
            raise DiptychError(f"scenes: no skill '{skill}'{nearest(skill, SKILLS)}")
        which = SKILLS.index(skill)
        return [group(skill, self.world, self._seed(_GROUPS, which, i), f"{skill}/{i}") for i in range(n)]

    def sets(self, kind: str, n: int) -> list[Group]:
        """n sets of images that differ in one attribute, with a caption that is true of each alone."""
        if kind not in SETS:
            raise DiptychError(f"scenes: no sets of '{kind}'{nearest(kind, SETS)}")
        which = SETS.index(kind)
        return [attribute_set(kind, self.world, self._seed(_SETS, which, i), f"{kind}/{i}") for i in range(n)]

    def options(self, sample: Sample, asked: dict[str, str]) -> tuple[list[str], list[str]]:
        """The possible answers to one of the sample's questions, and a caption that says each."""
        return language.options(Graph.from_dict(sample.extra["graph"]), self.world, asked)

    def concepts(self) -> list[str]:
        """Names of what this split shows; in ``heldout-concepts``, of what only it shows."""
        return list(self.world.focus)

    def concept_samples(self, n: int) -> list[tuple[np.ndarray, int]]:
        names = self.world.focus
        graphs = (single_object(self.world, self._seed(_SINGLES, i), names[i % len(names)]) for i in range(n))
        return [(picture(graph, self.world.size)[0], i % len(names)) for i, graph in enumerate(graphs)]

    def habit_pairs(self, n: int) -> dict[str, tuple[list[np.ndarray], list[str]]]:
        """n pairs of pictures, each with its caption, that differ in one object's colour: its habitual one first, then another."""
        found = {}
        for i in range(n):
            concept = self.world.focus[i % len(self.world.focus)]
            graphs, texts = habit_pair(self.world, self._seed(_HABITS, i), concept)
            found[f"{concept}/{i}"] = [picture(graph, self.world.size)[0] for graph in graphs], texts
        return found

    def retrieval(self, n: int, captions: int = 3) -> list[Sample]:
        """n scenes of which no full description is true of another; each with paraphrases of its own."""
        kept: list[Graph] = []
        holders: dict[tuple[int, str], list[Graph]] = {}  # (count, concept) to the graphs that show it
        samples: list[Sample] = []
        for index in range(len(self)):
            if len(samples) == n:
                return samples
            graph = self.graph(index)
            keys = [(things.count, things.concept) for things in graph.things]
            rivals = [rival for key in keys for rival in holders.get(key, ())]
            if any(_may_be_true(graph, rival) or _may_be_true(rival, graph) for rival in rivals):
                continue
            kept.append(graph)
            for key in keys:
                holders.setdefault(key, []).append(graph)
            samples.append(self._sample(graph, f"{self.world.split}/{index}", captions))
        raise DiptychError(f"{self.address} is too small a world for {n} scenes that no description confuses")


def _may_be_true(said: Graph, shown: Graph) -> bool:
    """Whether all that a full description of one graph says could hold of another scene."""
    if said.relation:
        if said.relation != shown.relation or (said.side and said.side != shown.side):
            return False
        return all(_fits(a, b) for a, b in zip(said.things, shown.things, strict=False))
    if said.position:
        return said.position == shown.position and _fits(said.things[0], shown.things[0])
    return any(_fits(said.things[0], things) for things in shown.things)


def _fits(said: Any, shown: Any) -> bool:
    """Whether a group may be described so; nothing is known of the colour of an untinted one."""
    return (
        (said.count, said.concept) == (shown.count, shown.concept)
        and (said.colour == shown.colour or not said.colour or not shown.colour)
        and (said.size == shown.size or not said.size or not shown.size)
    )
