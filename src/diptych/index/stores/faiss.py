"""Approximate search by faiss, for more than a million vectors: HNSW (a graph) and IVF-PQ (compressed vectors in lists)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.index.stores.approximate import Approximate

MOST = 1 << 18  # vectors that IVF-PQ learns its lists and codes from: half a gigabyte of 512 numbers each


class Hnsw(Approximate):
    """A graph with links between near vectors (Malkov & Yashunin 2016, arXiv:1603.09320), which holds them in half precision.

    links: of each vector in the upper layers; twice as many in the lowest. build: how many candidates a new vector
    chooses its links from.
    """

    kind = "hnsw"
    worth = 16.0  # vectors that can be compared one after the other in the time of a candidate (docs/measured.md)

    def __init__(
        self,
        folder: Path,
        width: int,
        *,
        links: int = 16,
        build: int = 40,
        least: int = 5000,
        recall: float = 0.995,
        effort: int | None = None,
    ):
        if links < 2 or build < links:
            raise DiptychError(f"store {self.kind}: links: at least 2, and build: at least as many; not {links} and {build}")
        self.links, self.build = links, build
        super().__init__(folder, width, least, recall, effort)

    def _make(self, count: int) -> Any:
        faiss = self._faiss
        graph = faiss.IndexHNSWSQ(self.width, faiss.ScalarQuantizer.QT_fp16, self.links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.build
        if not graph.is_trained:
            graph.train(np.zeros((1, self.width), np.float32))  # half precision has nothing to learn
        return graph

    def _reach(self, effort: float, k: int, depth: int = 0) -> tuple[Any, int]:
        reach = int(max(32 * effort, 2 * k, depth))
        return self._faiss.SearchParametersHNSW(efSearch=reach), min(reach, 4 * k)

    def _cost(self, effort: float, depth: int) -> float:
        return self.worth * max(32 * effort, depth)


class IvfPq(Approximate):
    """Vectors in lists around centroids, each compressed to a few bytes (Jégou et al. 2011, Product quantization for nearest
    neighbor search), for tens of millions: an eighth of a byte for each number of a vector in memory.

    lists: None: twice the root of the count. bytes: of a compressed vector; None: an eighth of the width.
    """

    kind = "ivfpq"
    worth = 0.3  # vectors that can be compared one after the other in the time of a compressed one
    deeper = 4  # times the vectors that are wanted of the lists

    def __init__(
        self,
        folder: Path,
        width: int,
        *,
        lists: int | None = None,
        bytes: int | None = None,
        least: int = 10_000,
        recall: float = 0.995,
        effort: int | None = None,
    ):
        if bytes is not None and (bytes < 1 or width % bytes):
            raise DiptychError(f"store {self.kind}: bytes: {bytes} does not divide the width {width}")
        if lists is not None and lists < 1:
            raise DiptychError(f"store {self.kind}: lists: {lists} is below 1")
        self.lists, self.bytes = lists, bytes
        super().__init__(folder, width, least, recall, effort)

    def _make(self, count: int) -> Any:
        faiss = self._faiss
        lists = self.lists or 2 ** max(0, round(np.log2(2 * np.sqrt(count))))
        lists = max(1, min(lists, count // 39))  # faiss's least number of training vectors for each
        divisors = [d for d in range(1, self.width + 1) if self.width % d == 0]
        pieces = self.bytes or min(divisors, key=lambda d: abs(np.log(8 * d / self.width)))
        sample = np.random.default_rng(0).choice(self.exact.ids(), min(count, max(min(48 * lists, MOST), 20_000)), replace=False)
        bits = 8 if len(sample) >= 256 * 8 else max(1, int(np.log2(max(2, len(sample) // 8))))
        graph = faiss.IndexIVFPQ(faiss.IndexFlatIP(self.width), self.width, lists, pieces, bits, faiss.METRIC_INNER_PRODUCT)
        graph.cp.min_points_per_centroid = graph.pq.cp.min_points_per_centroid = 1  # no warnings: few vectors, few lists
        graph.pq.cp.niter = 10  # of 25; the best candidates get exact scores
        graph.train(self.exact.vectors(np.sort(sample)))
        return graph

    def _outgrown(self, count: int) -> bool:
        return count > 4 * self._made_of  # lists and codes were learned from other vectors

    def _reach(self, effort: float, k: int, depth: int = 0) -> tuple[Any, int]:
        return self._faiss.SearchParametersIVF(nprobe=self._lists(effort, depth)), int(5 * k + 50 * effort)

    def _lists(self, effort: float, depth: int) -> int:
        """How many lists are searched: those that hold several times as many vectors as are wanted."""
        graph = self._graph
        return int(min(max(8 * effort, 1) + self.deeper * depth * graph.nlist / max(graph.ntotal, 1), graph.nlist))

    def _cost(self, effort: float, depth: int) -> float:
        return float(depth + self.worth * self._lists(effort, depth) * self._graph.ntotal / self._graph.nlist)
