"""Whether an index holds anything of the kind that is searched for: the one place that calls the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from diptych.index.calibrate import REFERENCE, TOP, Calibration
from diptych.index.cutoff.background import PICTURES, TEXTS, Background, captioned, embedded_texts, unrelated_texts
from diptych.index.cutoff.kept import kept
from diptych.index.cutoff.rerank import Reranker

if TYPE_CHECKING:
    from diptych.index.index import Index
    from diptych.index.query import Query
    from diptych.index.stores.base import Store

FILE = "calibration.npz"
MOVED = 0.1  # a collection that grew or shrank by a larger share is calibrated again
SAMPLE = 20_000  # pictures of a large collection from which it is calibrated


@dataclass(frozen=True)
class Judged:
    """relevance: of each hit, 0 to 1; None: not judged. nothing: there is nothing of the kind, for the ``reason``."""

    relevance: Sequence[float | None]
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
    """What is compared with: the packaged texts, or texts and pictures of data with captions. Kept for each model (``kept``)."""
    if address is not None:
        about = f"data {address} {open_source(address).fingerprint()} {PICTURES} {TEXTS}"
        made = kept(model, about, lambda: captioned(address, model), Background.arrays, Background.of_arrays)
        if len(made.absent):  # otherwise its captions have too few words in common to say what a picture does not show
            return made
    words = unrelated_texts()

    def of_words() -> Background:
        """The texts with their vectors, without pictures."""
        vectors = embedded_texts(model, words)
        return Background(words, vectors, np.zeros((0, vectors.shape[1]), np.float32))

    return kept(model, f"texts {words}", of_words, Background.arrays, Background.of_arrays)


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


def judge(index: Index, query: Query, vector: np.ndarray, ids: Sequence[int], total: int, part: slice) -> Judged | None:
    """The verdict on hits; None where the index has no calibration, or nothing was searched for by words.

    ids: the hits, best first; the first ones decide whether there is anything. total: pictures that were searched. part: the hits
    that get a relevance, apart from the first ones.
    """
    known = calibration(index)
    if known is None or not (query.texts or query.without) or query.images or query.like:
        return None
    text = query.texts[0] if len(query.texts) == 1 and not query.without else ""
    rows = sorted({*range(len(ids))[:TOP], *range(len(ids))[part]})
    verdict = known.judge(vector, _vectors(index, [ids[i] for i in rows]), text=text, searched=total)
    relevance: list[float | None] = [None] * len(ids)
    for i, value in zip(rows, verdict.relevance, strict=True):
        relevance[i] = float(value)
    return Judged(relevance, not verdict.present, verdict.reason)


def readable(query: Query) -> bool:
    """Whether a query is of words alone, which a second model can judge."""
    return bool(query.texts) and not (query.images or query.like or query.without_images or query.without_like)


def rejudged(
    index: Index, query: Query, vector: np.ndarray, ids: Sequence[int], total: int, part: slice, rerank: Reranker
) -> tuple[Judged | None, list[int]]:
    """The verdict of a second model on the first hits, and the order of all of them: the first ones by its scores, best first, then
    the others as they are, without a relevance. One without a cut-off of its own leaves the verdict to the first model.

    A picture that cannot be read, because it changed or is gone, comes after those that can.
    """
    images, read = [], []
    for i, id in enumerate(ids[:TOP]):
        try:
            images.append(index.read(id))
            read.append(i)
        except DiptychError:
            continue
    if not read:
        return judge(index, query, vector, ids, total, part), list(range(len(ids)))
    scores = rerank.scores(images, query.texts, query.without)
    first = [read[i] for i in np.argsort(-scores, kind="stable")]
    order = [*first, *sorted(set(range(len(ids))) - set(first))]
    if not rerank.judges:
        before = judge(index, query, vector, ids, total, part)
        if before is None:
            return None, order
        return Judged([before.relevance[i] for i in order], before.nothing, before.reason), order
    text = query.texts[0] if len(query.texts) == 1 and not query.without else ""
    verdict = rerank.judge(np.sort(scores)[::-1], total, text)
    missing: list[float | None] = [None] * (len(ids) - len(read))
    return Judged([*(float(r) for r in verdict.relevance), *missing], not verdict.present, verdict.reason), order


def _vectors(index: Index, ids: Sequence[int]) -> np.ndarray:
    """Vectors of hits, in their order."""
    wanted = np.array(ids, np.int64)
    every = np.unique(wanted)
    return index.store.vectors(every)[np.searchsorted(every, wanted)]
