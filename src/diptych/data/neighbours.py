"""The nearest pictures of each sample of a source: found once from features, and kept in the user's cache and in the run.

A table belongs to one state of the data (its fingerprint) and of the model that gave the features. A run keeps its own copy, so
that it resumes with the neighbours that it began with; if the data has changed since, it says so and does not look for others.
Shapes: N samples, K neighbours, E features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.core.files import write_atomically
from diptych.core.progress import CountDisplay
from diptych.core.signals import terminated_like_interrupted
from diptych.data.image import resize
from diptych.data.order import ENDLESS
from diptych.data.source import BrokenItem, Source
from diptych.data.sources.mixture import Mixture
from diptych.data.storage.cache import cache_directory

FORMAT = 1  # of the tables; part of their keys
FIRST = 10_000  # samples of a source without end
ROWS, COLUMNS = 1024, 8192  # similarities at a time: 32 MB
AT_ONCE = 128  # pictures read and embedded at a time
IN_MEMORY = 256 * 2**20  # bytes of features; more are kept in a file

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 [B, size, size, 3] → float [B, E]


@dataclass(frozen=True)
class Table:
    """``rows`` int32 [N, K]: the nearest samples of each, nearest first. about: what they were found from."""

    rows: np.ndarray
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """A hash of the neighbours."""
        return hashlib.blake2b(np.ascontiguousarray(self.rows, dtype="<i4").tobytes(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes it into a folder, as ``KEY.npy`` and ``KEY.json``."""
        path = folder / f"{key_of(self.about)}.npy"

        def write(to: Path) -> None:
            """The rows, into an open file: NumPy would add a suffix to a path."""
            with to.open("wb") as file:
                np.save(file, self.rows)

        if not path.is_file():
            write_atomically(path, write)
        if not path.with_suffix(".json").is_file():  # a process may have been killed between the two
            write_atomically(path.with_suffix(".json"), lambda to: to.write_text(json.dumps(self.about, indent=1)))

    @classmethod
    def load(cls, path: Path, about: dict[str, Any]) -> Table:
        """From ``KEY.npy``. DiptychError if it cannot be read."""
        try:
            return cls(np.load(path), about)
        except (OSError, ValueError, EOFError) as error:
            raise DiptychError(f"{path} could not be read ({error}); delete it, and the neighbours are found again") from None


def key_of(about: dict[str, Any]) -> str:
    """The name of a table's files. The address may change: the same data has the same fingerprint."""
    content = {name: value for name, value in about.items() if name != "data"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def used(source: Source, first: int | None) -> int:
    """How many samples are learned from. DiptychError for a mixture, or fewer than two samples."""
    if isinstance(source, Mixture):
        raise DiptychError(
            f"data.neighbours: {source.address} is a mixture, the sources of which have shares that neighbours would change; pack "
            "it (`diptych data pack`), or train on one source"
        )
    n = min(len(source), first or (FIRST if len(source) > ENDLESS else len(source)))
    if n < 2:
        raise DiptychError(f"data.neighbours: {source.address} has {counted(n, 'sample')}; neighbours need two")
    return n


def neighbours_of(source: Source, of: int, first: int | None, by: str, stamp: str, size: int, embed: Callable[[], Embed]) -> Table:
    """The ``of`` nearest samples of each of the first ones of a source, from the cache if they were found before.

    by, stamp: whose features, and a hash of its weights. size: of the pictures that ``embed()`` reads, which is called only if the
    neighbours have to be found.
    """
    about = {**_asked(source, of, first, by), "weights": stamp, "size": size}
    folder = cache_directory() / "neighbours"
    path = folder / f"{key_of(about)}.npy"
    with _locked(path):
        if path.is_file():
            os.utime(path)
            return Table.load(path, about)
        for other in _described(folder):
            if (other.get("data"), other.get("by")) == (source.address, by) and other.get("fingerprint") != about["fingerprint"]:
                print(f"note: {source.address} has changed since its neighbours were found; they are found again", file=sys.stderr)
                break
        found = Table(find(source, about["samples"], of, size, embed()), about)
        try:
            found.save(folder)
        except OSError as error:
            print(f"note: neighbours are not kept, since {folder} cannot be written ({error.strerror})", file=sys.stderr)
        return found


def neighbours_of_run(run: Path, source: Source, of: int, first: int | None, by: str) -> Table | None:
    """The table that a run began with; None if it had none for this data, or others were asked for. DiptychError if the data is not
    what it was.
    """
    about, folder = _asked(source, of, first, by), run / "neighbours"
    for kept in _described(folder):
        if (kept.get("of"), kept.get("by")) != (of, by):
            continue
        same = kept.get("fingerprint") == about["fingerprint"]
        if same and kept.get("samples") == about["samples"]:
            return Table.load(folder / f"{key_of(kept)}.npy", {**kept, "data": source.address})
        if not same and kept.get("data") == source.address:  # changed data may also have another number of samples
            raise DiptychError(
                f"{run} learned with the neighbours of {source.address} as it was (fingerprint "
                f"{str(kept.get('fingerprint'))[:12]}, now {about['fingerprint'][:12]}): restore the data, or begin a new run, "
                "which finds them again"
            )
    return None


def _asked(source: Source, of: int, first: int | None, by: str) -> dict[str, Any]:
    """What neighbours are to be found from, without the model."""
    n = used(source, first)
    return {"format": FORMAT, "data": source.address, "fingerprint": source.fingerprint(), "samples": n, "of": of, "by": by}


def _described(folder: Path) -> Iterator[dict[str, Any]]:
    """What the tables in a folder were found from."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            about = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(about, dict):
                yield about


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process finds a table while others that need it wait; without waiting where files cannot be locked."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("w")
    except (ImportError, OSError):
        yield
        return
    with file:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find(source: Source, n: int, of: int, size: int, embed: Embed) -> np.ndarray:
    """int32 [n, K]: the K = ``of`` nearest of the first n samples of a source, by the cosine of their features; fewer if there are
    not as many pictures.
    """
    # a job that is told to stop removes its file of features, which may be large
    with terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="diptych-") as scratch:
        features, usable = features_of(source, n, size, embed, Path(scratch))
        with CountDisplay("neighbours", n, unit="pictures") as shown:
            try:
                return nearest(features, of, usable, shown)
            except ValueError as error:
                raise DiptychError(f"data.neighbours: {source.address}: {error}") from None


def features_of(source: Source, n: int, size: int, embed: Embed, scratch: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit features float32 [n, E] of the first n pictures, in a file in ``scratch`` if they are many, and which could be read,
    bool [n].
    """
    usable = np.zeros(n, dtype=bool)
    features: np.ndarray | None = None

    def read(index: int) -> np.ndarray | None:
        """The picture at the model's size; None if there is none."""
        try:
            image = source[index].image
        except BrokenItem:  # the loader reports it when its turn comes
            return None
        return None if image is None else resize(image, size)

    with ThreadPoolExecutor(4) as pool, CountDisplay("features for neighbours", n, unit="pictures") as shown:
        for start in range(0, n, AT_ONCE):
            images = list(pool.map(read, range(start, min(start + AT_ONCE, n))))
            there = [start + i for i, image in enumerate(images) if image is not None]
            if there:
                made = np.asarray(embed(np.stack([image for image in images if image is not None])), dtype=np.float32)
                if features is None:
                    features = _room(n, made.shape[1], scratch)
                length = np.linalg.norm(made, axis=1, keepdims=True)
                features[there] = made / np.maximum(length, 1e-12)
                usable[there] = True
            shown(min(start + AT_ONCE, n))
    return np.zeros((n, 1), dtype=np.float32) if features is None else features, usable


def _room(n: int, width: int, scratch: Path) -> np.ndarray:
    if n * width * 4 <= IN_MEMORY:
        return np.zeros((n, width), dtype=np.float32)
    return np.memmap(scratch / "features", dtype=np.float32, mode="w+", shape=(n, width))


def nearest(
    features: np.ndarray, k: int, usable: np.ndarray | None = None, done: Callable[[int], None] = lambda rows: None
) -> np.ndarray:
    """int32 [N, K], the k other rows with the largest dot product, in falling order, of unit features [N, E]; block by block.

    usable: bool [N], rows that may be neighbours. A row that may not has the neighbours of the next one that may, since that one
    takes its place in a batch. ValueError if fewer than two rows may.
    """
    import torch

    n = len(features)
    usable = np.ones(n, dtype=bool) if usable is None else usable
    count = int(usable.sum())
    if count < 2:
        raise ValueError(f"{counted(count, 'picture')} can be read; neighbours need two")
    k = min(k, count - 1)
    out = np.empty((n, k), dtype=np.int32)
    for start in range(0, n, ROWS):
        rows = torch.from_numpy(np.array(features[start : start + ROWS]))
        own = torch.arange(start, start + len(rows))
        best, where = torch.full((len(rows), k), -torch.inf), torch.full((len(rows), k), -1)
        for left in range(0, n, COLUMNS):
            block = torch.from_numpy(np.array(features[left : left + COLUMNS]))
            index = torch.arange(left, left + len(block))
            similarity = rows @ block.T
            similarity.masked_fill_(torch.from_numpy(~usable[left : left + len(block)]), -torch.inf)
            similarity.masked_fill_(index == own[:, None], -torch.inf)
            best, places = torch.cat([best, similarity], 1).topk(k, 1)
            where = torch.cat([where, index.expand(len(rows), -1)], 1).gather(1, places)
        out[start : start + len(rows)] = where.numpy()
        done(min(start + ROWS, n))
    there = np.flatnonzero(usable)
    missing = np.flatnonzero(~usable)
    out[missing] = out[there[np.searchsorted(there, missing) % len(there)]]
    return out
