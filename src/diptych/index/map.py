"""A map of the collection: pictures that are alike lie near each other, and groups have names.

Shapes: N pictures, E width of the vectors, K groups.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.extras import installed
from diptych.core.files import write_atomically

if TYPE_CHECKING:
    from diptych.index.index import Index

SAMPLE = 2_000  # pictures that are placed by t-SNE; the others lie between the nearest of these
MOST = 50_000  # pictures on a map
GROUPS = 24  # at most
NEIGHBOURS = 3  # of a picture in the sample, by which it is placed
TEMPLATE = "a photo of {}"
FILE = "map.npz"
SEED = 0


@dataclass(frozen=True)
class Cluster:
    """A group of pictures. x, y: where its name is written, 0 to 1; count: its pictures on the map."""

    name: str
    x: float
    y: float
    count: int


@dataclass(frozen=True)
class Map:
    """ids: int64 [N]; places: x and y, float32 [N, 2], 0 to 1; cluster: the number of the group of each, int64 [N].

    method: ``t-SNE``, or ``PCA`` where scikit-learn is not installed.
    """

    ids: np.ndarray
    places: np.ndarray
    cluster: np.ndarray
    clusters: tuple[Cluster, ...]
    method: str

    @property
    def points(self) -> list[tuple[int, float, float, int]]:
        """(id, x, y, number of the group) of each picture."""
        x, y = np.round(self.places.astype(np.float64), 4).T
        return list(zip(self.ids.tolist(), x.tolist(), y.tolist(), self.cluster.tolist(), strict=True))


def words() -> list[str]:
    """The words that groups may be named by."""
    lines = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines()
    found = [word.strip() for line in lines if not line.startswith("#") for word in line.split(",")]
    return list(dict.fromkeys(filter(None, found)))


def map_of(index: Index, model: Model | None, groups: int | None = None) -> Map:
    """The map of an index, kept until the index changes. model: names the groups; without one, or without vectors of texts, they
    are numbered. groups: how many; None: by the number of pictures. DiptychError for an index without pictures.
    """
    ids = index.catalog.column("SELECT id FROM pictures WHERE state = 'ok' ORDER BY id")
    if not len(ids):
        raise DiptychError(f"{index.path}: no pictures to draw a map of; run diptych index first")
    if groups is not None and groups < 1:
        raise DiptychError(f"groups={groups}: expected at least 1")
    named = model is not None and "embed_text" in model.capabilities
    key = f"2 {index.catalog.generation()} {groups} {named}"
    path = index.path / FILE
    if (kept := _load(path, key)) is not None:
        return kept
    rng = np.random.Generator(np.random.PCG64(SEED))
    if len(ids) > MOST:
        ids = np.sort(rng.choice(ids, MOST, replace=False))
    vectors = index.store.vectors(ids)
    number = groups or max(1, min(GROUPS, round((len(ids) / 8) ** 0.5)))
    cluster, centres = spherical_means(vectors, min(number, len(ids)), rng)
    places, method = placed(vectors, rng)
    names = names_of(centres, vectors, model if named else None)
    clusters = []
    for i, name in enumerate(names):
        own = places[cluster == i]
        middle = np.median(own, axis=0)
        clusters.append(Cluster(name, float(middle[0]), float(middle[1]), len(own)))
    result = Map(ids, places, cluster, tuple(clusters), method)
    _save(path, key, result)
    return result


def placed(vectors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A place for each vector, float32 [N, 2] in 0 to 1, and the method: t-SNE of a sample, where it is installed, and the others
    at the mean of their nearest in it; else the two main axes.
    """
    n = len(vectors)
    if n < 4:
        return np.stack([(np.arange(n) + 0.5) / n, np.full(n, 0.5)], 1).astype(np.float32), "PCA"
    centred = vectors - vectors.mean(0)
    chosen = np.arange(n) if n <= SAMPLE else np.sort(rng.choice(n, SAMPLE, replace=False))
    _, _, axes = np.linalg.svd(centred[chosen], full_matrices=False)
    flat = centred @ axes[: min(50, len(axes))].T
    if n < 10 or not installed("sklearn"):
        return _scaled(flat[:, :2] if flat.shape[1] > 1 else np.repeat(flat, 2, 1)), "PCA"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(chosen) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, learning_rate="auto", max_iter=500)
    known = _scaled(tsne.fit_transform(flat[chosen].astype(np.float32)))
    places = np.zeros((n, 2), np.float32)
    places[chosen] = known
    others = np.setdiff1d(np.arange(n), chosen)
    for start in range(0, len(others), 4096):
        some = others[start : start + 4096]
        near = vectors[some] @ vectors[chosen].T
        best = np.argpartition(-near, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        weight = np.exp(10 * np.take_along_axis(near, best, 1))
        weight /= weight.sum(1, keepdims=True)
        # A little to the side: equal places would hide each other.
        places[some] = (known[best] * weight[..., None]).sum(1) + rng.normal(0, 0.003, (len(some), 2))
    return places.clip(0, 1), "t-SNE"


def _scaled(places: np.ndarray) -> np.ndarray:
    """Into the unit square, the same scale in both directions, with a margin; the few that are far outside are drawn in."""
    low, high = np.quantile(places, [0.002, 0.998], axis=0)
    side = max(float((high - low).max()), 1e-9)
    result: np.ndarray = 0.5 + 0.94 * (places - (low + high) / 2) / side
    return result.clip(0.01, 0.99).astype(np.float32)


def spherical_means(vectors: np.ndarray, groups: int, rng: np.random.Generator, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """k-means of directions: the group of each vector, int64 [N], and the unit centres [K, E]; no group is empty, the largest is
    first. Begins with k-means++.
    """
    centred = unit_rows(vectors - vectors.mean(0), np.float32)
    first = [int(rng.integers(len(centred)))]
    far = 1 - centred @ centred[first[0]]
    for _ in range(1, groups):
        chance = np.maximum(far, 0) ** 2
        total = float(chance.sum())
        if total <= 1e-9:
            break  # all vectors are centres already
        first.append(int(rng.choice(len(centred), p=chance / total)))
        far = np.minimum(far, 1 - centred @ centred[first[-1]])
    centres = centred[first]
    group = np.full(len(centred), -1)
    for _ in range(rounds):
        before, group = group, (centred @ centres.T).argmax(1)
        if np.array_equal(before, group):
            break
        for i in range(len(centres)):
            own = centred[group == i]
            if len(own):
                centres[i] = unit_rows(own.mean(0))
    used, group, counts = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[group], centres[used][order]


def names_of(centres: np.ndarray, vectors: np.ndarray, model: Model | None) -> list[str]:
    """A word for each centre [K, E], no word twice: the one that is nearest to it and, on average, far from the others.

    Centres are relative to the mean of all ``vectors``, words to the mean of all words: what texts have in common, and pictures,
    says nothing. Without a model they are numbered.
    """
    if model is None:
        return [f"group {i + 1}" for i in range(len(centres))]
    known = words()
    texts = np.asarray(model.embed_text([TEMPLATE.format(word) for word in known]), np.float64)
    texts = unit_rows(texts - texts.mean(0))
    fit = centres @ texts.T  # [K, words]
    if len(centres) > 1:
        fit = fit - 0.5 * (fit.sum(0) - fit) / (len(centres) - 1)
    names = [""] * len(centres)
    for _ in range(len(centres)):
        i, word = np.unravel_index(int(fit.argmax()), fit.shape)
        names[int(i)] = known[int(word)]
        fit[i, :] = -np.inf
        fit[:, word] = -np.inf
    return names


def _load(path: Path, key: str) -> Map | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            if str(held["key"]) != key:
                return None
            rows = zip(held["names"].tolist(), held["middles"].tolist(), held["counts"].tolist(), strict=True)
            clusters = tuple(Cluster(name, x, y, count) for name, (x, y), count in rows)
            return Map(held["ids"], held["places"], held["cluster"], clusters, str(held["method"]))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _save(path: Path, key: str, result: Map) -> None:
    """A map that cannot be written is not an error: it is computed again."""

    def write(temporary: Path) -> None:
        """All arrays, as one .npz."""
        with temporary.open("wb") as file:
            np.savez(
                file, key=key, ids=result.ids, places=result.places, cluster=result.cluster, method=result.method,
                names=np.array([c.name for c in result.clusters]), counts=np.array([c.count for c in result.clusters]),
                middles=np.array([[c.x, c.y] for c in result.clusters]),
            )  # fmt: skip

    if os.access(path.parent, os.W_OK):
        with contextlib.suppress(OSError):
            write_atomically(path, write)
