"""``preferences:``: pairs of a right and a wrong answer, exact ones of scenes, or those of a file.

``preferences:scenes:small?describe=0.5&facts=colour,count`` draws them; ``preferences:pairs.jsonl?images=photos`` reads them. The
address of scenes stands percent-encoded if it has options of its own (``preferences()`` writes it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote, unquote

from pydantic import Field

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Captions, Conversation, Sample, Turn
from diptych.data.conversations.turns import question
from diptych.data.preferences.files import PreferenceFile
from diptych.data.preferences.scenes import FACTS, Pair, pair_of
from diptych.data.scenes.graph import Graph
from diptych.data.source import BrokenItem, Problem, Source


def preferences(address: str, describe: float = 0.5, facts: Sequence[str] = FACTS) -> str:
    """The address of exact preferences from scenes."""
    return f"preferences:{quote(address, safe=':/,{}*')}?describe={describe:g}&facts={','.join(facts)}"


def open_preferences(
    place: str,
    *,
    images: str | None = None,
    describe: Annotated[float | None, Field(ge=0, le=1)] = None,
    facts: str | None = None,
) -> Source:
    """The source of a ``preferences:`` address. images: the folder of a file's pictures; describe: of scenes, the share of
    descriptions, the rest are short answers (0.5); facts: of scenes, the kinds of facts that are changed, comma-separated (all).
    """
    of_scenes = {"describe": describe, "facts": facts}
    if place.startswith("scenes:"):
        if images is not None:
            raise DiptychError(f"preferences:{place}: images is an option for files; scenes draw their pictures")
        return ScenePreferences(place, describe=0.5 if describe is None else describe, facts=facts or ",".join(FACTS))
    given = next((name for name, value in of_scenes.items() if value is not None), None)
    if given:
        raise DiptychError(f"preferences:{place}: {given} is an option for scenes; a file has its own pairs")
    return PreferenceFile(place, images=images)


class ScenePreferences:
    """Exact preferences of a world of scenes: sample i is a pair about scene i, always the same."""

    fields = ("image", "text", "turns")
    instant = True

    def __init__(self, place: str, *, describe: float = 0.5, facts: str = ",".join(FACTS)):
        from diptych.data.sources import open_source

        self._set(open_source(unquote(place)), describe, tuple(name.strip() for name in facts.split(",") if name.strip()))

    def _set(self, base: Any, describe: float, facts: tuple[str, ...]) -> ScenePreferences:
        from diptych.data.scenes.source import Scenes

        self.base, self.describe, self.facts = base, describe, facts
        self.address = preferences(base.address, describe, facts)
        self.problems: list[Problem] = []
        if type(base) is not Scenes:
            raise DiptychError(f"{self.address}: exact preferences are made of scenes with pictures, such as scenes:small")
        for name in facts:
            if name not in FACTS:
                raise DiptychError(f"{self.address}: there is no fact '{name}'{nearest(name, FACTS)}; known: {', '.join(FACTS)}")
        if not facts:
            raise DiptychError(f"{self.address}: facts: name at least one of {', '.join(FACTS)}")
        return self

    @property
    def image_size(self) -> int:
        """Pixels, height and width, of every picture."""
        return int(self.base.image_size)

    def __len__(self) -> int:
        return len(self.base)

    def pair(self, index: int) -> tuple[Graph, Pair]:
        """The scene at ``index`` and the pair of answers about it. BrokenItem if none of the facts can be changed in it."""
        graph: Graph = self.base.graph(index)
        found = pair_of(graph, self.base.world, self.describe, self.facts)
        if found is None:
            raise BrokenItem(f"{self.base.world.split}/{index}", f"no fact of the kinds {', '.join(self.facts)} to change")
        return graph, found

    def __getitem__(self, index: int) -> Sample:
        from diptych.data.scenes.layout import picture

        index = range(len(self))[index]
        graph, pair = self.pair(index)
        image, boxes = picture(graph, self.base.world.size)
        labels = [things.concept for things in graph.things]
        extra = {"graph": graph.as_dict(), "boxes": boxes, "labels": labels, "preference": pair.preference.plain()}
        turns = [question(pair.prompt), Turn("assistant", pair.preference.chosen)]
        name = f"{self.base.world.split}/{index}"
        return Sample(name, extra, image=image, text=Captions([pair.preference.chosen]), turns=Conversation(turns, [image]))

    def captions(self, index: int) -> list[str]:
        """All texts of one pair, from which a tokenizer learns; its picture is not drawn."""
        _, pair = self.pair(range(len(self))[index])
        return [pair.prompt, pair.preference.chosen, pair.preference.rejected]

    def fingerprint(self) -> str:
        """Of the world and of how pairs are made of it."""
        noted = f"{self.base.fingerprint()} preferences {self.describe:g} {','.join(self.facts)}"
        return hashlib.sha256(noted.encode()).hexdigest()[:16]

    def split(self, name: str) -> ScenePreferences:
        """That part of the world."""
        return ScenePreferences.__new__(ScenePreferences)._set(self.base.split(name), self.describe, self.facts)
