"""Whether an index holds anything of the kind that is searched for: the one place that calls the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.index.calibrate import REFERENCE, Calibration
from diptych.index.cutoff.background import Background, captioned, embedded_texts, unrelated_texts

if TYPE_CHECKING:
    from diptych.index.index import Index
    from diptych.index.query import Query
    from diptych.index.stores.base import Store

FILE = "calibration.npz"
MOVED = 0.1  # a collection that grew or shrank by a larger share is calibrated again
SAMPLE = 20_000  # pictures of a large collection from which it is calibrated


@dataclass(frozen=True)
class Judged:
    """relevance: of each hit, 0 to 1. nothing: there is nothing of the kind, for the ``reason``."""

    relevance: Sequence[float]
    nothing: bool
    reason: str


def calibrate(index: Index, store: Store, model: Model) -> None:
    """Calibrates the collection as it is now, if it changed enough since the last time; not without vectors of texts."""
    path = index.path / FILE
    ids = store.ids()
    if "embed_text" not in model.capabilities or not len(ids):
        path.unlink(missing_ok=True)
        return
    generation = index.catalog.generation()
    kept = _load(index)
    if kept is not None and kept.total > REFERENCE and abs(kept.total - len(ids)) <= MOVED * kept.total:
        return
    rng = np.random.Generator(np.random.PCG64(0))
    sample = ids if len(ids) <= SAMPLE else np.sort(rng.choice(ids, SAMPLE, replace=False))

    def nearest(queries: np.ndarray, k: int) -> np.ndarray:
        """Vectors of the nearest pictures in the whole collection."""
        found = store.search(queries, k).ids
        some = np.unique(found[found >= 0])
        vectors = store.vectors(some)
        place = np.searchsorted(some, np.where(found >= 0, found, some[0]))
        return vectors[place]

    whole = None if len(sample) == len(ids) else nearest
    # A calibration that is there is by the same model and against the same background, as the index is.
    against = kept.background if kept is not None else background(model, index.info.get("background"))
    made = Calibration.of_background(against, store.vectors(sample), total=len(ids), nearest=whole)
    made.save(path)
    index.calibration_ = (generation, made)


def background(model: Model, address: str | None) -> Background:
    """What is compared with: the packaged texts, or texts and pictures of data with captions."""
    if address is not None:
        made = captioned(address, model)
        if len(made.absent):  # otherwise its captions have too few words in common to say what a picture does not show
            return made
    words = unrelated_texts()
    vectors = embedded_texts(model, words)
    return Background(words, vectors, np.zeros((0, vectors.shape[1]), np.float32))


def _load(index: Index) -> Calibration | None:
    path = index.path / FILE
    if not path.is_file():
        return None
    try:
        return Calibration.load(path)
    except DiptychError:
        return None  # damaged or of a newer version: the next update makes it again


def calibration(index: Index) -> Calibration | None:
    """The calibration of an index, kept in memory until the index changes; None if it has none."""
    generation = index.catalog.generation()
    kept = index.calibration_
    if kept is None or kept[0] != generation:
        kept = index.calibration_ = (generation, _load(index))
    return kept[1]


def judge(index: Index, query: Query, vector: np.ndarray, ids: Sequence[int], best: Sequence[int], total: int) -> Judged | None:
    """The verdict on hits; None where the index has no calibration, or nothing was searched for by words.

    ids: the hits; best: the first hits of the search, which decide whether there is anything; total: pictures that were searched.
    """
    known = calibration(index)
    if known is None or not (query.texts or query.without) or query.images or query.like:
        return None
    text = query.texts[0] if len(query.texts) == 1 and not query.without else ""
    every = np.unique(np.array([*ids, *best], np.int64))
    vectors = index.store.vectors(every)
    verdict = known.judge(vector, vectors[np.searchsorted(every, np.array(best, np.int64))], text=text, searched=total)
    if not ids:
        return Judged((), not verdict.present, verdict.reason)
    shown = known.judge(vector, vectors[np.searchsorted(every, np.array(ids, np.int64))], text=text, searched=total)
    return Judged([float(r) for r in shown.relevance], not verdict.present, verdict.reason)
