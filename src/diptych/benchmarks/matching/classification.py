"""Classification by a model that learned classes: does it name the class of an image, and are its probabilities right?

A class of the data that the model does not know counts as wrong: nobody can name it, and leaving it out would flatter the model.

Controls: ``constant``, always naming the most frequent class of the images (for nll and multiclass_brier: giving the classes their
shares); ``shuffled``, the probabilities of an image of another class; ``blind``, those of a grey image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.calibration import bin_sums, ece_of_sums
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import class_sums, credit_slices, macro, mean_of_classes, of_credits, of_sums
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Classifying, Model
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample, class_text
from diptych.data.source import BrokenItem, Problem, Source

METRICS = ("accuracy", "balanced_accuracy", "nll", "multiclass_brier", "ece")
BATCH = 32
LISTED = 10  # classes in a note


@dataclass(frozen=True)
class Classification:
    """Naming the class of images, for a model with the capability "classify" on a source with classes."""

    name: str = "classification"
    needs: tuple[str, ...] = ("classify",)
    n: int = 1000  # images, at even distances in the data; 0: all
    seed: int = 0

    def items(self, source: Source) -> Items:
        """(source, index) of each image: they are read batch by batch. Raises NotApplicable for a source without classes."""
        if not getattr(source, "classes", None):
            raise NotApplicable("the data has no classes: read class folders or a table of classes by classes:PATH")
        total = len(source)
        chosen = range(total) if not 0 < self.n < total else [i * total // self.n for i in range(self.n)]
        if len(chosen) < 2:
            raise NotApplicable(f"needs two images, the data has {total}")
        return Items((source, index) for index in chosen)

    def run(self, model: Model, items: list[tuple[Source, int]], records: Records, progress: Progress | None = None) -> None:
        """One record per image with the probability of each of the model's classes, written batch by batch."""
        if not isinstance(model, Classifying):
            raise NotApplicable("the model has no list of classes")
        problems = getattr(items, "problems", [])
        names = [class_text(name) for name in model.classes]
        blind: np.ndarray | None = None
        for start in range(0, len(items), BATCH):
            samples = _labelled(items[start : start + BATCH], problems)
            samples = [sample for sample in samples if sample.id not in records]
            if not samples:
                continue
            images = [sample.image for sample in samples if sample.image is not None]
            if blind is None:
                blind = np.asarray(model.classify([blank(images[0])]), dtype=np.float64)[0]
            probabilities = np.asarray(model.classify(images), dtype=np.float64)
            if probabilities.shape != (len(images), len(names)):
                raise DiptychError(
                    f"model '{model.name}': probabilities {list(probabilities.shape)} for {counted(len(images), 'image')} and "
                    f"{counted(len(names), 'class', 'classes')}"
                )
            records.add(
                {
                    "item": sample.id,
                    "cluster": sample.id,
                    "class": class_text(sample.fields["label"].name),
                    "classes": names,
                    "probabilities": p,
                    "blind": blind,
                    "nans": count_not_finite(p),
                    "correct": {"accuracy": _credits(p[None], names, [class_text(sample.fields["label"].name)])[0]},
                }
                for sample, p in zip(samples, probabilities, strict=True)
            )
            if progress:
                progress(f"{self.name} {min(start + BATCH, len(items))}/{len(items)}")
        if len(records) < 2:
            raise NotApplicable(f"needs two images with a class, found {len(records)}")

    def notes(self, records: list[Record]) -> list[str]:
        """What to say below the results: classes that the model does not know."""
        unknown = Counter(r["class"] for r in records if r["class"] not in r["classes"])
        if not unknown:
            return []
        listed = ", ".join(f"'{name}' ({n})" for name, n in unknown.most_common(LISTED))
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        count = counted(len(unknown), "class", "classes")
        return [f"{count} of the data that the model does not know, all counted as wrong: {listed}{more}"]

    def summarise(self, records: list[Record]) -> list[Result]:
        """Accuracy, with the recall of each class as slices, balanced accuracy, nll (of the classes that the model knows),
        multiclass Brier score and expected calibration error, from the records alone.
        """
        records = sorted(records, key=lambda r: str(r["item"]))
        names, truth = records[0]["classes"], [r["class"] for r in records]
        clusters = [r["cluster"] for r in records]
        p = np.array([[np.nan if v is None else v for v in r["probabilities"]] for r in records], dtype=np.float64)
        finite = np.nan_to_num(p, nan=0.0)
        nans = sum(r["nans"] for r in records)
        labels = np.unique(truth, return_inverse=True)[1].ravel()
        shuffle = derangement(len(records), labels, self.seed)
        given = {"blind": np.broadcast_to(np.nan_to_num(np.array(records[0]["blind"], dtype=np.float64)), finite.shape)}
        given |= {} if shuffle is None else {"shuffled": finite[shuffle]}
        credits = _credits(p, names, truth)
        others = {name: _credits(q, names, truth) for name, q in given.items()}
        shares = np.bincount(labels) / len(labels)
        chance = 1 / len(names)

        def balanced(values: np.ndarray) -> float:
            """The mean over classes of the mean credit."""
            return float(mean_of_classes(class_sums(values, labels).sum(0)))

        controls = {"constant": float(shares.max()), **{name: mean(c) for name, c in others.items()}}
        slices = credit_slices(credits, clusters, {"class": truth})
        result = [
            of_credits(self.name, "accuracy", credits, clusters, chance=chance, controls=controls, nans=nans, slices=slices),
            macro(
                self.name, "balanced_accuracy", credits, truth, clusters, chance=chance, nans=nans,
                controls={"constant": 1 / len(shares), **{name: balanced(c) for name, c in others.items()}},
            ),
        ]  # fmt: skip
        lower: dict[str, Any] = {"nans": nans, "higher_is_better": False}
        known = np.array([name in names for name in truth])
        if known.any():
            own = np.unique(labels[known], return_counts=True)[1] / known.sum()
            entropy = float(-(own * np.log(own)).sum())
            of_known = [name for name, k in zip(truth, known, strict=True) if k]
            losses = {name: mean(_nll(q[known], names, of_known)) for name, q in given.items()}
            of = [c for c, k in zip(clusters, known, strict=True) if k]
            values = _nll(finite[known], names, of_known)
            result.append(
                of_credits(
                    self.name, "nll", values, of, bounded=False, chance=float(np.log(len(names))),
                    controls={"constant": entropy, **losses}, **lower,
                )
            )  # fmt: skip
        brier = {"constant": float(1 - (shares**2).sum()), **{n: mean(_brier(q, names, truth)) for n, q in given.items()}}
        items = _brier(finite, names, truth)
        uniform = 1 - 1 / len(names) if known.all() else None
        result.append(
            of_credits(self.name, "multiclass_brier", items, clusters, bounded=False, chance=uniform, controls=brier, **lower)
        )
        confidence = np.clip(finite.max(1), 0, 1)
        result.append(of_sums(self.name, "ece", bin_sums(confidence, credits), ece_of_sums, clusters, **lower))
        return result


def _labelled(items: Sequence[tuple[Source, int]], problems: list[Any]) -> list[Sample]:
    """The samples with an image and a class; the others are added to ``problems``."""
    samples = []
    for source, index in items:
        try:
            sample = source[index]
        except BrokenItem as broken:
            problems.append(broken.problem)
            continue
        lacks = "has no image" if sample.image is None else "has no class" if "label" not in sample.fields else ""
        if lacks:
            problems.append(Problem(sample.id, lacks))
        else:
            samples.append(sample)
    return samples


def _credits(p: np.ndarray, names: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """1 where the likeliest class is the true one; shared among classes that are equally likely; float [N]."""
    best = np.where(np.isfinite(p), p, -np.inf)
    top = (best == best.max(1, keepdims=True)) & np.isfinite(best)
    column = {name: i for i, name in enumerate(names)}
    share = top / np.maximum(top.sum(1, keepdims=True), 1)
    return np.array([share[i, column[name]] if name in column else 0.0 for i, name in enumerate(truth)])


def _nll(p: np.ndarray, names: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """−log of the probability of the true class, in nats, at most that of the least positive number of float32; float [N]."""
    own = p[np.arange(len(p)), [names.index(name) for name in truth]]
    losses: np.ndarray = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return losses


def _brier(p: np.ndarray, names: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """Σ over classes of (probability − 1 for the true class, else 0)² (Brier 1950), from 0 to 2; a true class that is not among
    the names adds 1; float [N].
    """
    column = {name: i for i, name in enumerate(names)}
    target = np.zeros_like(p)
    extra = np.zeros(len(p))
    for i, name in enumerate(truth):
        if name in column:
            target[i, column[name]] = 1
        else:
            extra[i] = 1
    values: np.ndarray = ((p - target) ** 2).sum(1) + extra
    return values
