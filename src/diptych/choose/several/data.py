"""Pictures with any number of labels each, in a training and a test part that share no near-duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from diptych.choose.data import Parts, Pictures, joined, readable, separated, version_of
from diptych.choose.features import Progress, without_broken
from diptych.choose.ways import Support
from diptych.core.errors import DiptychError, counted
from diptych.data.source import Source
from diptych.data.sources import open_source


@dataclass(frozen=True)
class Tagged(Pictures):
    """Pictures with several labels: ``names`` are the labels, ``targets`` [N, L] who has which. ``labels`` are all 0, so that every
    near-duplicate counts as one.
    """

    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def rows(self, which: Sequence[int] | np.ndarray) -> Self:
        """Some of them."""
        at = np.asarray(which, dtype=np.int64)
        return replace(super().rows(at), targets=self.targets[at])


@dataclass(frozen=True)
class SeveralSupport(Support):
    """A ``Support`` whose ``y`` are the targets, bool [N, L]; ``names`` and ``prompts`` are of the labels."""

    @property
    def onehot(self) -> np.ndarray:
        """The targets as 0 and 1, float32 [N, L]."""
        rows: np.ndarray = self.y.astype(np.float32)
        return rows


def has_several_labels(address: str) -> bool:
    """Whether the data at an address is pictures with several labels each."""
    return bool(getattr(open_source(address), "labels", None))


def tagged(source: Source, names: Sequence[str]) -> Tagged:
    """The pictures of a source with those of its labels that are among ``names``."""
    number = {name: i for i, name in enumerate(names)}
    held = readable(source, lambda sample: [number[name] for name in sample.extra.get("labels", ()) if name in number])
    targets = np.zeros((len(held.ids), len(names)), dtype=bool)
    for row, labels in zip(targets, held.values, strict=True):
        row[labels] = True
    return Tagged(held.ids, np.zeros(len(held.ids), dtype=np.int64), tuple(names), held.digests, held.read, held.problems, targets)


def together(parts: Sequence[Tagged]) -> Tagged:
    """Pictures of several parts with the same labels, one after the other."""
    both = joined(parts)
    return Tagged(
        both.ids, both.labels, both.names, both.digests, both.read, both.problems, np.concatenate([p.targets for p in parts])
    )


def tagged_parts(address: str, progress: Progress | None = None, test_address: str | None = None) -> Parts:
    """The training and the test part, as ``adapt.parts_of``: without broken pictures, and without test pictures that nearly repeat
    training ones. ``train`` and ``test`` are ``Tagged``. DiptychError if a part is empty, or there is one label.
    """
    source = open_source(address)
    names = list(getattr(source, "labels", None) or ())
    other = None if test_address is None else open_source(test_address)
    if other is not None:
        if not getattr(other, "labels", None):
            raise DiptychError(f"--test-data {test_address}: its pictures have no labels; read them by labels:PLACE")
        names = list(dict.fromkeys([*names, *other.labels]))  # type: ignore[attr-defined]
    if len(names) < 2:
        raise DiptychError(f"{address}: {counted(len(names), 'label')}; of one label, make two classes, and read them by classes:")
    part = {name: tagged(source.split(name), names) for name in ("train", "validation", "test")}
    if other is None:
        train, test = part["train"], together([part["validation"], part["test"]])
    else:
        train, test = together([part["train"], part["validation"]]), tagged(other, names)
    both_parts: list[tuple[str, Pictures]] = [("training", train), ("test", test)]
    for which, pictures in both_parts:
        if not len(pictures):
            raise DiptychError(f"{address}: no picture in the {which} part ({counted(len(train) + len(test), 'picture')} in all)")
    train, test, prints = without_broken(train, test, together([train, test]), address, progress)
    return separated(train, test, prints, address)


def version_of_tagged(*parts: Pictures) -> str:
    """A hash of the pictures and their labels."""
    total = hashlib.blake2b(version_of(*parts).encode(), digest_size=16)
    for pictures in parts:
        assert isinstance(pictures, Tagged)
        total.update(np.packbits(pictures.targets).tobytes())
    return total.hexdigest()


def few_of_each(targets: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Positions of the first ``shots`` pictures of each label, and of those without a label, in an order drawn by the seed, so that
    fewer are part of more; 0: all. A picture with two labels counts for both. Sorted, int [n].
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    if not shots:
        return np.sort(order)
    kinds = np.concatenate([targets, ~targets.any(1, keepdims=True)], axis=1)[order]
    chosen = np.zeros(len(order), dtype=bool)
    for has in kinds.T:
        chosen[np.flatnonzero(has)[:shots]] = True
    return np.sort(order[chosen])


def folds_of(targets: np.ndarray, groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """The fold in which each picture is left out, int [N]: groups are never divided, and each fold has about the same share of each
    label (iterative stratification, Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1). −1 for all where there is one group.

    The rarest label that is left is spread first; a group goes to the fold that lacks most pictures with the label, then to the one
    that lacks most pictures.
    """
    names, of_group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return np.full(len(groups), -1)
    folds = min(folds, len(names))
    rng = np.random.default_rng(seed)
    has = np.zeros((len(names), targets.shape[1] + 1), dtype=bool)
    np.logical_or.at(has[:, :-1], of_group, targets)
    has[:, -1] = ~has[:, :-1].any(1)  # without a label: spread last
    wanted = np.tile(has.sum(0) / folds, (folds, 1))
    room = np.full(folds, len(names) / folds)
    fold = np.full(len(names), -1)
    left = rng.permutation(len(names)).tolist()
    while left:
        counts = has[left].sum(0)
        present = np.flatnonzero(counts)
        label = present[np.argmin(counts[present])]
        for group in [g for g in left if has[g, label]]:
            best = max(range(folds), key=lambda k: (round(float(wanted[k, label]), 9), round(float(room[k]), 9), -k))
            fold[group] = best
            wanted[best] -= has[group]
            room[best] -= 1
        left = [g for g in left if fold[g] < 0]
    result: np.ndarray = fold[of_group]
    return result
