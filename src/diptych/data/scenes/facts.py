"""The facts of scenes in words, before their captions: ``facts:scenes:small?repeat=2``. Text alone, for language models.

A text is the facts of a scene in any order, several times over, a colon, and one of its captions: "two red foxes , one key , …
: two red foxes left of a key". So what stands before the colon decides what follows it, in whatever order it stands, and a model
that has learned this can be read through: a connector that puts an image in the place of the facts gets captions of it. A sample
of which no facts are known has its captions alone. The address of the base stands percent-encoded if it has options of its own
(``facts()`` writes it).
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Sample
from diptych.data.source import BrokenItem, Problem, Source

if TYPE_CHECKING:
    from diptych.data.scenes.graph import Graph

COMMA, COLON = " , ", " :"  # between facts; after the last one
SHOWN = 32  # samples, evenly spread, that show whether a source knows facts
PER_SAMPLE = 2  # texts of one scene, with facts in different orders


def facts(address: str, repeat: int = 2) -> str:
    """The address of a source's facts and captions in words."""
    return f"facts:{quote(address, safe=':/,{}*')}?repeat={repeat}"


class Facts:
    """repeat: the facts stand there up to this many times, each time in another order."""

    fields = ("text",)
    instant = True

    def __init__(self, place: str, *, repeat: int = 2):
        from diptych.data.sources import open_source

        self._set(open_source(unquote(place)), repeat)

    def _set(self, base: Source, repeat: int) -> Facts:
        self.base, self.repeat = base, repeat
        self.address = facts(base.address, repeat)
        self.problems: list[Problem] = list(base.problems)
        if repeat < 1:
            raise DiptychError(f"{self.address}: repeat must be at least 1, not {repeat}")
        return self

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> Sample:
        from diptych.data.scenes import language
        from diptych.data.scenes.graph import Graph
        from diptych.data.scenes.source import Scenes

        if isinstance(self.base, Scenes):  # without drawing the picture
            index = range(len(self))[index]
            graph: Graph | None = self.base.graph(index)
            assert graph is not None
            texts, meanings, _ = language.captions(graph, self.base.world)
            name = f"{self.base.world.split}/{index}"
        else:
            sample = self.base[index]
            if not sample.captions:
                raise BrokenItem(sample.id, "no caption")
            texts, meanings, name = sample.captions, sample.meanings, sample.id
            graph = Graph.from_dict(sample.extra["graph"]) if _has_facts(sample) else None
        if graph is None:
            return Sample(name, text=Captions(texts, meanings))
        random = Random(graph.seed + 6)
        chosen = [random.randrange(len(texts)) for _ in range(PER_SAMPLE)]
        prompts = [self._prompt(graph, random) for _ in chosen]
        both = [f"{prompt} {texts[k]}" for prompt, k in zip(prompts, chosen, strict=True)]
        return Sample(name, self._extra(graph, prompts[0], texts), text=Captions(both))

    def _prompt(self, graph: Graph, random: Random) -> str:
        """The facts, some times over, and the colon."""
        stated = facts_of(graph, getattr(getattr(self.base, "world", None), "long", 0) > 0)
        rounds = [random.sample(stated, len(stated)) for _ in range(random.randint(1, self.repeat))]
        return COMMA.join(fact for again in rounds for fact in again) + COLON

    def _extra(self, graph: Graph, prompt: str, texts: list[str]) -> dict[str, Any]:
        """``prompt`` and ``answers`` for the task ``completion``: every caption that would be right."""
        from diptych.data.scenes import language

        full = [language.describe(graph, style) for style in language.styles(graph)]
        brief = [language.describe(language.outline(graph, colours), 0) for colours in (False, True)]
        return {"graph": graph.as_dict(), "prompt": prompt, "answers": list(dict.fromkeys([*full, *brief, *texts]))}

    def unsuited(self) -> str:
        """Why a language model cannot learn here to read facts: its base knows none. Empty: it can."""
        from diptych.data.scenes.source import Scenes

        if isinstance(self.base, Scenes) or any(map(self._known, range(0, len(self.base), max(1, len(self.base) // SHOWN)))):
            return ""
        return (
            f"{self.base.address} knows no facts of its samples, as scenes do, so a language model would read its captions alone, "
            "and not learn that what stands before a caption decides what it says"
        )

    def _known(self, index: int) -> bool:
        try:
            return _has_facts(self.base[index])
        except BrokenItem:
            return False

    def fingerprint(self) -> str:
        """Of the base and of how its facts are stated."""
        return hashlib.sha256(f"{self.base.fingerprint()} facts {self.repeat}".encode()).hexdigest()[:16]

    def split(self, name: str) -> Facts:
        """That part of the base."""
        return Facts.__new__(Facts)._set(self.base.split(name), self.repeat)


def _has_facts(sample: Sample) -> bool:
    """Whether it comes with the graph of a scene; that of a clip has events."""
    known = sample.extra.get("graph")
    return isinstance(known, dict) and "things" in known and "events" not in known


def facts_of(graph: Graph, background: bool = False) -> list[str]:
    """Each fact of a scene in words: its groups, and how they are placed. background: also what they stand on."""
    from diptych.data.scenes.language import phrase

    stated = [phrase(things) for things in graph.things]
    if graph.relation:
        names = [things.concept for things in graph.things]
        stated.append(f"{names[0]} {graph.relation} {names[1]}")
        if graph.side:
            stated.append(f"{names[2]} {graph.side} {names[0]} {names[1]}")
    if graph.position:
        stated.append(graph.position)
    return [*stated, f"on {graph.background}"] if background else stated
