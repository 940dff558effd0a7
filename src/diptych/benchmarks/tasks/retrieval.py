"""Image-text retrieval within n items: recall at 1, 5, 10, both directions (protocol: Karpathy & Fei-Fei, arXiv:1412.2306).

A record an item, named as the item, with both directions; further captions of an item add records for the direction
text → image. Blind: the ranking that a grey image gives. Shuffled: every image answers with another's scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.ranking import expected_rank, lowest_if_not_finite, recall_at, standing, undecided
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.tasks.base import (
    Items,
    NotApplicable,
    Progress,
    at_least_two,
    images_of,
    not_finite,
    retrieval_items,
    shares,
)
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Source

TO_TEXT, TO_IMAGE = "image-to-text", "text-to-image"


@dataclass(frozen=True)
class Retrieval:
    name: str = "retrieval"
    needs: tuple[str, ...] = ("score",)
    n: int = 100
    captions: int | None = 1  # how many of each item; None: all
    ks: tuple[int, ...] = (1, 5, 10)
    seed: int = 0

    def items(self, source: Source) -> Items:
        return at_least_two(retrieval_items(source, self.n))

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        names, texts, owner = [], [], []
        for i, item in enumerate(items):
            for j, caption in enumerate(item.captions[: self.captions]):
                names.append(f"{item.id}#{j}" if j else item.id)
                texts.append(caption)
                owner.append(i)
        if all(name in records for name in names):
            return
        images = images_of(items)
        scores = self.scores(model, [*images, blank(images[0])], texts)
        rows = self.judge([item.id for item in items], np.array(owner), scores[:-1], scores[-1])
        records.add({"item": name, "caption": text, **row} for name, text, row in zip(names, texts, rows, strict=True))

    def scores(self, model: Model, images: list[Any], texts: list[str]) -> np.ndarray:
        return np.asarray(model.score(images, texts))

    def judge(self, ids: list[str], owner: np.ndarray, scores: np.ndarray, blind: np.ndarray) -> list[Record]:
        """A record for each text, from scores [N, M] and those of a grey image [M]; text j belongs to image owner[j]."""
        positive = owner[None, :] == np.arange(len(ids))[:, None]  # [N, M]
        matrices = {
            "correct": scores,
            "blind": np.broadcast_to(blind, scores.shape),
            "shuffled": scores[derangement(len(ids), seed=self.seed)],
            "chance": np.zeros(scores.shape),
        }
        found = {n: {TO_TEXT: standing(m, positive), TO_IMAGE: standing(m.T, positive.T)} for n, m in matrices.items()}
        metrics = {f"{way}/recall@{k}": (way, k) for way in (TO_TEXT, TO_IMAGE) for k in self.ks}
        columns = {n: {m: recall_at(k, *ways[way]) for m, (way, k) in metrics.items()} for n, ways in found.items()}
        columns["ties"] = {m: undecided(k, *found["correct"][way]) for m, (way, k) in metrics.items()}
        columns["rank"] = {way: expected_rank(*standings) for way, standings in found["correct"].items()}
        top = np.argsort(-lowest_if_not_finite(scores.T), axis=1, kind="stable")[:, :3]  # [M, 3] best images of a text
        rows: list[Record] = []
        for j, i in enumerate(owner):
            query = {TO_TEXT: i, TO_IMAGE: j} if i not in owner[:j] else {TO_IMAGE: j}  # an image asks once
            own = {
                name: {m: column[query[way]] for m, column in by_metric.items() if (way := m.partition("/")[0]) in query}
                for name, by_metric in columns.items()
            }
            rows.append({"cluster": ids[i], **own, "top": [ids[t] for t in top[j]], "nans": not_finite(scores[:, j])})
        return rows

    def summarise(self, records: list[Record]) -> list[Result]:
        return shares(self.name, records)


@dataclass(frozen=True)
class LargeRetrieval(Retrieval):
    """Among 1,000: a matrix of a million scores, for models that encode each side once and compare cheaply, by embeddings or as they score."""

    name: str = "retrieval-1000"
    needs: tuple[str, ...] = ("score_all|embed_image", "score_all|embed_text")
    n: int = 1000

    def items(self, source: Source) -> Items:
        items = super().items(source)
        if len(items) < self.n:
            raise NotApplicable(f"needs {self.n:,} usable items, the source has {len(items):,}")
        return items

    def scores(self, model: Model, images: list[Any], texts: list[str]) -> np.ndarray:
        if "score_all" in model.capabilities:
            return super().scores(model, images, texts)
        return model.embed_image(images) @ model.embed_text(texts).T
