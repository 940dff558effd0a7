"""Segmentation without training for it: the mask of a phrase, and the classes of all pixels with a background threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.base import Items, Progress, by_item
from diptych.benchmarks.controls import blank
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.regions.answers import Answer, ask
from diptych.benchmarks.regions.boxes import filled
from diptych.benchmarks.regions.detection import pictures_of
from diptych.benchmarks.regions.items import Query, leak_notes
from diptych.benchmarks.regions.pointing import target
from diptych.benchmarks.regions.refer import RegionTask
from diptych.benchmarks.results import of_sums
from diptych.core.capabilities import Image, Model
from diptych.data.source import Source


@dataclass(frozen=True)
class ReferMasks(RegionTask):
    """Referring segmentation: the mean over queries of the intersection over union of masks. The model's mask, else its heat map
    from ``threshold`` of its highest value on, else its box.
    """

    name: str = "refer-masks"
    threshold: float = 0.5

    metrics: ClassVar[tuple[str, ...]] = ("iou",)

    def credit(self, query: Query, answer: Answer) -> dict[str, float]:
        """The intersection over union of the answer's mask and the true one."""
        height, width = query.image.shape[:2]
        own, true = mask_of(answer, height, width, self.threshold), target(query)
        union = int((own | true).sum())
        return {"iou": int((own & true).sum()) / union if union else 0.0}


def mask_of(answer: Answer, height: int, width: int, threshold: float) -> np.ndarray:
    """The pixels that an answer means, bool [height, width]."""
    if answer.mask is not None:
        return np.asarray(answer.mask, bool)
    if answer.heat is not None:
        heat = np.nan_to_num(answer.heat, nan=0.0)
        return np.asarray(heat >= threshold * heat.max()) if heat.max() > 0 else np.zeros((height, width), bool)
    return np.zeros((height, width), bool) if answer.box is None else filled(answer.box, height, width)


@dataclass(frozen=True)
class Segmentation:
    """mIoU: every pixel gets the class with the highest map, or the background where no map reaches ``threshold`` of the picture's
    highest value (as GroupViT is measured, Xu et al., arXiv:2202.11094). The mean is over classes, the background among them; their
    intersections and unions are summed over all pictures.

    Maps are the heat of ``locate``; of a model with masks or boxes alone these, weighted by its scores. Control ``blind``: of grey
    pictures; ``background``: no class anywhere; ``commonest``: the class with the most pixels everywhere.
    """

    name: str = "segmentation"
    needs: tuple[str, ...] = ("locate",)
    n: int = 50
    most: int = 80
    batch: int = 32
    threshold: float = 0.5
    train: str = ""
    train_limit: int = 20_000

    metrics: ClassVar[tuple[str, ...]] = ("mIoU", "pixel_accuracy")

    def items(self, source: Source) -> Items:
        """n pictures with their classes and masks."""
        return pictures_of(source, self)

    def run(self, model: Model, items: list[Query], records: Records, progress: Progress | None = None) -> None:
        """One record for each picture: for each class the pixels that are right, that the model names so, and that are so."""
        names = sorted({name for q in items for name in q.slices["names"].split("\n")})
        for number, q in enumerate(items, 1):
            if q.id in records:
                continue
            true = labels_of(q, names)
            own, by = self._labels(model, q.image, names)
            blind, _ = self._labels(model, blank(q.image), names)
            leaked = {"slices": {"leaked": q.slices["leaked"]}} if "leaked" in q.slices else {}
            kept = {"pixels": counts(own, true, len(names)), "blind_pixels": counts(blind, true, len(names))}
            records.add([{"item": q.id, "cluster": q.id, "names": names, "by": by, **kept, **leaked}])
            if progress:
                progress(f"{self.name} {number}/{len(items)}")

    def _labels(self, model: Model, image: Image, names: Sequence[str]) -> tuple[np.ndarray, str]:
        answers: list[Answer] = []
        for start in range(0, len(names), self.batch):
            part = list(names[start : start + self.batch])
            answers += ask(model, [image] * len(part), part, None)
        return labelled(answers, image.shape[0], image.shape[1], self.threshold), answers[0].by

    def summarise(self, records: list[Record]) -> list[Result]:
        """mIoU and the share of pixels that are right, with intervals over pictures."""
        rows = by_item(records)
        if not rows:
            return []
        sums = {name: np.array([np.ravel(r[name]) for r in rows], np.float64) for name in ("pixels", "blind_pixels")}
        clusters = [r["cluster"] for r in rows]
        total = sums["pixels"].sum(0).reshape(3, -1)[2]
        empty, common = _constant(sums["pixels"], 0), _constant(sums["pixels"], int(total[1:].argmax()) + 1)
        results = []
        for metric, function in (("mIoU", mean_iou), ("pixel_accuracy", accuracy)):
            controls = {
                "blind": float(function(sums["blind_pixels"].sum(0))),
                "background": float(function(empty.sum(0))),
                "commonest": float(function(common.sum(0))),
            }
            fields: dict[str, Any] = {"controls": controls, "by": rows[0]["by"]}
            results.append(of_sums(self.name, metric, sums["pixels"], function, clusters, **fields))
        return results

    def notes(self, records: Sequence[Record]) -> list[str]:
        """Leaks."""
        return leak_notes(records, self.train)


def labelled(answers: Sequence[Answer], height: int, width: int, threshold: float) -> np.ndarray:
    """The class of each pixel from an answer for each class, int [height, width]: 0 background, k the k-th class."""
    scores = np.array([a.score for a in answers], np.float64)
    scores = np.where(np.isfinite(scores), scores, 0.0)
    spread = float(np.ptp(scores))
    weights = 0.5 + 0.5 * (scores - scores.min()) / spread if spread else np.ones(len(scores))
    maps = np.zeros((len(answers), height, width))
    for k, a in enumerate(answers):
        if a.heat is not None and a.mask is None:
            maps[k] = np.nan_to_num(a.heat, nan=0.0)
        else:
            maps[k] = mask_of(a, height, width, threshold) * weights[k]
    top = maps.max(0)
    highest = float(top.max())
    labels = maps.argmax(0) + 1
    return np.where(top >= threshold * highest, labels, 0) if highest > 0 else np.zeros((height, width), np.int64)


def labels_of(query: Query, names: Sequence[str]) -> np.ndarray:
    """The true class of each pixel: larger regions first, so that smaller ones are not covered by boxes around them."""
    height, width = query.image.shape[:2]
    labels = np.zeros((height, width), np.int64)
    own = query.slices["names"].split("\n")
    masks = [filled(b, height, width) if m is None else np.asarray(m, bool) for b, m in zip(query.boxes, query.masks, strict=True)]
    for k in sorted(range(len(own)), key=lambda k: -int(masks[k].sum())):
        labels[masks[k]] = names.index(own[k]) + 1
    return labels


def counts(own: np.ndarray, true: np.ndarray, classes: int) -> list[list[int]]:
    """Pixels of each class, the background first: named so and right, named so, so."""
    length = classes + 1
    both = np.bincount(own[own == true], minlength=length)
    return [
        both.tolist(),
        np.bincount(own.ravel(), minlength=length).tolist(),
        np.bincount(true.ravel(), minlength=length).tolist(),
    ]


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """The mean over the classes that are named or are there, from sums [..., 3 · classes] of ``counts``."""
    both, own, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    union = own + true - both
    values = np.divide(both, union, out=np.zeros_like(both, dtype=np.float64), where=union > 0)
    return np.asarray(values.sum(-1) / np.maximum((union > 0).sum(-1), 1))


def accuracy(sums: np.ndarray) -> np.ndarray:
    """The share of pixels with the right class."""
    both, _, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return np.asarray(both.sum(-1) / np.maximum(true.sum(-1), 1))


def _constant(sums: np.ndarray, label: int) -> np.ndarray:
    """The counts of pictures of which every pixel is called ``label``."""
    true = sums.reshape(len(sums), 3, -1)[:, 2]
    result = np.zeros((len(true), 3, true.shape[1]))
    result[:, 2] = true
    result[:, 1, label] = true.sum(1)
    result[:, 0, label] = true[:, label]
    return result.reshape(len(true), -1)
