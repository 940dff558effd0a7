"""Winoground: two images and two captions of the same words (Thrush et al., arXiv:2204.03162): text, image and group score.

File: Winoground's examples.jsonl (image_0, image_1, caption_0, caption_1) or its Parquet. Without one: the controlled
groups of a built-in world. All comparisons are strict, and a tie is shared; chance is 1/4, 1/4 and 1/6. Ties: items with a shared
credit for this metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, count_not_finite
from diptych.benchmarks.inputs import read_records
from diptych.benchmarks.matching.blocks import Block, MatchingTask
from diptych.benchmarks.metrics import groups
from diptych.benchmarks.metrics.ranking import shared_credits
from diptych.benchmarks.pictures import ImageRef, Pictures, embedded
from diptych.benchmarks.records import Result
from diptych.benchmarks.results import credit_slices, of_credits
from diptych.benchmarks.tables import Row, Table, unique
from diptych.data.source import Controlled, Source

EYE = np.eye(2, dtype=bool)
SCORES = ("c0_i0", "c0_i1", "c1_i0", "c1_i1")  # of caption 0 with image 0, …
CHANCE = {"text": 0.25, "image": 0.25, "group": groups.chance(2)["group"]}
CHANCE_OF_TWO = {**CHANCE, "group": groups.chance(2, two_sided=True)["group"]}  # other scores for the choice of an image


@dataclass(frozen=True)
class Winoground(MatchingTask):
    """Winoground: two images, two captions of the same words (Thrush et al. 2022)."""

    name: str = "winoground"
    skills: tuple[str, ...] = ("relation", "binding")  # of a built-in world: the skills with captions of the same words

    def items(self, source: Source) -> Items:
        """The blocks."""
        if self.file:
            pictures = Pictures(self.images, self.file)
            blocks = [self._block(row, pictures) for row in islice(read_records(self.file), self.n or None)]
            unique((b.id for b in blocks), self.file)
            return Items(blocks)
        if not isinstance(source, Controlled):
            raise NotApplicable("the source has no groups of two images and two captions; give ?file=examples.jsonl")
        skills = [s for s in self.skills if s in source.skills]
        made = [g for skill in skills for g in source.groups(skill, (self.n or 200) // len(skills))]
        blocks = [Block(g.id, g.id, list(g.images), g.captions, EYE, {"skill": g.skill}) for g in made if len(g.images) == 2]
        if not blocks:
            raise NotApplicable(f"the source has no groups of {' or '.join(self.skills)}")
        return Items(blocks)

    def _block(self, row: Row, pictures: Pictures) -> Block:
        images: list[ImageRef] = []
        for field in ("image_0", "image_1"):
            value = row.need(field)
            images.append(pictures.path(value, row.where) if isinstance(value, str) else embedded(value, row.where))
        name = row.text("id")
        return Block(name, name, images, [row.text("caption_0"), row.text("caption_1")], EYE, row.slices())

    def credit(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
        """{metric: credit in [0, 1]} of scores [images, texts]."""
        return groups.winoground(scores, to_image)

    def chance(self, fits: np.ndarray, two_sided: bool = False) -> dict[str, float]:
        """The mean credit of random scores: that of equal scores, unless a benchmark overrides it."""
        return dict(CHANCE_OF_TWO if two_sided else CHANCE)

    def ties(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, int]:
        """{metric: 1 if its credit is the share of a tie, else 0}."""
        return {name: int(shared_credits(np.array(credit))) for name, credit in groups.winoground(scores, to_image).items()}


def score_table(table: Table, ids: Sequence[str]) -> list[Result]:
    """text, image and group score of rows with the four ``SCORES``: diptych metrics pairs."""
    values = np.stack([np.array(table.column(name, "score")) for name in SCORES], axis=1)
    rows = [groups.winoground(block.T) for block in values.reshape(-1, 2, 2)]  # images down, captions across
    results = []
    for name, chance in CHANCE.items():
        credits = np.array([row[name] for row in rows])
        fields: dict[str, Any] = {"chance": chance, "ties": int(shared_credits(credits).sum()), "nans": count_not_finite(values)}
        result = of_credits("pairs", name, credits, ids, **fields)
        results.append(replace(result, slices=credit_slices(credits, ids, table.slices())))
    return results
