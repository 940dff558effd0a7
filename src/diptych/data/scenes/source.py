"""The built-in world as a data source."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Captions, Conversation, Label, Region, Sample
from diptych.data.scenes import language
from diptych.data.scenes.controlled import SETS, SKILLS, attribute_set, group, habit_pair, single_object
from diptych.data.scenes.drawn import Drawn
from diptych.data.scenes.graph import SWAPS, Graph, draw, edit
from diptych.data.scenes.layout import picture, seen_groups
from diptych.data.source import Group

_SCENES, _SINGLES, _GROUPS, _SETS, _HABITS = 0, 1, 2, 3, 4  # independent streams of seeds


class Scenes(Drawn):
    """Scenes drawn on demand; ``scenes[i]`` depends on the world's options and i alone.

    ``classes``: the concepts that the split shows. A scene with one kind of thing has its concept as label.
    """

    skills: tuple[str, ...] = SKILLS
    set_kinds: tuple[str, ...] = SETS

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that samples may have."""
        return ("image", "text", "negatives", "regions", "label", *(("turns",) if self.world.ask else ()))

    @property
    def classes(self) -> list[str]:
        """Names of the concepts that labels are of."""
        return list(self.world.names)

    def drawn(self, index: int) -> Sample:
        """The sample at ``index``, from 0 on."""
        return self._sample(self.graph(index), f"{self.world.split}/{index}")

    def graph(self, index: int) -> Graph:
        """The scene at ``index``; its picture is not drawn."""
        return draw(self.world, self._seed(_SCENES, index))

    def _sample(self, graph: Graph, name: str, only_full: int = 0) -> Sample:
        image, boxes = picture(graph, self.world.size)
        texts, meanings, negatives = language.captions(graph, self.world, only_full)
        extra = language.extra(graph, boxes, self.world)
        turns = language.conversation(graph, extra["questions"], texts[0], self.world.ask) if self.world.ask else []
        conversation = Conversation(turns) if turns else None
        one = graph.things[0].concept if len(graph.things) == 1 else None
        masks = seen_groups(graph, self.world.size) if self.world.masks else None
        return Sample(
            name,
            extra,
            image=image,
            text=Captions(texts, meanings),
            negatives=negatives,
            turns=conversation,
            regions=regions(graph, boxes, masks),
            label=None if one is None else Label(self.world.number(one), one),
        )

    def twin(self, graph: Graph | dict[str, Any]) -> Sample | None:
        """The same scene with two groups or their colours swapped; None if it has no such twin that the split may show.

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
        """Names of the concepts that this split shows; in ``heldout-concepts``, of those that only it shows."""
        return list(self.world.focus)

    def concept_samples(self, n: int) -> list[tuple[np.ndarray, int]]:
        """n images of one object each, uint8 [size, size, 3], with the index of its concept in ``concepts()``."""
        names = self.world.focus
        graphs = (single_object(self.world, self._seed(_SINGLES, i), names[i % len(names)]) for i in range(n))
        return [(picture(graph, self.world.size)[0], i % len(names)) for i, graph in enumerate(graphs)]

    def habit_pairs(self, n: int) -> dict[str, tuple[list[np.ndarray], list[str]]]:
        """n pairs of pictures, each with its caption, that differ in one object's colour: its habitual one first, then another."""
        result = {}
        for i in range(n):
            concept = self.world.focus[i % len(self.world.focus)]
            graphs, texts = habit_pair(self.world, self._seed(_HABITS, i), concept)
            result[f"{concept}/{i}"] = [picture(graph, self.world.size)[0] for graph in graphs], texts
        return result

    def retrieval(self, n: int, captions: int = 3) -> list[Sample]:
        """n scenes, chosen so that no full description of one is true of another; each with its own paraphrases."""
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
        raise DiptychError(f"{self.address} is too small a world for {n} scenes with descriptions that fit no other scene")


def regions(graph: Graph, boxes: list[dict[str, Any]], masks: list[np.ndarray] | None = None) -> list[Region]:
    """Each group of a scene with the box around its objects. boxes: of the objects, as ``picture`` gives them; masks: what is seen
    of each group.
    """
    result = []
    for number, things in enumerate(graph.things):  # each concept has one group
        left, top, right, bottom = zip(*(box["box"] for box in boxes if box["concept"] == things.concept), strict=True)
        box = (float(min(left)), float(min(top)), float(max(right)), float(max(bottom)))
        result.append(Region(box, language.phrase(things), None if masks is None else masks[number]))
    return result


def _may_be_true(described: Graph, shown: Graph) -> bool:
    """Whether a full description of one graph could be true of another scene."""
    if described.relation:
        if described.relation != shown.relation or (described.side and described.side != shown.side):
            return False
        return all(_fits(a, b) for a, b in zip(described.things, shown.things, strict=False))
    if described.position:
        return described.position == shown.position and _fits(described.things[0], shown.things[0])
    return any(_fits(described.things[0], things) for things in shown.things)


def _fits(described: Any, shown: Any) -> bool:
    """Whether a description may fit a group; nothing is known of the colour of an untinted group."""
    return (
        (described.count, described.concept) == (shown.count, shown.concept)
        and (described.colour == shown.colour or not described.colour or not shown.colour)
        and (described.size == shown.size or not described.size or not shown.size)
    )
