"""The source of rendered pages: ``pages:all?size=128``, ``pages:ocr,table,layout?ask=3``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any

from pydantic import Field as Limit

from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.sample import Captions, Conversation, Region, Sample, Turn
from diptych.data.conversations.turns import question
from diptych.data.pages.tasks import NAMES, TASKS
from diptych.data.pages.tree import Node, draw_tree, paint
from diptych.data.scenes.concepts import all_concepts, article
from diptych.data.scenes.graph import mix
from diptych.data.scenes.sprites import versions
from diptych.data.scenes.texts.words import ALL
from diptych.data.source import Problem

FORMAT = 1  # counts up when the same address gives other pages or texts
PARTS = ("train", "validation", "test")
_PAGES = 41  # a stream of seeds of its own


class Pages:
    """Pages drawn on demand; ``source[i]`` depends on the options and i alone.

    place: the tasks of the conversations, comma-separated, or ``all`` (``data.pages.tasks``). size: pixels, height and width.
    ask: requests of a conversation. vocabulary: how many words pages use. length: how many pages there are.
    Samples have ``image``, ``turns``, ``text`` (what the page shows) and ``regions`` (elements with print, the text as phrase).
    Extra: ``tree``, ``words`` with boxes and heights of print, ``questions``. DiptychError for an unknown task.
    """

    fields = ("image", "text", "turns", "regions")

    def __init__(
        self,
        place: str,
        *,
        size: Annotated[int, Limit(ge=96, le=1024)] = 128,
        ask: Annotated[int, Limit(ge=1, le=10)] = 2,
        vocabulary: Annotated[int, Limit(ge=40, le=len(ALL))] = 100,
        seed: int = 0,
        length: Annotated[int, Limit(ge=1)] = 2**31 - 1,
    ):
        self.tasks = tuple(TASKS) if place == "all" else tuple(name.strip() for name in place.split(","))
        for name in self.tasks:
            if name not in TASKS:
                raise DiptychError(f"pages:{place}: no task '{name}'{nearest(name, TASKS)}; known: all, {', '.join(TASKS)}")
        self.place, self.image_size, self.ask, self.vocabulary = place, int(size), int(ask), int(vocabulary)
        self.seed, self.length, self.part = int(seed), int(length), "train"
        self.address = f"pages:{place}"
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        return self.length if self.part == "train" else min(self.length, 10_000)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def tree(self, index: int) -> tuple[Node, int]:
        """The page of a number and the seed of what it is asked."""
        seed = mix(self.seed, PARTS.index(self.part), _PAGES, index)
        concepts = [concept.name for concept in all_concepts()[:24]]
        return draw_tree(Random(seed), self.image_size, list(ALL[: self.vocabulary]), concepts), seed

    def _asked(self, page: Node, seed: int) -> list[tuple[str, str, str]]:
        """(task, request, answer) of each request of the conversation: different tasks that the page allows, in any order."""
        random = Random(seed + 1)
        found: list[tuple[str, str, str]] = []
        for name in random.sample(self.tasks, len(self.tasks)):
            if len(found) < self.ask and (asked := TASKS[name](page, random)) is not None:
                found.append((name, *asked))
        return found or [("title", *TASKS["title"](page, random))]  # type: ignore[misc]

    def captions(self, index: int) -> list[str]:
        """All texts of one page, without drawing it."""
        page, seed = self.tree(self._checked(index))
        return [caption(page), *(text for _, *texts in self._asked(page, seed) for text in texts)]

    def _checked(self, index: int) -> int:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.address} has {counted(len(self), 'page')}; there is no number {index}")
        return index

    def __getitem__(self, index: int) -> Sample:
        page, seed = self.tree(self._checked(index))
        asked = self._asked(page, seed)
        turns = [Turn(role, text) for _, *texts in asked for role, text in zip(("user", "assistant"), texts, strict=True)]
        printed = [node for node in page.walk() if node.text]
        extra: dict[str, Any] = {
            "tree": page.as_dict(),
            "words": [
                {"text": n.text, "box": list(n.box), "height": n.height, "on": n.tag, "line": k} for k, n in enumerate(printed)
            ],
            "questions": [{"question": request, "answer": answer, "kind": name} for name, request, answer in asked],
        }
        return Sample(
            f"{self.part}/{index}",
            extra,
            image=paint(page),
            text=Captions([caption(page)]),
            turns=Conversation([question(turns[0].text), *turns[1:]]),
            regions=[Region(tuple(map(float, n.box)), n.text) for n in printed],  # type: ignore[arg-type]
        )

    def fingerprint(self) -> str:
        """A hash of the options and of all that the pixels depend on."""
        options = (self.place, self.image_size, self.ask, self.vocabulary, self.seed, len(self), self.part)
        return hashlib.sha256(f"pages {FORMAT} {options} {sorted(versions().items())}".encode()).hexdigest()[:16]

    def split(self, name: str) -> Pages:
        """The train, validation or test part: seeds of its own."""
        if name not in PARTS:
            raise DiptychError(f"{self.address}: no split '{name}'{nearest(name, PARTS)}")
        other = Pages(
            self.place, size=self.image_size, ask=self.ask, vocabulary=self.vocabulary, seed=self.seed, length=self.length
        )  # fmt: skip
        other.part, other.address = name, self.address
        return other


def caption(page: Node) -> str:
    """ "a page with the title fresh bread, a table and a red button"."""
    shown = []
    for node in page.children[1:]:
        for n in node.children if node.tag == "row" else [node]:
            what = (
                f"{n.name} {NAMES[n.tag]}"
                if n.tag == "button"
                else f"picture of {article(n.name)}"
                if n.tag == "img"
                else NAMES[n.tag]
            )
            shown.append(what if n.tag == "p" else article(what))
    start = f"a page with the title {page.children[0].text}"
    return start if not shown else f"{', '.join([start, *shown[:-1]])} and {shown[-1]}"
