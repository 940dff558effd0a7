"""Vectors of pictures by a model, kept between commands by the content of the picture and the weights of the model.

In the user's cache: ``vectors/<weights' key>/``, a file for each thousand pictures, so that an interrupted command loses little.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from diptych.choose.data import Pictures, fingerprints
from diptych.core.capabilities import Adapter, Image, Model
from diptych.core.errors import DiptychError
from diptych.core.files import write_atomically
from diptych.data.source import BrokenItem
from diptych.data.storage.cache import cache_directory

CHUNK = 64  # pictures decoded at a time
SHARD = 1024  # pictures a file
IN_MEMORY = 1 << 30  # bytes; longer results are on disk
Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


class Fingerprints(Adapter):
    """``data.fingerprints`` in the place of a model, so that they are kept likewise."""

    name = label = "looking for near-duplicates"
    key = "phash4-colours8-1"
    capabilities = frozenset({"embed_image"})

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """float32 [N, 256]; not unit vectors."""
        return fingerprints(images)


class Store:
    """The vectors of one model that are kept. key: of its weights; None: nothing is kept."""

    def __init__(self, key: str | None, folder: Path | None = None):
        self.folder = None if key is None else (folder or cache_directory() / "vectors") / key
        self.at: dict[str, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("*.npz")) if self.folder is not None and self.folder.is_dir() else []:
            try:
                with np.load(path, allow_pickle=False) as held:
                    self.at.update({digest: (path, i) for i, digest in enumerate(held["digests"].tolist())})
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                continue  # a file that is damaged is made again
        self.fresh: dict[str, np.ndarray] = {}

    def add(self, digests: list[str], vectors: np.ndarray) -> None:
        """Keeps vectors; a file is written when there are enough."""
        self.fresh.update(zip(digests, vectors, strict=True))
        if len(self.fresh) >= SHARD:
            self.write()

    def write(self) -> None:
        """Writes what is not in a file yet. A cache that cannot be written is not an error: a full disk costs time, not results."""
        if self.folder is None or not self.fresh:
            return
        path = self.folder / f"{uuid.uuid4().hex}.npz"
        digests, vectors = np.array(list(self.fresh)), np.stack(list(self.fresh.values()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda p: _save(p, digests, vectors))
        except OSError:
            self.folder = None
            return
        self.at.update({digest: (path, i) for i, digest in enumerate(self.fresh)})
        self.fresh = {}

    def rows(self, digests: list[str], out: np.ndarray) -> None:
        """Fills rows of ``out`` with the vectors of the digests that are in files."""
        by_file: dict[Path, list[tuple[int, int]]] = {}
        for row, digest in enumerate(digests):
            if digest in self.at:
                path, i = self.at[digest]
                by_file.setdefault(path, []).append((row, i))
        for path, places in by_file.items():
            with np.load(path, allow_pickle=False) as held:
                rows, at = (list(x) for x in zip(*places, strict=True))
                out[rows] = held["vectors"][at]


def weights_of(model: Model, *arrays: np.ndarray | None) -> str:
    """What a record says of the weights that it was made with: the model's key, or a hash of vectors of a model without one."""
    if (key := getattr(model, "key", None)) is not None:
        return str(key)
    total = hashlib.blake2b(digest_size=16)
    for array in arrays:
        total.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return f"vectors-{total.hexdigest()}"


def _save(path: Path, digests: np.ndarray, vectors: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, digests=digests, vectors=vectors)


def vectors_of(
    model: Model, pictures: Pictures, progress: Progress | None = None, folder: Path | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """The model's image vectors, float32 [N, E], and the pictures that cannot be decoded, {position: reason}, with rows of zeros.

    Each content is computed once. Results of more than 1 GiB are in a temporary file on disk. folder: where vectors are kept
    (default: the user's cache). DiptychError if the model does not embed images, or if its vectors are not finite.
    """
    if "embed_image" not in model.capabilities:
        raise DiptychError(f"model '{model.name}' cannot embed_image; it can: {', '.join(sorted(model.capabilities))}")
    store = Store(getattr(model, "key", None), folder)
    missing: dict[str, list[int]] = {}
    for i, digest in enumerate(pictures.digests):
        if digest not in store.at:
            missing.setdefault(digest, []).append(i)
    broken: dict[int, str] = {}
    computed: dict[int, np.ndarray] = {}
    todo, done = list(missing.items()), len(pictures) - sum(map(len, missing.values()))
    try:
        for start in range(0, len(todo), CHUNK):
            images, good = [], []
            for digest, places in todo[start : start + CHUNK]:
                try:
                    images.append(pictures.read(places[0]))
                    good.append((digest, places))
                except BrokenItem as error:
                    broken.update(dict.fromkeys(places, error.problem.reason))
            if images:
                vectors = np.asarray(model.embed_image(images), dtype=np.float32)
                if not np.isfinite(vectors).all():
                    raise DiptychError(
                        f"model '{model.name}': its vector of {pictures.ids[good[0][1][0]]} or one near it is not finite"
                    )
                store.add([digest for digest, _ in good], vectors)
                computed.update({i: row for (_, places), row in zip(good, vectors, strict=True) for i in places})
            done += sum(len(places) for _, places in todo[start : start + CHUNK])
            if progress:
                progress(getattr(model, "label", f"vectors by {model.name}"), done, len(pictures))
    finally:
        store.write()  # also after Ctrl-C
    if pictures.ids and len(broken) == len(pictures):
        raise DiptychError(f"no picture could be decoded, such as {pictures.ids[0]}: {broken[0]}")
    width = _width(store, computed, model)
    out = _array(len(pictures), width)
    store.rows(pictures.digests, out)
    for i, row in computed.items():
        out[i] = row
    return out, broken


def _width(store: Store, computed: dict[int, np.ndarray], model: Model) -> int:
    if computed:
        return len(next(iter(computed.values())))
    for path, _ in store.at.values():
        with np.load(path, allow_pickle=False) as held:
            return int(held["vectors"].shape[1])
    raise DiptychError(f"model '{model.name}': no picture could be decoded")


def _array(n: int, width: int) -> np.ndarray:
    """float32 [n, width] of zeros, on disk if it is large. The file is removed with the array."""
    if n * width * 4 <= IN_MEMORY:
        return np.zeros((n, width), dtype=np.float32)
    file = tempfile.TemporaryFile(prefix="diptych-vectors-")  # noqa: SIM115 - as long as the array
    return np.memmap(file, dtype=np.float32, mode="w+", shape=(n, width))


P = TypeVar("P", bound=Pictures)


def without_broken(
    train: P, test: P, both: Pictures, address: str, progress: Progress | None = None, test_address: str | None = None
) -> tuple[P, P, np.ndarray]:
    """The training and the test part without the pictures that cannot be read, and the ``fingerprints`` of what is left, those of
    the training part first. both: the two parts as one. DiptychError if no picture of a part can be read.
    """
    prints, broken = vectors_of(Fingerprints(), both, progress)
    n = len(train)
    left = train.without({i: why for i, why in broken.items() if i < n})
    tested = test.without({i - n: why for i, why in broken.items() if i >= n})
    for part, which, place in (("training", left, address), ("test", tested, test_address or address)):
        if not len(which):
            raise DiptychError(f"{place}: no picture of the {part} part can be read: {which.problems[-1].reason}")
    return left, tested, prints[[i for i in range(len(both)) if i not in broken]]
