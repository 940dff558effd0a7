"""Conversations about scenes as a data source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import IMAGE, Captions, Conversation, Sample, Turn
from diptych.data.regions.conventions import Convention, convention
from diptych.data.scenes import language
from diptych.data.scenes.instruct.change import Exchange, Setting, painted
from diptych.data.scenes.instruct.several import KINDS, Talk, twins
from diptych.data.scenes.source import Scenes
from diptych.data.source import Problem, Source

FORMAT = 1  # counts up when the same address gives other conversations
BOXES = "xyxy/100"
TOKENS = "kosmos-2"
_TALKS, _ASKED = 21, 22  # streams of seeds of their own: of samples, and of the questions of tasks


class Item(NamedTuple):
    """A question of a task. images: in the order in which they are shown; wrong: those of its twin, of which another answer is
    right. pair: the same for the two questions of a pair of twins.
    """

    id: str
    pair: str
    images: list[np.ndarray]
    wrong: list[np.ndarray]
    exchange: Exchange
    other: str  # the answer about the twin


def instruct(address: str, **options: Any) -> str:
    """The address of conversations about scenes: ``instruct("scenes:small", kinds="count,refuse", turns=3)``."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"instruct:{quote(address, safe=':/,{}*')}{'?' * bool(query)}{query}"


def how_written(name: str, where: str = "boxes") -> Convention | int:
    """A convention by its name, or for ``kosmos-2`` and ``kosmos-2/16`` the number of location tokens along a side. DiptychError
    for any other name.
    """
    kind, _, bins = name.partition("/")
    if kind != TOKENS:
        return convention(name, where)
    if bins and (not bins.isdecimal() or not 2 <= int(bins) <= 64):
        raise DiptychError(f"{where}: '{name}': expected {TOKENS} or {TOKENS}/16, with 2 to 64 tokens along a side")
    return int(bins or 32)


class Instructions:
    """kinds: those of ``KINDS`` to choose from, comma-separated, or all. turns: questions about one picture, at most.
    boxes: how answers write boxes: a convention such as xyxy/100, or kosmos-2/16 for location tokens.
    """

    fields = ("image", "text", "turns")

    def __init__(self, place: str, *, kinds: str = "all", turns: int = 3, boxes: str = BOXES):
        from diptych.data.sources import open_source

        self._set(open_source(unquote(place)), kinds, turns, boxes)

    def _set(self, base: Source, kinds: str, turns: int, boxes: str) -> Instructions:
        usual: dict[str, Any] = {"kinds": "all", "turns": 3, "boxes": BOXES}
        given = {name: value for name, value in {"kinds": kinds, "turns": turns, "boxes": boxes}.items() if value != usual[name]}
        self.address = instruct(base.address, **given)
        if not isinstance(base, Scenes):
            raise DiptychError(f"{self.address}: questions need scenes of single pictures, such as instruct:scenes:small")
        self.kinds = KINDS if kinds == "all" else tuple(dict.fromkeys(kinds.split(",")))
        for kind in self.kinds:
            if kind not in KINDS:
                raise DiptychError(f"{self.address}: no kind '{kind}'{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
        if not 1 <= turns <= 8:
            raise DiptychError(f"{self.address}: turns must be from 1 to 8, not {turns}")
        self.base, self.turns, self.boxes = base, turns, boxes
        self.setting = Setting(base.world, how_written(boxes, f"{self.address}: boxes"))
        self.problems: list[Problem] = []
        return self

    @property
    def image_size(self) -> int:
        """Pixels, height and width, of every picture."""
        return self.base.world.size

    def __len__(self) -> int:
        return len(self.base) // 2 * 2

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        talk = self.talk(index)
        shown = [painted(graph, self.base.world.size) for graph in talk.graphs]
        texts, meanings, _ = language.captions(talk.graphs[0], self.base.world)
        images = [image for image, _ in shown]
        return Sample(
            f"{self.base.world.split}/{index}",
            {
                "graphs": [graph.as_dict() for graph in talk.graphs],
                "boxes": shown[0][1],
                "exchanges": [exchange._asdict() for exchange in talk.exchanges],
                "questions": [{"question": e.question, "answer": e.answer, "kind": e.kind} for e in talk.exchanges if not e.before],
            },
            image=images[0],
            text=Captions(texts, meanings),
            turns=Conversation(turns_of(talk), images),
        )

    def talk(self, index: int) -> Talk:
        """The conversation of a sample, without its pictures."""
        pair, second = divmod(index, 2)
        seed = self.base._seed(_TALKS, pair)
        kind = self.kinds[seed % len(self.kinds)]
        return twins(kind, self.setting, seed, self.kinds, self.turns)[second]

    def captions(self, index: int) -> list[str]:
        """All texts of one sample, without drawing it."""
        talk = self.talk(range(len(self))[index])
        return [*language.captions(talk.graphs[0], self.base.world)[0], *(turn.text for turn in turns_of(talk))]

    def asked(self, kind: str, n: int) -> list[Item]:
        """n questions of one kind, an even number, each next to its twin. They are none of those that samples have. DiptychError
        for an unknown kind.
        """
        if kind not in KINDS:
            raise DiptychError(f"instruct: no kind '{kind}'{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
        items = []
        for pair in range(n // 2):
            both = twins(kind, self.setting, self.base._seed(_ASKED, KINDS.index(kind), pair))
            images = [[painted(graph, self.base.world.size)[0] for graph in talk.graphs] for talk in both]
            asked = [talk.exchanges[0] for talk in both]
            items += [
                Item(f"{kind}/{2 * pair + i}", f"{kind}/{pair}", images[i], images[1 - i], asked[i], asked[1 - i].answer)
                for i in (0, 1)
            ]
        return items

    def fingerprint(self) -> str:
        """Of the base and of what is asked."""
        content = f"{self.base.fingerprint()} instruct {FORMAT} {self.kinds} {self.turns} {self.boxes}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def split(self, name: str) -> Instructions:
        """That part of the base."""
        kinds = "all" if self.kinds == KINDS else ",".join(self.kinds)
        return Instructions.__new__(Instructions)._set(self.base.split(name), kinds, self.turns, self.boxes)


def turns_of(talk: Talk) -> list[Turn]:
    """All questions and answers, each with those that it refers to; the pictures come before the first."""
    pairs = [pair for e in talk.exchanges for pair in (*e.before, (e.question, e.answer))]
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [Turn("user", f"{IMAGE * len(talk.graphs)}\n{turns[0].text}"), *turns[1:]]


def instructions_in(source: Any) -> Instructions | None:
    """The source itself if it is of instructions, those about its scenes, or those of the first suitable part of a mixture, or
    None.
    """
    if isinstance(source, Instructions):
        return source
    if isinstance(source, Scenes):
        return Instructions.__new__(Instructions)._set(source, "all", 3, BOXES)
    return next((found for part in getattr(source, "sources", ()) if (found := instructions_in(part))), None)
