"""What ``choose`` does differently for pictures with one class each and for pictures with several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from diptych.benchmarks.matching.zeroshot import TEMPLATES
from diptych.choose import cells
from diptych.choose.adapt import fixed, parts_of
from diptych.choose.cells import Cell, Data, part_of
from diptych.choose.data import Parts, Pictures, names_alike, version_of
from diptych.choose.features import Progress, vectors_of
from diptych.choose.label_errors import MOST_DOUBTFUL, label_errors, rows_of
from diptych.choose.select import softmax
from diptych.choose.several import cells as several_cells
from diptych.choose.several.data import Tagged, has_several_labels, tagged_parts, version_of_tagged
from diptych.choose.several.support import labels_support
from diptych.choose.several.ways import several_way, unfit
from diptych.choose.support import ClassTexts, class_texts, support_of
from diptych.choose.tower_cells import is_tower
from diptych.choose.verdict import CONTROL
from diptych.choose.ways import Support, way_named
from diptych.core.capabilities import Model
from diptych.core.errors import counted
from diptych.data.subsets.shots import few


class OneClass:
    """Pictures with one class each."""

    name = "classes"

    def check(self, way: str) -> None:
        """DiptychError for a way that is not known, or cannot be used."""
        if not is_tower(way):
            way_named(way)

    def trains(self, way: str) -> bool:
        """Whether a way trains a tower, and so is a run."""
        return is_tower(way)

    def parts(self, address: str, progress: Progress | None, test_address: str | None) -> Parts:
        """The training and the test part."""
        return parts_of(address, progress, test_address)

    def version(self, parts: Parts) -> str:
        """A hash of the pictures and what they show."""
        return version_of(parts.train, parts.test)

    def data(self, model: Model, parts: Parts, progress: Progress | None, templates: Sequence[str] = TEMPLATES,
             descriptions: Mapping[str, Sequence[str]] | None = None) -> tuple[Data, dict[str, str]]:  # fmt: skip
        """The model's vectors of the training pictures and of the names, and {id: reason} of pictures that cannot be read."""
        vectors, broken = vectors_of(model, parts.train, progress)
        usable = np.array([i for i in range(len(parts.train)) if i not in broken], dtype=np.int64)
        train = parts.train.rows(usable)
        support = self._support(vectors[usable], train, class_texts(model, train.names, templates, descriptions))
        return Data(support, parts.groups[usable], tuple(train.ids)), {parts.train.ids[i]: why for i, why in broken.items()}

    def _support(self, vectors: np.ndarray, train: Pictures, texts: ClassTexts) -> Support:
        return support_of(vectors, train.labels, np.arange(len(train)), train.names, texts, 0)

    def truth(self, pictures: Pictures) -> np.ndarray:
        """What the pictures show: int [N]."""
        return pictures.labels

    def chosen(self, cell: Cell, data: Data) -> dict[str, Any]:
        """The record of a cell whose settings are chosen."""
        return cells.chosen(cell, data)

    def tested(self, record: dict[str, Any], cell: Cell, data: Data) -> dict[str, Any]:
        """The record with what it achieves on the test part."""
        return cells.tested(record, cell, data)

    def counts(self, pictures: Pictures) -> list[int]:
        """How many pictures each class has."""
        return [int(n) for n in np.bincount(pictures.labels, minlength=len(pictures.names))]

    def doubtful(
        self, verdict: Mapping[str, Any], done: Sequence[Mapping[str, Any]], everything: Mapping[str, tuple[Model, Data]]
    ) -> tuple[list[dict[str, Any]], str]:
        """The training pictures whose label is probably wrong, as the best way on vectors sees those that it was not learned from;
        and a note. done: the records of the cells.

        None if the way is so poor that it, and not the labels, is the likelier to be wrong.
        """
        on_vectors = [(r["model"], r["way"]) for r in verdict["rows"] if not is_tower(r["way"]) and r["way"] != CONTROL]
        if not on_vectors:
            return [], ""
        model, way = verdict["winner"] if verdict["winner"] in on_vectors else on_vectors[0]
        own = [c for c in done if (c["model"], c["way"], c["shots"]) == (model, way, verdict["shots"]) and c.get("test")]
        cell = Cell(model, way, own[0]["shots"], own[0]["seed"])
        data = everything[model][1]
        support, groups = part_of(data, cell)
        choice = fixed(way_named(way), support, groups, own[0]["settings"])
        which = few(data.support.y, cell.shots, cell.seed)
        errors = label_errors(softmax(choice.logits / choice.temperature), support.y)
        if errors.share > MOST_DOUBTFUL:
            return [], f"labels cannot be checked: out of fold, {way} names too many pictures otherwise for that"
        return rows_of(errors, support.names, [data.ids[i] for i in which]), ""

    # --- the data in words ---

    def about(self, parts: Parts, address: str) -> dict[str, Any]:
        """The numbers of pictures, and what is to be known about them, as plain data."""
        train, test = parts.train, parts.test
        counts = {name: list(n) for name, *n in zip(train.names, self.counts(train), self.counts(test), strict=True)}
        return {
            "address": address,
            "kind": self.name,
            "train": len(train),
            "test": len(test),
            "classes": counts,
            "leaks": [list(pair) for pair in parts.leaks],
            "problems": [asdict(p) for p in dict.fromkeys([*train.problems, *test.problems])],
            "notes": [*self._notes(counts), *_notes_on_copies(parts)],
        }

    def _notes(self, counts: Mapping[str, Sequence[int]]) -> list[str]:
        lone = [name for name, (n, _) in counts.items() if n == 1]
        never = [name for name, (n, _) in counts.items() if n == 0]
        notes = [f"'{a}' and '{b}' are the same name for a text encoder" for a, b in names_alike(tuple(counts))]
        notes += [f"one training picture: {', '.join(lone)}; it is never left out"] if lone else []
        return notes + (
            [f"no training picture: {', '.join(never)}; only ways that read class names can name them"] if never else []
        )


class SeveralLabels(OneClass):
    """Pictures with any number of labels each."""

    name = "labels"

    def check(self, way: str) -> None:
        """DiptychError for a way that is not known. One that does not fit is listed with the reason."""
        if not unfit(way):
            several_way(way)

    def trains(self, way: str) -> bool:
        """None does."""
        return False

    def parts(self, address: str, progress: Progress | None, test_address: str | None) -> Parts:
        """The training and the test part."""
        return tagged_parts(address, progress, test_address)

    def version(self, parts: Parts) -> str:
        """A hash of the pictures and their labels."""
        return version_of_tagged(parts.train, parts.test)

    def _support(self, vectors: np.ndarray, train: Pictures, texts: ClassTexts) -> Support:
        return labels_support(vectors, self.truth(train), train.names, texts)

    def truth(self, pictures: Pictures) -> np.ndarray:
        """bool [N, L]"""
        assert isinstance(pictures, Tagged)
        return pictures.targets

    def chosen(self, cell: Cell, data: Data) -> dict[str, Any]:
        """The record of a cell whose settings are chosen."""
        return several_cells.chosen(cell, data)

    def tested(self, record: dict[str, Any], cell: Cell, data: Data) -> dict[str, Any]:
        """The record with what it achieves on the test part."""
        return several_cells.tested(record, cell, data)

    def counts(self, pictures: Pictures) -> list[int]:
        """How many pictures have each label."""
        return [int(n) for n in self.truth(pictures).sum(0)]

    def doubtful(
        self, verdict: Mapping[str, Any], done: Sequence[Mapping[str, Any]], everything: Mapping[str, tuple[Model, Data]]
    ) -> tuple[list[dict[str, Any]], str]:
        """None: confident learning is about classes that exclude each other."""
        return [], ""

    def _notes(self, counts: Mapping[str, Sequence[int]]) -> list[str]:
        notes = super()._notes({name: [2, m] for name, (_, m) in counts.items()})  # of the names alone
        few_ = [name for name, (n, _) in counts.items() if 0 < n < 5]
        never = [name for name, (n, _) in counts.items() if n == 0]
        untested = [name for name, (_, m) in counts.items() if m == 0]
        notes += [f"fewer than five training pictures: {', '.join(few_)}; these share one threshold"] if few_ else []
        notes += [f"no training picture: {', '.join(never)}; only ways that read names can give them"] if never else []
        return notes + ([f"no test picture: {', '.join(untested)}; not part of any average over labels"] if untested else [])


def kind_of(address: str) -> OneClass:
    """How the pictures at an address are judged."""
    return SeveralLabels() if has_several_labels(address) else OneClass()


def _notes_on_copies(parts: Parts) -> list[str]:
    notes = []
    if parts.leaks:
        a, b = parts.leaks[0]
        more = f", and {len(parts.leaks) - 1} more" if len(parts.leaks) > 1 else ""
        left = "a training picture, and was left out" if len(parts.leaks) == 1 else "training pictures, and were left out"
        notes.append(f"{counted(len(parts.leaks), 'test picture')} nearly repeated {left}: {b} as {a}{more}")
    same = len(parts.train) - len(np.unique(parts.groups))
    verb = "repeats another" if same == 1 else "repeat others"
    notes += [f"{counted(same, 'training picture')} nearly {verb}; near-duplicates stay in one fold"] if same else []
    if parts.two_classes:
        a, b = parts.two_classes[0]
        more = f" and {len(parts.two_classes) - 1} more pairs" if len(parts.two_classes) > 1 else ""
        notes.append(f"nearly the same picture in two classes: {a}, {b}{more}; is one of them wrong?")
    return notes
