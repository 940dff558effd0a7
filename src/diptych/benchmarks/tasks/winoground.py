"""Two images and two captions of the same words (Thrush et al., arXiv:2204.03162): text, image and group score.

File: Winoground's examples.jsonl (image_0, image_1, caption_0, caption_1) or its Parquet. Without one: the controlled
groups of a built-in world. All comparisons are strict, and a tie is half won; chance is 1/4, 1/4 and 1/6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.metrics import pairs
from diptych.benchmarks.tasks.base import Items, NotApplicable
from diptych.benchmarks.tasks.choosing import Block, Choosing
from diptych.benchmarks.tasks.published import Pictures, Row, Shown, embedded, limited, rows, unique
from diptych.data.source import Controlled, Source

EYE = np.eye(2, dtype=bool)


@dataclass(frozen=True)
class Winoground(Choosing):
    name: str = "winoground"
    skills: tuple[str, ...] = ("relation", "binding")  # of a built-in world: those whose captions have the same words

    def items(self, source: Source) -> Items:
        if self.file:
            pictures = Pictures(self.images, self.file)
            found = limited((self._row(row, pictures) for row in rows(self.file)), self.n)
            unique((b.id for b in found), self.file)
            return Items(found)
        if not isinstance(source, Controlled):
            raise NotApplicable("the source has no groups of two images and two captions; give ?file=examples.jsonl")
        skills = [s for s in self.skills if s in source.skills]
        groups = [g for skill in skills for g in source.groups(skill, (self.n or 200) // len(skills))]
        blocks = [Block(g.id, g.id, list(g.images), g.captions, EYE, {"skill": g.skill}) for g in groups if len(g.images) == 2]
        if not blocks:
            raise NotApplicable(f"the source has no groups of {' or '.join(self.skills)}")
        return Items(blocks)

    def _row(self, row: Row, pictures: Pictures) -> Block:
        shown: list[Shown] = []
        for field in ("image_0", "image_1"):
            value = row.need(field)
            shown.append(pictures.path(value, row.where) if isinstance(value, str) else embedded(value, row.where))
        captions = [row.text("caption_0"), row.text("caption_1")]
        kinds = {k: str(row[k]) for k in ("collapsed_tag", "secondary_tag") if row.get(k)}
        name = row.text("id")
        return Block(name, name, shown, captions, EYE, kinds)

    def credit(self, scores: np.ndarray, fits: np.ndarray) -> dict[str, float]:
        return pairs.winoground(scores)

    def chance(self, fits: np.ndarray) -> dict[str, float]:
        return {"text": 0.25, "image": 0.25, "group": pairs.chance(2)["group"]}
