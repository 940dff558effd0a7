"""What every store of vectors does. Scores are inner products; the vectors have length 1, so these are cosines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from diptych.index.filters import Value, Where

Rows = Sequence[Mapping[str, Value | None]]  # the columns of each picture, for stores that filter by themselves


class Found(NamedTuple):
    """Neighbours of each query, best first: ids, int64 [Q, K], -1 where there are fewer than K; scores, float32 [Q, K], -inf there.

    Equal scores are in the order of the ids.
    """

    ids: np.ndarray
    scores: np.ndarray


@runtime_checkable
class Store(Protocol):
    """Vectors by id. Ids are chosen by the index, never used again, and kept when vectors are moved to another store.

    Nothing is lost when a process dies: what ``save`` has returned from is there, and of what was added after it nothing or
    everything. ``add`` with an id that is there replaces its vector.
    """

    kind: str

    def __len__(self) -> int:
        """How many vectors there are."""
        ...

    def add(self, ids: np.ndarray, vectors: np.ndarray, rows: Rows | None = None) -> None:
        """ids: int64 [N]; vectors: float32 [N, E] of length 1; rows: their columns. DiptychError for another width or for vectors
        that are not finite.
        """
        ...

    def delete(self, ids: np.ndarray) -> None:
        """Removes vectors; ids that are not there are passed over."""
        ...

    def search(self, queries: np.ndarray, k: int, where: Where | None = None) -> Found:
        """The k best of each query, float32 [Q, E], among those that fulfil ``where``."""
        ...

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of ids, float32 [N, E], as they were added. DiptychError for an id that is not there."""
        ...

    def ids(self) -> np.ndarray:
        """All ids, int64, ascending."""
        ...

    def save(self) -> None:
        """Makes all that was added and deleted lasting."""
        ...

    def close(self) -> None:
        """Lets go of files and connections. Does not save."""
        ...


def settle(store: Store, queries: np.ndarray | None = None, progress: Callable[[int, int], object] | None = None) -> None:
    """Brings a store that searches by an approximation up to date, by its method ``settle`` if it has one.

    queries: float32 [Q, E], such as texts, for which the approximation has to be good; progress(done, of how many): both for a
    ``settle`` that takes them.
    """
    method = getattr(store, "settle", None)
    if method is not None:
        taken = inspect.signature(method).parameters
        given = {"queries": queries, "progress": progress}
        method(**{name: value for name, value in given.items() if name in taken and value is not None})
