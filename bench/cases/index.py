"""Search among a million vectors of 512 numbers that look like embeddings of scenes: real vectors of 8,192 scenes by a small `clip`, a mixture of 64 Gaussians fitted to them, and a million samples of it
(`bench/embeddings.py`; not noise). Each store is built as an index builds it, in parts of 50,000 that are saved. Queries are not in the collection: 50 more samples (*pictures*), and 50 real captions of scenes (*texts*), which lie
elsewhere than pictures. Filters let a hundredth or a half through: a random one, and the one nearest to one direction (*similar*), as a folder or a label would; then a half of the queries has nothing near that counts. One query at a
time, the stores in turns; recall@10 against comparing all vectors. The peer is faiss's own Flat index, in memory. Real vectors are kept in runs/bench-index. `python -m bench index --count 10000000` is the same for ten million, by IVF-PQ
alone and without the halves (20 GB of disk)."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.embeddings import WIDTH, Mixture, neighbourhood, real_vectors
from bench.harness import Bench, cpu_seconds, megabytes
from diptych.index.filters import Where
from diptych.index.stores import open_store
from diptych.index.stores.base import Found, Store, settle
from diptych.index.stores.ranking import best, nearest_rows
from diptych.index.stores.recall import recall_of

SLOW = True  # a quarter of an hour, and 10 GB of disk
COUNT = 1_000_000
OTHERS = 100  # texts for which the effort of a search is chosen
LARGE = 2_000_000  # more do not fit in the memory of the peer, and are drawn anew each time
CACHE = Path("runs") / "bench-index"
PART = 50_000
K, GOAL_MS, GOAL_RECALL = 10, 50, 0.99
Search = Callable[[np.ndarray, np.ndarray | None], Found]  # (one query [1, E], ids that are allowed)


class Flat:
    """faiss's Flat index over all vectors, by itself."""

    def __init__(self) -> None:
        import faiss

        self.faiss, self.index = faiss, faiss.IndexFlatIP(WIDTH)

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(vectors)

    def search(self, query: np.ndarray, allowed: np.ndarray | None) -> Found:
        parameters = None
        if allowed is not None:
            marks = np.zeros(self.index.ntotal, bool)
            marks[allowed] = True
            parameters = self.faiss.SearchParameters(sel=self.faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little")))
        scores, ids = self.index.search(query, K, params=parameters)
        return Found(ids, scores)


class Truth:
    """The exact neighbours of queries among all vectors and among those of filters, kept up part by part."""

    def __init__(self, queries: np.ndarray, filters: dict[str, np.ndarray]):
        self.queries, self.filters = queries, filters
        empty = (np.zeros(0, np.int64), np.zeros((0, WIDTH), np.float32))
        self.near = {name: [empty] * len(queries) for name in filters}

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        for name, allowed in self.filters.items():
            rows = np.arange(len(ids)) if name == "none" else np.flatnonzero(np.isin(ids, allowed))
            for q, scores in enumerate(self.queries @ vectors[rows].T):
                top = rows[nearest_rows(scores, K)]
                held, kept = self.near[name][q]
                held, kept = np.concatenate([held, ids[top]]), np.concatenate([kept, vectors[top]])
                order = np.argsort(-(kept @ self.queries[q]), kind="stable")[: 2 * K]
                self.near[name][q] = held[order], kept[order]

    def of(self, name: str) -> Found:
        return best(self.queries, self.near[name], K)


def run(bench: Bench, count: int | None = None) -> None:
    count = count or (20_000 if bench.quick else COUNT)
    kinds = ("exact", "hnsw", "ivfpq") if count <= LARGE else ("ivfpq",)
    CACHE.mkdir(parents=True, exist_ok=True)
    measured(bench, count, kinds, scenes=1024 if bench.quick else 8192, samples=640 if bench.quick else 12_800)


def measured(bench: Bench, count: int, kinds: tuple[str, ...], scenes: int, samples: int, place: str | None = None) -> None:
    """The whole case. place: where the stores are built; None: a temporary folder."""
    images, texts = real_vectors(scenes, samples, (Path(place) if place else CACHE) / f"real-{scenes}-{samples}.npz")
    mixture = Mixture.fit(images, 64 if scenes > 2000 else 16)
    half = len(images) // 2
    drawn = mixture.sample(len(images), np.random.default_rng(99))
    for name, vectors in (("real", images), ("sampled", drawn)):
        first, far, dimension = neighbourhood(vectors[:half], vectors[half : half + 1000])
        bench.note(
            f"{half:,} {name} vectors: cosine with the nearest {first:.3f}, with the 20th {far:.3f}, intrinsic dimension {dimension:.1f}."
        )
    number = 20 if bench.quick else 50
    queries = np.concatenate([mixture.sample(number, np.random.default_rng(98)), texts[:number]])
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        parts = _Parts(mixture, count, folder / "vectors.npy" if count <= LARGE else None)
        _compared(bench, kinds, folder, parts, queries, np.arange(len(queries)) >= number, texts[number : number + OTHERS])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Parts:
    """The vectors of the collection in parts, with the first id of each; drawn once where a file keeps them, else each time."""

    def __init__(self, mixture: Mixture, count: int, path: Path | None):
        self.mixture, self.count, self.kept = mixture, count, None
        if path is not None:
            kept = np.lib.format.open_memmap(path, "w+", np.float32, (count, WIDTH))
            for start, vectors in self:
                kept[start : start + len(vectors)] = vectors
            self.kept = kept

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for i, start in enumerate(range(0, self.count, PART)):
            if self.kept is not None:
                yield start, np.array(self.kept[start : start + PART])
            else:
                yield start, self.mixture.sample(min(PART, self.count - start), np.random.default_rng([1, i]))


def _compared(
    bench: Bench,
    kinds: tuple[str, ...],
    folder: Path,
    parts: _Parts,
    queries: np.ndarray,
    of_texts: np.ndarray,
    others: np.ndarray,
) -> None:
    """others: further texts, for which the effort of a search is chosen, as an index does."""
    count = parts.count
    filters = _filters(parts)
    truth, flat = Truth(queries, filters), Flat() if count <= LARGE else None
    began = time.perf_counter()
    for start, vectors in parts:
        truth.add(np.arange(start, start + len(vectors)), vectors)
        if flat is not None:
            flat.add(vectors)
    print(f"  {count:,} vectors and their true neighbours: {time.perf_counter() - began:.0f} s", flush=True)
    rows, searches = [], {}
    for kind in kinds:
        store, spent = _built(kind, folder / kind, parts, others)
        searches[kind] = _of_store(store)
        rows.append([kind, *spent])
        print(f"  built: {' | '.join(rows[-1])}", flush=True)
    title = f"Building, {count:,} vectors, from nothing to a measured effort of search"
    bench.table(["store", "built in", "CPU time", "on disk", "effort; margin and depth under filters"], rows, title)
    if flat is not None:
        searches["faiss Flat"] = flat.search
    _search(bench, searches, queries, of_texts, filters, truth, kinds)


def _filters(parts: _Parts) -> dict[str, np.ndarray]:
    """Ids that each filter lets through, by its label; none for the first, which is no filter."""
    count = parts.count
    direction = parts.mixture.means[int(np.argmax(parts.mixture.weights))]
    scores = np.concatenate([vectors @ direction for _, vectors in parts])
    filters = {"none": np.zeros(0, np.int64)}
    for label, number in {"1 %": max(1, count // 100), "half": count // 2}.items():
        if label == "half" and count > LARGE:
            continue
        filters[f"{label}, random"] = np.sort(np.random.default_rng(97).choice(count, number, replace=False))
        filters[f"{label}, similar"] = np.sort(np.argpartition(-scores, number)[:number])
    return filters


def _built(kind: str, folder: Path, parts: _Parts, others: np.ndarray) -> tuple[Store, list[str]]:
    store = open_store(kind, folder, WIDTH)
    wall = cpu = 0.0
    for start, vectors in parts:  # drawing the vectors is not counted
        began, before = time.perf_counter(), cpu_seconds()
        store.add(np.arange(start, start + len(vectors)), vectors)
        store.save()
        wall, cpu = wall + time.perf_counter() - began, cpu + cpu_seconds() - before
    began, before = time.perf_counter(), cpu_seconds()
    settle(store, others, _shown(kind, began))
    wall, cpu = wall + time.perf_counter() - began, cpu + cpu_seconds() - before
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    looks = "all" if kind == "exact" else f"{getattr(store, '_effort', None)}, {tuple(getattr(store, '_pick', None) or ())}"
    return store, [f"{wall:.0f} s", f"{cpu:.0f} s", megabytes(size), looks]


def _shown(kind: str, began: float) -> Callable[[int, int], None]:
    """Prints the progress of a store at each tenth."""
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if 10 * done // total > last:
            last = 10 * done // total
            print(f"  {kind}: {done:,} of {total:,} vectors, {time.perf_counter() - began:.0f} s", flush=True)

    return progress


def _of_store(store: Store) -> Search:
    def search(query: np.ndarray, allowed: np.ndarray | None) -> Found:
        return store.search(query, K, None if allowed is None else Where(ids=lambda: allowed))

    return search


def _search(
    bench: Bench,
    searches: dict[str, Search],
    queries: np.ndarray,
    of_texts: np.ndarray,
    filters: dict[str, np.ndarray],
    truth: Truth,
    kinds: tuple[str, ...],
) -> None:
    rows = []
    for name, allowed in filters.items():
        times: dict[str, list[float]] = {kind: [] for kind in searches}
        found: dict[str, list[Found]] = {kind: [] for kind in searches}
        for i, query in enumerate([queries[0], *queries]):  # the first one warms up
            for kind in list(searches) if i % 2 else reversed(searches):
                began = time.perf_counter()
                result = searches[kind](query[None], None if name == "none" else allowed)
                if i:
                    times[kind].append(1000 * (time.perf_counter() - began))
                    found[kind].append(result)
        for kind in searches:
            joined = Found(*(np.concatenate(parts) for parts in zip(*found[kind], strict=True)))
            exact = truth.of(name)
            recalls = [recall_of(_rows(joined, mask), _rows(exact, mask)) for mask in (~of_texts, of_texts)]
            median, p95 = float(np.median(times[kind])), float(np.quantile(times[kind], 0.95))
            rows.append([kind, name, *(f"{r:.4f}" for r in recalls), f"{median:.1f} ms", f"{p95:.1f} ms"])
            print(f"  {' | '.join(rows[-1])}", flush=True)
            bench.numbers[f"{kind}, {name}"] = {"recall": recalls, "median_ms": median, "p95_ms": p95}
            if kind in kinds and kind != "exact":
                wide = name.startswith("half")  # where a query's surroundings are excluded, search is exact
                met = min(recalls) >= GOAL_RECALL and (wide or median < GOAL_MS)
                measured, under = f"{min(recalls):.4f}, {median:.1f} ms", "" if wide else f" in under {GOAL_MS} ms a query"
                bench.goal(f"{kind}, filter {name}: recall@10 ≥ {GOAL_RECALL}{under}", measured, met)
    columns = ["store", "filter", "recall@10, pictures", "recall@10, texts", "median", "p95"]
    bench.table(columns, rows, "One query at a time")


def _rows(found: Found, mask: np.ndarray) -> Found:
    return Found(found.ids[mask], found.scores[mask])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cases.index", description="The case with other sizes; nothing is written."
    )
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--stores", default="exact,hnsw,ivfpq")
    parser.add_argument("--scenes", type=int, default=8192)
    parser.add_argument("--samples", type=int, default=12_800)
    parser.add_argument("--place", help="a folder on a disk with room, where the real vectors are kept too")
    given = parser.parse_args()
    measured(Bench("index"), given.count, tuple(given.stores.split(",")), given.scenes, given.samples, given.place)


if __name__ == "__main__":
    main()
