"""``twins:scenes:small``: two pictures, and the question whether they show the same (after TWIN: pairs of pictures of the same
instance and of ones that are hard to tell apart).

Half of the pairs are one scene drawn twice: other places, another background. In the other half one fact is changed, as in exact
preferences; the paper takes pictures of other instances that are near by an embedding. So every pair needs a comparison of details,
and the answer is known. Each sample is a conversation of two images with the right answer, and the other one as rejected.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import Any
from urllib.parse import quote, unquote

from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Conversation, Sample, Turn
from diptych.data.conversations.turns import question
from diptych.data.preferences import Preference
from diptych.data.preferences.scenes import CHANGES
from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.graph import Graph, is_held_out, mix
from diptych.data.source import BrokenItem, Problem

PROMPT = "do both pictures show the same things?"
_TWINS = 11  # a stream of seeds of its own


class Twins:
    """Pairs of pictures of a world of scenes: sample i is about scene i, always the same."""

    fields = ("text", "turns")
    instant = True

    def __init__(self, place: str):
        from diptych.data.sources import open_source

        self._set(open_source(unquote(place)))

    def _set(self, base: Any) -> Twins:
        from diptych.data.scenes.source import Scenes

        self.base = base
        self.address = f"twins:{quote(base.address, safe=':/,{}*')}"
        self.problems: list[Problem] = []
        if type(base) is not Scenes:
            raise DiptychError(f"{self.address}: twins are made of scenes with pictures, such as scenes:small")
        return self

    @property
    def image_size(self) -> int:
        """Pixels, height and width, of every picture."""
        return int(self.base.image_size)

    def __len__(self) -> int:
        return len(self.base)

    def pair(self, index: int) -> tuple[Graph, Graph, str]:
        """Two scenes, and the fact in which they differ; "": they show the same. BrokenItem if no fact can be changed."""
        graph: Graph = self.base.graph(index)
        world, random = self.base.world, Random(graph.seed + 8)
        again = graph._replace(seed=mix(graph.seed, _TWINS), background=KINDS[random.randrange(len(KINDS))])
        if random.random() < 0.5:
            return graph, again, ""
        for fact in random.sample(list(CHANGES), len(CHANGES)):
            changed = CHANGES[fact](again, 0, world, random)
            if changed is not None and (world.split == "heldout-combinations" or not is_held_out(changed[0], world)):
                return graph, changed[0], fact
        raise BrokenItem(f"{world.split}/{index}", "no fact to change")

    def __getitem__(self, index: int) -> Sample:
        from diptych.data.scenes.layout import picture

        index = range(len(self))[index]
        first, second, fact = self.pair(index)
        answers = ("no", "yes") if fact else ("yes", "no")
        known = Preference(*answers, spans=((0, len(answers[1])),), chosen_spans=((0, len(answers[0])),), fact=fact or "same")
        images = [picture(graph, self.base.world.size)[0] for graph in (first, second)]
        turns = [question(PROMPT, 2), Turn("assistant", answers[0])]
        extra = {"graphs": [first.as_dict(), second.as_dict()], "preference": known.plain()}
        return Sample(f"{self.base.world.split}/{index}", extra, text=Captions([answers[0]]), turns=Conversation(turns, images))

    def captions(self, index: int) -> list[str]:
        """All texts of one pair, without its pictures."""
        return [PROMPT, "yes", "no"]

    def fingerprint(self) -> str:
        """Of the world and of how pairs are made of it."""
        return hashlib.sha256(f"{self.base.fingerprint()} twins".encode()).hexdigest()[:16]

    def split(self, name: str) -> Twins:
        """That part of the world."""
        return Twins.__new__(Twins)._set(self.base.split(name))
