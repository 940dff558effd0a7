"""Image-text retrieval within n items: recall at 1, 5, 10 in both directions (protocol: Karpathy & Fei-Fei, arXiv:1412.2306).

``retrieval``: one record per item, with the item's id, for both directions; further captions of an item add records for the
direction text → image. A model with a score of its own for each direction (``score_sides``) is judged by it. Blind: the ranking
that a grey image gives. Shuffled: every image has another image's scores. ``diptych metrics retrieval``: the same from a
similarity matrix in a file, which may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import (
    Items,
    NotApplicable,
    Progress,
    at_least_two,
    count_not_finite,
    images_of,
    retrieval_items,
)
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.inputs import read_json, read_npy
from diptych.benchmarks.metrics.ranking import expected_rank, lowest_if_not_finite, recall_at, standing, undecided
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import distinct, of_credits, shares
from diptych.benchmarks.statistics import function_interval
from diptych.core.capabilities import Model, sides_of
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import Source

TO_TEXT, TO_IMAGE = "image-to-text", "text-to-image"
BLOCK = 64 << 20  # bytes of float64 scores in memory at a time
MOST_WORK = 40_000_000  # items × resamples of the median


@dataclass(frozen=True)
class Retrieval:
    """Finding the caption of an image, and the image of a caption."""

    name: str = "retrieval"
    needs: tuple[str, ...] = ("score",)
    n: int = 100
    captions: int | None = 1  # how many of each item; None: all
    ks: tuple[int, ...] = (1, 5, 10)
    seed: int = 0

    def items(self, source: Source) -> Items:
        """Up to n samples with an image and a caption. Raises NotApplicable if there are fewer than two."""
        return at_least_two(retrieval_items(source, self.n))

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per caption. All are computed again if one is missing, since every rank depends on all other items."""
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
        rows = self.rows([item.id for item in items], np.array(owner), *scores)
        records.add({"item": name, "caption": text, **row} for name, text, row in zip(names, texts, rows, strict=True))

    def scores(self, model: Model, images: list[Any], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The scores by which texts are chosen for images, and those by which images are chosen for texts: float [images, texts]
        each.
        """
        return sides_of(model, images, texts)

    def rows(self, ids: list[str], owner: np.ndarray, to_text: np.ndarray, to_image: np.ndarray) -> list[Record]:
        """The content of a record for each text, from scores [N + 1, M] of N images and a grey one in each direction; text j
        belongs to image owner[j].
        """
        positive = owner[None, :] == np.arange(len(ids))[:, None]  # [N, M]
        conditions = self._conditions(to_text[:-1], to_text[-1])
        other = conditions if to_image is to_text else self._conditions(to_image[:-1], to_image[-1])
        scores = other["correct"]
        standings = {n: {TO_TEXT: standing(m, positive), TO_IMAGE: standing(other[n].T, positive.T)} for n, m in conditions.items()}
        metrics = {f"{way}/recall@{k}": (way, k) for way in (TO_TEXT, TO_IMAGE) for k in self.ks}
        columns = {n: {m: recall_at(k, *ways[way]) for m, (way, k) in metrics.items()} for n, ways in standings.items()}
        columns["ties"] = {m: undecided(k, *standings["correct"][way]) for m, (way, k) in metrics.items()}
        columns["rank"] = {way: expected_rank(*of_way) for way, of_way in standings["correct"].items()}
        top = np.argsort(-lowest_if_not_finite(scores.T), axis=1, kind="stable")[:, :3]  # [M, 3] best images of a text
        rows: list[Record] = []
        firsts = set(np.unique(owner, return_index=True)[1].tolist())  # an image is a query once, with its first text
        for j, i in enumerate(owner):
            query = {TO_TEXT: i, TO_IMAGE: j} if j in firsts else {TO_IMAGE: j}
            own = {
                name: {m: column[query[way]] for m, column in by_metric.items() if (way := m.partition("/")[0]) in query}
                for name, by_metric in columns.items()
            }
            rows.append({"cluster": ids[i], **own, "top": [ids[t] for t in top[j]], "nans": count_not_finite(scores[:, j])})
        return rows

    def _conditions(self, scores: np.ndarray, blind: np.ndarray) -> dict[str, np.ndarray]:
        """The scores [N, M], and those of the controls."""
        return {
            "correct": scores,
            "blind": np.broadcast_to(blind, scores.shape),
            "shuffled": scores[derangement(len(scores), seed=self.seed)],
            "chance": np.zeros(scores.shape),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """Recall at 1, 5 and 10 in both directions; intervals resample images."""
        return shares(self.name, records)


@dataclass(frozen=True)
class LargeRetrieval(Retrieval):
    """Retrieval among 1,000 items, for models that encode each image and text once: by embeddings, or by scores of all pairs."""

    name: str = "retrieval-1000"
    needs: tuple[str, ...] = ("score_all|embed_image", "score_all|embed_text")
    n: int = 1000

    def items(self, source: Source) -> Items:
        """Exactly n samples: recall among fewer would not be comparable. Raises NotApplicable if the source has fewer."""
        items = super().items(source)
        if len(items) < self.n:
            raise NotApplicable(f"needs {self.n:,} usable items, the source has {len(items):,}")
        return items

    def scores(self, model: Model, images: list[Any], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The scores by which texts are chosen for images, and those by which images are chosen for texts: float [images, texts]
        each.
        """
        if "score_all" in model.capabilities:
            return super().scores(model, images, texts)
        scores: np.ndarray = model.embed_image(images) @ model.embed_text(texts).T
        return scores, scores


# --- a similarity matrix in a file: diptych metrics retrieval ---


@dataclass(frozen=True)
class Standing:
    """The rank of the best positive of each query; int [Q] each, as ``ranking.standing`` returns them."""

    above: np.ndarray
    tied: np.ndarray
    hits: np.ndarray
    nans: int  # scores that are not finite: they count as the lowest

    def credit(self, k: int) -> np.ndarray:
        """R@k of each query: the probability of a positive in the top k if ties are in random order; float [Q]."""
        return recall_at(k, self.above, self.tied, self.hits)

    def rank(self) -> np.ndarray:
        """The mean rank of the best positive, from 1; float [Q]."""
        return expected_rank(self.above, self.tied, self.hits)

    def ties(self, k: int) -> int:
        """How many queries a tie at the cut leaves undecided."""
        return int(undecided(k, self.above, self.tied, self.hits).sum())


def standings(
    similarity: np.ndarray, positives: Sequence[Sequence[int]], progress: Callable[[int, int], None] | None = None
) -> tuple[Standing, Standing | None]:
    """The ranks of rows that search for columns, and of columns that search for rows; the second is None if a column is no
    row's positive.

    ``similarity``: numbers [Q, M], memory-mapped if large; ``positives``: the columns right for each row, at least one.
    Every row is read twice. Raises ValueError for a row without a positive or for a column that does not exist.
    """
    rows, columns = similarity.shape
    _check(positives, rows, columns)
    row_of = np.repeat(np.arange(rows), [len(p) for p in positives])
    column_of = np.concatenate([np.asarray(p, dtype=np.int64) for p in positives])
    step = max(1, BLOCK // (8 * columns))
    above, tied, hits = (np.zeros(rows, dtype=np.int64) for _ in range(3))
    best, nans = np.full(columns, -np.inf), 0
    for start in range(0, rows, step):
        block, bad = _finite(similarity[start : start + step])
        nans += bad
        mine = (row_of >= start) & (row_of < start + step)
        r, c = row_of[mine] - start, column_of[mine]
        own = np.full(len(block), -np.inf)
        np.maximum.at(own, r, block[r, c])
        above[start : start + step] = (block > own[:, None]).sum(1)
        tied[start : start + step] = (block == own[:, None]).sum(1)
        np.add.at(hits, r + start, block[r, c] == own[r])
        np.maximum.at(best, c, block[r, c])
        if progress:
            progress(min(start + step, rows), 2 * rows)
    forward = Standing(above, tied, hits, nans)
    if len(np.unique(column_of)) < columns:
        return forward, None
    above, tied, hits = (np.zeros(columns, dtype=np.int64) for _ in range(3))
    for start in range(0, rows, step):
        block, _ = _finite(similarity[start : start + step])
        mine = (row_of >= start) & (row_of < start + step)
        r, c = row_of[mine] - start, column_of[mine]
        above += (block > best).sum(0)
        tied += (block == best).sum(0)
        np.add.at(hits, c, block[r, c] == best[c])
        if progress:
            progress(rows + min(start + step, rows), 2 * rows)
    return forward, Standing(above, tied, hits, nans)


def _finite(block: np.ndarray) -> tuple[np.ndarray, int]:
    block = np.array(block, dtype=np.float32 if block.dtype.itemsize <= 2 else None)
    if block.dtype.kind != "f":
        return block.astype(np.float64), 0
    good = np.isfinite(block)
    bad = int(block.size - np.count_nonzero(good))
    if bad:
        block[~good] = -np.inf
    return block, bad


def _check(positives: Sequence[Sequence[int]], rows: int, columns: int) -> None:
    if len(positives) != rows:
        raise ValueError(f"{rows} rows of scores but positives for {len(positives)}")
    for i, mine in enumerate(positives):
        if not len(mine):
            raise ValueError(f"row {i} has no positive")
        if len(set(mine)) < len(mine):
            raise ValueError(f"row {i} names a positive twice")
        wrong = [j for j in mine if not 0 <= j < columns]
        if wrong:
            raise ValueError(f"row {i}: there is no column {wrong[0]}; there are {columns}, from 0")


def chance(k: int, candidates: int, positives: np.ndarray) -> float:
    """Mean over queries of the probability that one of its ``positives`` [Q] is among k random ones of ``candidates``."""
    missed = np.ones(len(positives))
    for j in range(min(k, candidates)):
        missed = missed * np.maximum(candidates - positives - j, 0) / (candidates - j)
    return float((1 - missed).mean())


def score_file(
    similarity: Path, positives: Path, ks: Sequence[int] = (1, 5, 10), progress: Callable[[int, int], None] | None = None
) -> list[Result]:
    """R@K and the median rank in both directions. ``positives``: a JSON list, for each row of the matrix the columns that are
    right."""
    scores = read_npy(similarity, 2)
    listed = _positives(positives, similarity, len(scores))
    try:
        forward, backward = standings(scores, listed, progress)
    except ValueError as error:
        raise DiptychError(f"{positives}: {error}") from None
    rows, columns = scores.shape
    owner = np.zeros(columns, dtype=np.int64)  # the captions of one image are a cluster
    for i, mine in enumerate(listed):
        owner[mine] = i
    sizes = np.bincount(np.concatenate([np.asarray(m) for m in listed]), minlength=columns)
    ways = [("row→column", forward, np.arange(rows), columns, np.array([len(m) for m in listed]))]
    if backward is not None:
        ways.append(("column→row", backward, owner, rows, sizes))
    results = []
    for name, at, clusters, candidates, right in ways:
        for k in ks:
            at_chance = chance(k, candidates, right)
            recall = of_credits("retrieval", f"{name} R@{k}", at.credit(k), clusters.tolist(), chance=at_chance)
            results.append(replace(recall, ties=at.ties(k), nans=at.nans))
        ranks = at.rank()
        resamples = int(np.clip(MOST_WORK // len(ranks), 200, 2000))
        median = function_interval(partial(_median, ranks), clusters.tolist(), resamples=resamples)
        ends = max(1.0, median.low), median.high, len(ranks), distinct(clusters.tolist())
        results.append(Result("retrieval", f"{name} median rank", median.value, *ends, higher_is_better=False, nans=at.nans))
    return results


def _positives(path: Path, similarity: Path, rows: int) -> list[list[int]]:
    given = read_json(path)
    if isinstance(given, dict):
        if len(given) != rows or any(str(i) not in given for i in range(rows)):
            raise DiptychError(f"{path}: expected the keys 0 to {rows - 1}, one per row of {similarity}")
        given = [given[str(i)] for i in range(rows)]
    if not isinstance(given, list):
        raise DiptychError(f"{path}: expected a list, for each row of {similarity} the columns that are right")
    listed = [[columns] if isinstance(columns, int) else columns for columns in given]
    for i, columns in enumerate(listed):
        if not isinstance(columns, list) or not all(isinstance(j, int) and not isinstance(j, bool) for j in columns):
            raise DiptychError(f"{path}, [{i}]: expected a list of column numbers, got {columns!r:.60}")
    return listed


def _median(ranks: np.ndarray, index: np.ndarray) -> float:
    return float(np.median(ranks[index]))
