"""What is searched for, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.index.facts import PictureFacts

if TYPE_CHECKING:
    from collections.abc import Callable

# Words of one scene have like vectors, so a larger weight removes what is wanted together with what is not. This is the largest
# that loses no average precision beyond its interval (python -m bench.negatives; docs/measured.md).
NEGATIVE = 0.5


@dataclass(frozen=True)
class Query:
    """Texts, pictures (uint8 [height, width, 3]) and pictures of the index by id that are wanted together, and those that are
    not.
    """

    texts: tuple[str, ...] = ()
    images: tuple[np.ndarray, ...] = ()
    like: tuple[int, ...] = ()
    without: tuple[str, ...] = ()
    without_images: tuple[np.ndarray, ...] = ()
    without_like: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is wanted; then pictures come in the order of their ids."""
        return not (self.texts or self.images or self.like)


@dataclass(frozen=True)
class Hit:
    """A picture that was found. score: the cosine with the combined query. relevance: calibrated, 0 to 1; None where the index has
    no calibration. duplicates: ids of its near-duplicates among the pictures that fulfil the filters, best first.
    """

    id: int
    score: float
    relevance: float | None
    picture: PictureFacts
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The hits, best first. nothing: there is nothing of the kind, for the ``reason``; the hits are the nearest nevertheless.
    total: pictures that fulfil the filters. seconds: the time of the search, vectors of the query included. reranked: a second
    model judged the first hits.
    """

    hits: tuple[Hit, ...]
    nothing: bool
    reason: str
    total: int
    seconds: float
    reranked: bool = False


def vector_of(query: Query, model: Model, vectors: Callable[[np.ndarray], np.ndarray], weight: float = NEGATIVE) -> np.ndarray:
    """The unit vector of a query, float32 [E]: the sum of the unit vectors of what is wanted, minus ``weight`` times the mean of
    those that are not wanted times the number of those that are wanted.

    vectors: of ids. So several words that are not wanted count together as much as one, against any number of wanted ones.
    DiptychError if nothing is wanted, or if the model cannot read what is given.
    """
    if query.empty:
        raise DiptychError("a query of unwanted things alone: give words, a picture or --like as well")

    def of(texts: tuple[str, ...], images: tuple[np.ndarray, ...], like: tuple[int, ...]) -> np.ndarray:
        """Unit vectors of texts, pictures and pictures of the index, [n, E]."""
        rows = []
        if texts:
            rows.append(_of_model(model, "embed_text", list(texts)))
        if images:
            rows.append(_of_model(model, "embed_image", list(images)))
        if like:
            rows.append(np.asarray(vectors(np.array(like, np.int64)), np.float64))
        return unit_rows(np.concatenate(rows)) if rows else np.zeros((0, 0))

    wanted = of(query.texts, query.images, query.like)
    total = wanted.sum(0)
    unwanted = of(query.without, query.without_images, query.without_like)
    if len(unwanted):
        total = total - weight * len(wanted) * unwanted.mean(0)
    return unit_rows(total, np.float64).astype(np.float32)


def _of_model(model: Model, what: str, items: list[str] | list[np.ndarray]) -> np.ndarray:
    if what not in model.capabilities:
        kind = "words" if what == "embed_text" else "pictures"
        raise DiptychError(
            f"model '{model.name}' has no vectors of {kind}: search with {'pictures' if kind == 'words' else 'words'}"
        )
    vectors = np.asarray(getattr(model, what)(items), np.float64)
    if not np.isfinite(vectors).all():
        raise DiptychError(f"model '{model.name}': the vector of the query is not finite")
    return vectors
