"""SPEC: sets of images that differ in one attribute (Peng et al., arXiv:2312.00081), also built from scenes.

Existence, count, absolute and relative position, absolute and relative size; image → text and text → image.
File: SPEC's image2text.json or text2image.json (query, keys, label); ``kind`` names its subset, by default the
directory. Without one: sets of a built-in world.
"""

from __future__ import annotations

import posixpath
import random
from dataclasses import dataclass
from itertools import islice

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_records
from diptych.benchmarks.matching.blocks import Block, MatchingTask, best_image, best_text
from diptych.benchmarks.pictures import Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import CONTROLS, shares
from diptych.benchmarks.tables import Row
from diptych.core.errors import DiptychError
from diptych.data.source import Source


@dataclass(frozen=True)
class Spec(MatchingTask):
    """SPEC: images that differ in one attribute (Peng et al. 2024)."""

    name: str = "spec"
    kind: str = ""

    def items(self, source: Source) -> Items:
        """The blocks."""
        if self.file:
            pictures = Pictures(self.images, self.file)
            kind = self.kind or posixpath.basename(posixpath.dirname(self.file)) or "spec"
            rows = islice(read_records(self.file), self.n or None)
            return Items(self._block(row, i, kind, pictures) for i, row in enumerate(rows))
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

    def _block(self, row: Row, number: int, kind: str, pictures: Pictures) -> Block:
        query, keys, label = row.text("query"), row.need("keys", kind=list), row.need("label", kind=int)
        if not 0 <= label < len(keys):
            raise DiptychError(f"{row.where}: field 'label': {label} is not one of the {len(keys)} keys")
        order = list(range(len(keys)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        keys, right = [str(keys[i]) for i in order], np.array(order) == label
        if not keys[0].lower().endswith((".jpg", ".jpeg", ".png")):
            return Block(f"{number}", query, [pictures.path(query, row.where)], keys, right[None, :], {"kind": kind})
        return Block(f"{number}", f"{number}", [pictures.path(k, row.where) for k in keys], [query], right[:, None], {"kind": kind})

    def credit(self, scores: np.ndarray, fits: np.ndarray, to_image: np.ndarray | None = None) -> dict[str, float]:
        """{metric: credit in [0, 1]} of scores [images, texts]."""
        credits = {}
        if scores.shape[1] > 1:
            credits["image-to-text"] = best_text(scores, fits)
        if scores.shape[0] > 1:
            credits["text-to-image"] = best_image(scores if to_image is None else to_image, fits)
        return credits

    def summarise(self, records: list[Record]) -> list[Result]:
        """Each direction, and each of its kinds as a metric of its own, as SPEC reports them."""
        rows = [self.with_credits(r) for r in records]
        results = shares(self.name, rows)
        for kind in sorted({r["slices"]["kind"] for r in rows}):
            mine = []
            for r in rows:
                if r["slices"]["kind"] == kind:
                    renamed = {
                        k: {f"{kind}/{m}": v for m, v in r[k].items()} for k in ("correct", "chance", "ties", *CONTROLS) if k in r
                    }
                    mine.append({**r, **renamed, "slices": {}})
            results += shares(self.name, mine)
        return results
