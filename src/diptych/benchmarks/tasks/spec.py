"""Sets of images that differ in one attribute: SPEC (Peng et al., arXiv:2312.00081) and its like on scenes.

Existence, count, absolute and relative position, absolute and relative size, image → text and text → image.
File: SPEC's image2text.json or text2image.json (query, keys, label); ``kind`` names its subset, by default the
directory. Without one: sets of a built-in world.
"""

from __future__ import annotations

import posixpath
import random
from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.tasks.base import Items, NotApplicable
from diptych.benchmarks.tasks.choosing import Block, Choosing, best_image, best_text
from diptych.benchmarks.tasks.published import Pictures, Row, limited, rows
from diptych.core.errors import DiptychError
from diptych.data.source import Source


@dataclass(frozen=True)
class Spec(Choosing):
    name: str = "spec"
    kind: str = ""

    def items(self, source: Source) -> Items:
        if self.file:
            pictures = Pictures(self.images, self.file)
            kind = self.kind or posixpath.basename(posixpath.dirname(self.file)) or "spec"
            return Items(limited((self._row(row, i, kind, pictures) for i, row in enumerate(rows(self.file))), self.n))
        if not hasattr(source, "sets"):
            raise NotApplicable("the source has no sets of images that differ in one attribute; give ?file=image2text.json")
        blocks = []
        for kind in source.set_kinds:  # type: ignore[attr-defined]
            for group in source.sets(kind, self.n or 50):
                order = list(range(len(group.images)))
                random.Random(f"{self.seed} {group.id}").shuffle(order)  # options in random order
                images, texts = [group.images[i] for i in order], [group.captions[i] for i in order]
                blocks.append(Block(group.id, group.id, list(images), texts, np.eye(len(order), dtype=bool), {"kind": kind}))
        return Items(blocks)

    def _row(self, row: Row, number: int, kind: str, pictures: Pictures) -> Block:
        query, keys, label = row.text("query"), row.need("keys", kind=list), row.need("label", kind=int)
        if not 0 <= label < len(keys):
            raise DiptychError(f"{row.where}: field 'label': {label} is none of the {len(keys)} keys")
        order = list(range(len(keys)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        keys, right = [str(keys[i]) for i in order], np.array(order) == label
        to_text = not keys[0].lower().endswith((".jpg", ".jpeg", ".png"))
        if to_text:
            return Block(f"{number}", query, [pictures.path(query, row.where)], keys, right[None, :], {"kind": kind})
        return Block(f"{number}", f"{number}", [pictures.path(k, row.where) for k in keys], [query], right[:, None], {"kind": kind})

    def credit(self, scores: np.ndarray, fits: np.ndarray) -> dict[str, float]:
        found = {}
        if scores.shape[1] > 1:
            found["image-to-text"] = best_text(scores, fits)
        if scores.shape[0] > 1:
            found["text-to-image"] = best_image(scores, fits)
        return found

    def summarise(self, records: list[Record]) -> list[Result]:
        """Each direction, and each of its kinds as a metric of its own: SPEC reports no average alone."""
        from diptych.benchmarks.tasks.base import shares

        judged = [self.judge(r) for r in records]
        found = shares(self.name, judged)
        for kind in sorted({r["slices"]["kind"] for r in judged}):
            mine = []
            for r in judged:
                if r["slices"]["kind"] == kind:
                    named = {k: {f"{kind}/{m}": v for m, v in r[k].items()} for k in LOOKS if k in r}
                    mine.append({**r, **named, "slices": {}})
            found += shares(self.name, mine)
        return found


LOOKS = ("correct", "blind", "shuffled", "shortest", "longest", "chance", "ties")
