"""Pictures with one class each, in a training and a test part that share no near-duplicates.

Pictures are decoded when they are needed, so that more of them than fit into memory can be used.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Self, TypeVar

import numpy as np
import PIL.Image

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Label, Sample, class_text
from diptych.data.hashes.hamming import pairs_within
from diptych.data.hashes.perceptual import phashes
from diptych.data.source import BrokenItem, Controlled, Problem, Source
from diptych.data.sources import open_source

T = TypeVar("T")

CONCEPTS = {"train": 2000, "test": 1000}  # pictures drawn of a source that draws them
DISTANCE = 4  # near-duplicates differ in at most so many bits of their pHashes,
COLOUR = 0.08  # and by at most so much in the colours of their parts: a mug in red and one in blue are two pictures


@dataclass(frozen=True)
class Pictures:
    """Pictures with their classes.

    labels: int [N], into ``names``. digests: a hash of each picture's content. read: the picture at a position.
    """

    ids: list[str]
    labels: np.ndarray
    names: tuple[str, ...]
    digests: list[str]
    read: Callable[[int], Image]
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, which: Sequence[int] | np.ndarray) -> Self:
        """Some of them."""
        at = [int(i) for i in which]
        read = self.read
        return replace(
            self,
            ids=[self.ids[i] for i in at],
            labels=self.labels[at],
            digests=[self.digests[i] for i in at],
            read=lambda i: read(at[i]),
        )

    def without(self, broken: dict[int, str]) -> Self:
        """Without the pictures at these positions, which are listed as problems with the reasons."""
        kept = self.rows([i for i in range(len(self)) if i not in broken])
        return replace(kept, problems=[*self.problems, *(Problem(self.ids[i], why) for i, why in broken.items())])


@dataclass(frozen=True)
class Parts:
    """The training and the test part. groups: of each training picture, the number of its group of near-duplicates, int [N].

    leaks: (training picture, test picture) pairs that were near-duplicates of one class; the test picture was taken out.
    two_classes: pairs of near-duplicates with different classes, of which one may be wrong; they are not counted as duplicates.
    """

    train: Pictures
    test: Pictures
    groups: np.ndarray
    leaks: list[tuple[str, str]]
    address: str
    two_classes: list[tuple[str, str]] = field(default_factory=list)


def labelled(source: Source, part: str = "train") -> Pictures:
    """The pictures of a source with their classes. DiptychError if it has no classes.

    part: of a source that draws pictures of concepts, how many.
    """
    if isinstance(source, Controlled):  # draws as many as are wanted
        concepts = tuple(source.concepts())
        drawn = source.concept_samples(CONCEPTS[part])
        images = [image for image, _ in drawn]
        return Pictures(
            [f"{part}-{i:05d}" for i in range(len(images))],
            np.array([label for _, label in drawn], dtype=np.int64),
            concepts,
            [content_hash(image) for image in images],
            images.__getitem__,
        )
    if names := getattr(source, "classes", None):
        return _listed(source, tuple(names))
    raise DiptychError(f"{source.address}: its pictures have no classes; class folders and tables are read by classes:PLACE")


def _listed(source: Source, names: tuple[str, ...]) -> Pictures:
    def number(sample: Sample) -> int:
        """The class of a sample. Raises ``BrokenItem``."""
        if "label" not in sample.fields:
            raise BrokenItem(sample.id, "no class")
        label: Label = sample.fields["label"]
        return label.index

    held = readable(source, number)
    return Pictures(held.ids, np.array(held.values, dtype=np.int64), names, held.digests, held.read, held.problems)


@dataclass(frozen=True)
class Readable(Generic[T]):
    """Pictures of a source with a value each. digests: a hash of each picture's content. read: the picture at a position."""

    ids: list[str]
    values: list[T]
    digests: list[str]
    read: Callable[[int], Image]
    problems: list[Problem]


def readable(source: Source, value: Callable[[Sample], T]) -> Readable[T]:
    """The pictures of a source that have a value. value: of a sample, which may have no picture yet; a sample for which it raises
    ``BrokenItem`` is listed as a problem.
    """
    known, kept = getattr(source, "listed", None), getattr(source, "digests", None)
    hashes = [digest.hex() for digest in kept()] if kept else []
    rows, ids, values, problems = [], [], [], list(source.problems)
    for i in range(len(source)):
        try:
            sample = known(i) if known else source[i]
            values.append(value(sample))
        except BrokenItem as broken:
            problems.append(broken.problem)
            continue
        rows.append(i)
        ids.append(sample.id)

    def read(i: int) -> Image:
        """The decoded picture. Raises ``BrokenItem``."""
        image = source[rows[i]].image
        if image is None:
            raise BrokenItem(ids[i], "has no picture")
        return image

    digests = [hashes[i] for i in rows] if hashes else content_hashes(read, len(rows))
    return Readable(ids, values, digests, read, problems)


def content_hash(image: Image) -> str:
    """A hash of a decoded picture."""
    return hashlib.blake2b(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest()


def content_hashes(read: Callable[[int], Image], n: int) -> list[str]:
    """The ``content_hash`` of each of n pictures; a value that never comes again for one that cannot be read."""
    hashes = []
    for i in range(n):
        try:
            hashes.append(content_hash(read(i)))
        except BrokenItem:
            hashes.append(uuid.uuid4().hex)  # it is listed as broken where the pictures are used
    return hashes


def version_of(*parts: Pictures) -> str:
    """A hash of the pictures and their classes: results that were made of other pictures are not continued."""
    rows = repr([(p.names, list(zip(p.ids, p.digests, p.labels.tolist(), strict=True))) for p in parts])
    return hashlib.blake2b(rows.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def joined(parts: Sequence[Pictures]) -> Pictures:
    """Pictures of several parts with the same classes, one after the other."""
    starts = np.cumsum([0, *map(len, parts)])

    def read(i: int) -> Image:
        """The picture of the part that holds this position."""
        which = int(np.searchsorted(starts, i, side="right")) - 1
        return parts[which].read(i - int(starts[which]))

    return Pictures(
        [id for p in parts for id in p.ids],
        np.concatenate([p.labels for p in parts]) if parts else np.zeros(0, dtype=np.int64),
        parts[0].names,
        [d for p in parts for d in p.digests],
        read,
        list(dict.fromkeys(problem for p in parts for problem in p.problems)),
    )


def open_parts(address: str, test_address: str | None = None) -> tuple[Pictures, Pictures]:
    """The training and the test part of the data at an address, with the same list of classes.

    A part ``validation`` by hash belongs to the test part, since settings are chosen by cross-validation on the training part.
    test_address: other data to test on, all of it (of a source that draws, its test part); then all of ``address`` but what it
    calls its test part is for training. DiptychError if either part has no picture, or there is one class.
    """
    source = open_source(address)
    if isinstance(source, Controlled):
        train, test = (labelled(source.split(part), part) for part in ("train", "test"))
    else:
        train = labelled(source.split("train"))
        test = joined([labelled(source.split(part)) for part in ("validation", "test")])
    if test_address is not None:
        other = open_source(test_address)
        drawn = isinstance(other, Controlled)
        train = train if drawn or isinstance(source, Controlled) else joined([train, labelled(source.split("validation"))])
        train, test = with_same_classes(train, labelled(other.split("test") if drawn else other, "test"))
    if len(train.names) < 2:
        raise DiptychError(f"{address}: one class, '{', '.join(train.names)}'; there is nothing to choose between")
    for part, which in (("training", train), ("test", test)):
        if not len(which):
            raise DiptychError(f"{address}: no picture in the {part} part ({counted(len(train) + len(test), 'picture')} in all)")
    return train, test


def with_same_classes(train: Pictures, test: Pictures) -> tuple[Pictures, Pictures]:
    """Both with one list of classes: those of the training pictures, then those that only test pictures have."""
    names = tuple(dict.fromkeys([*train.names, *test.names]))

    def renumbered(part: Pictures) -> Pictures:
        """With labels into the common list."""
        number = np.array([names.index(name) for name in part.names], dtype=np.int64)
        return replace(part, names=names, labels=number[part.labels])

    return renumbered(train), renumbered(test)


def names_alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that a text encoder cannot tell apart: equal but for case, punctuation and underscores."""
    plain: dict[str, str] = {}
    pairs = []
    for name in names:
        key = " ".join("".join(c if c.isalnum() else " " for c in class_text(name).casefold()).split())
        if key in plain:
            pairs.append((plain[key], name))
        plain.setdefault(key, name)
    return pairs


# --- near-duplicates ---


def fingerprints(images: Sequence[Image]) -> np.ndarray:
    """What near-duplicates share, float32 [N, 64 + 192]: the bits of the pHash, and the colours of 8 × 8 fields, 0 to 1."""
    hashes = phashes(images)
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    size, average = (8, 8), PIL.Image.Resampling.BOX
    fields = [np.asarray(PIL.Image.fromarray(x).convert("RGB").resize(size, average)).ravel() / 255 for x in images]
    return np.concatenate([bits, np.stack(fields)], 1).astype(np.float32)


def near_pairs(prints: np.ndarray, distance: int = DISTANCE, colour: float = COLOUR) -> np.ndarray:
    """Pairs i < j of near-duplicates, int [P, 2]: pHashes that differ in at most ``distance`` bits, and colours of the fields that
    differ by at most ``colour`` on average. Of equal hashes and like colours, each picture is paired with the first.
    """
    bits = prints[:, :64].astype(np.uint64)
    hashes = np.bitwise_or.reduce(bits << np.arange(64, dtype=np.uint64), axis=1)
    unique, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(counts)[:-1]) if len(hashes) else []
    firsts: list[np.ndarray] = []
    pairs: list[tuple[int, int]] = []
    for of_hash in members:  # a red and a blue mug of one hash are not alike, but each has its copies
        kept = of_hash[:1]
        for i in of_hash[1:]:
            like = kept[np.abs(prints[kept, 64:] - prints[i, 64:]).mean(1) <= colour]
            pairs += [(int(first), int(i)) for first in like]
            kept = kept if len(like) else np.append(kept, i)
        firsts.append(kept)
    a, b, _ = pairs_within(unique, distance)
    first = np.array([kept[0] for kept in firsts], dtype=np.int64)
    several = np.array([len(kept) > 1 for kept in firsts], dtype=bool)
    more = several[a] | several[b]
    product = [(i, j) for u, v in zip(a[more], b[more], strict=True) for i in firsts[u] for j in firsts[v]]
    near = np.concatenate([np.stack([first[a[~more]], first[b[~more]]], 1), np.array(product, dtype=np.int64).reshape(-1, 2)])
    near = near[np.abs(prints[near[:, 0], 64:] - prints[near[:, 1], 64:]).mean(1) <= colour]
    found = np.concatenate([np.array(pairs, dtype=np.int64).reshape(-1, 2), near])
    found.sort(axis=1)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def groups_of(n: int, pairs: np.ndarray) -> np.ndarray:
    """The group of each of n pictures, int [n], named by its first: pictures that pairs link, also by way of others."""
    parent = list(range(n))

    def root(i: int) -> int:
        """The first picture of a group."""
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs.tolist():
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return np.array([root(i) for i in range(n)], dtype=np.int64)


def separated(train: Pictures, test: Pictures, prints: np.ndarray, address: str) -> Parts:
    """The parts without the test pictures that are in a group of near-duplicates with a training picture.

    prints: ``fingerprints`` of the training pictures, then of the test pictures. DiptychError if no test picture is left.
    """
    n, labels = len(train), np.concatenate([train.labels, test.labels])
    pairs = near_pairs(prints)
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    group = groups_of(len(prints), pairs[same])
    ids = [*train.ids, *test.ids]
    two = [(ids[i], ids[j]) for i, j in pairs[~same].tolist()]
    leaked = np.flatnonzero(group[n:] < n)  # a group is named by its first picture
    leaks = [(train.ids[int(group[n + i])], test.ids[i]) for i in leaked]
    kept = np.setdiff1d(np.arange(len(test)), leaked)
    if not len(kept):
        raise DiptychError(
            f"{address}: every test picture is a near-duplicate of a training picture, such as {leaks[0][1]} of {leaks[0][0]}; "
            "put the pictures of one scene or day into the same part, or give data with more different pictures"
        )
    return Parts(train, test.rows(kept), group[:n], leaks, address, two)
