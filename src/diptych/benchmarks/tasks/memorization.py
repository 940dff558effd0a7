"""Déjà vu (Jayaraman et al., arXiv:2402.02103): what a model knows of training images that their captions do not say.

The data judged on is what the target was trained on (``--split train``), with labels; ``public`` is a disjoint set with
labels (default: the data's validation part); ``reference`` the address of a model that saw neither. The caption's k
nearest public images vote for objects. ``recall``, ``precision``: the target's, with the reference's as control;
``recall_gap`` and ``precision_gap`` (PRG, PPG): share of samples where the target knows more, less that where it knows less;
``area``: between the two recall curves. Without a reference the first two only, which say nothing by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.metrics.memorization import nearest, population_gap, precision_recall, predicted_objects
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean, mean_interval
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress
from diptych.benchmarks.tasks.labels import labelled
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Source


@dataclass(frozen=True)
class Memorization:
    name: str = "memorization"
    needs: tuple[str, ...] = ("embed_image", "embed_text")
    n: int = 200
    k: int = 10
    public: str = ""  # the address of the public set
    publics: int = 1000  # so many of its images
    reference: str = ""  # the address of the reference model
    labels: str = ""  # a COCO instances file, for data that brings captions only
    seed: int = 0

    def items(self, source: Source) -> Items:
        """(sample, its objects, public images with theirs) of each; the public ones are the same list for all."""
        from diptych.data.sources import open_source

        own = labelled(source, self.n, self.labels)
        public = labelled(open_source(self.public) if self.public else source.split("validation"), self.publics, self.labels)
        seen = {sample.id for sample, _ in own}
        rest = [(s, names) for s, names in public if s.id not in seen]
        if len(rest) < self.k:
            raise NotApplicable(f"the public set has {len(rest)} labelled images besides the data's own; k={self.k} need more")
        return Items([(sample, names, rest) for sample, names in own if sample.captions], own.problems)

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        todo = [item for item in items if item[0].id not in records]
        if not todo:
            return
        public = items[0][2]
        samples = [sample for sample, _, _ in todo]
        found = {"": self._predicted(model, samples, public)}
        if self.reference:
            from diptych.inference.load import load

            if progress:
                progress(f"{self.name}: {self.reference}")
            found["reference_"] = self._predicted(load(self.reference), samples, public)
        records.add(
            {
                "item": sample.id,
                "cluster": sample.id,
                "caption": sample.captions[0],
                "labels": names,
                **{f"{who}predicted": sorted(of[i]) for who, of in found.items()},
            }
            for i, (sample, names, _) in enumerate(todo)
        )

    def _predicted(self, model: Model, samples: list[Sample], public: list[tuple[Sample, list[str]]]) -> list[set[str]]:
        captions = model.embed_text([sample.captions[0] for sample in samples])
        images = model.embed_image([sample.image for sample, _ in public if sample.image is not None])
        return predicted_objects(nearest(captions, images, self.k), [names for _, names in public])

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        true, clusters = [r["labels"] for r in records], [r["cluster"] for r in records]
        target = dict(zip(("precision", "recall"), precision_recall([r["predicted"] for r in records], true), strict=True))
        order = derangement(len(records), seed=self.seed)
        known: dict[str, dict[str, np.ndarray]] = {}
        if all("reference_predicted" in r for r in records):
            of = precision_recall([r["reference_predicted"] for r in records], true)
            known["reference"] = dict(zip(("precision", "recall"), of, strict=True))
        if order is not None:
            others = precision_recall([r["predicted"] for r in records], [true[i] for i in order])
            known["shuffled"] = dict(zip(("precision", "recall"), others, strict=True))
        found = []

        def result(metric: str, values: np.ndarray, share: bool, chance: float | None = None, **controls: float) -> None:
            at = mean_interval(values, clusters, share=share)
            n, clustered = len(records), len(set(clusters))
            found.append(Result(self.name, metric, at.value, at.low, at.high, n, clustered, chance, False, controls))

        for metric, values in target.items():
            result(metric, values, True, **{name: mean(of[metric]) for name, of in known.items()})
        if "reference" in known:
            for metric, values in target.items():
                result(f"{metric}_gap", population_gap(values, known["reference"][metric]), False, 0.0)
            result("area", target["recall"] - known["reference"]["recall"], False, 0.0)
        return found
