"""Objects that captions name and images do not show: CHAIR (Rohrbach et al., arXiv:1809.02156), from any data with labels.

The model writes a caption; truth is the labels and what the reference captions name. ``chair_i``: share of the mentions
that are made up; ``chair_s``: share of the captions with one. Both fall when captions get shorter, so recall and length
(words) stand beside them. Shuffled: the captions against the truth of another image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.metrics.chair import Vocabulary, chair_counts, chair_of_counts, coco_vocabulary, objects_in, vocabulary
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import sums_interval
from diptych.benchmarks.tasks.base import Items
from diptych.benchmarks.tasks.captions import Captions
from diptych.benchmarks.tasks.labels import labelled
from diptych.core.sample import Sample
from diptych.data.source import Source

METRICS = {"chair_i": False, "chair_s": False, "recall": True, "length": True}  # is higher better?


@dataclass(frozen=True)
class Chair(Captions):
    name: str = "chair"
    labels: str = ""  # a COCO instances file, for data that brings captions only
    words: str = ""  # lines "object, synonym, …"; "": our list for COCO's objects if all labels are such, else the labels

    def items(self, source: Source) -> Items:
        found = labelled(source, self.n, self.labels)
        named = {name for _, names in found for name in names}
        if hasattr(source, "concepts"):
            named |= set(source.concepts())
        known = tuple(sorted(named))
        return Items([_knowing(sample, names, known) for sample, names in found], found.problems)

    def record(self, item: Sample, generated: str, blind: str) -> Record:
        words = self.vocabulary(item.extra["vocabulary"])
        truth = set(item.extra["labels"]).union(*(objects_in(caption, words) for caption in item.captions))
        return {
            **super().record(item, generated, blind),
            "truth": sorted(truth),
            "mentioned": objects_in(generated, words),
            "mentioned_blind": objects_in(blind, words),
        }

    def vocabulary(self, labels: tuple[str, ...]) -> Vocabulary:
        return _vocabulary(self.words, labels)

    def summarise(self, records: list[Record]) -> list[Result]:
        records = sorted(records, key=lambda r: str(r["item"]))
        truth = [set(r["truth"]) for r in records]
        counts = {
            "correct": chair_counts([r["mentioned"] for r in records], truth, [r["generated"] for r in records]),
            "blind": chair_counts([r["mentioned_blind"] for r in records], truth, [r["generated_blind"] for r in records]),
        }
        order = derangement(len(records), seed=self.seed)
        if order is not None:
            others = [truth[i] for i in order]
            counts["shuffled"] = chair_counts([r["mentioned"] for r in records], others, [r["generated"] for r in records])
        clusters = [r["cluster"] for r in records]
        found = []
        for metric, higher in METRICS.items():
            at = sums_interval(counts["correct"], partial(_metric, metric), clusters, share=metric != "length")
            controls = {c: float(chair_of_counts(counts[c].sum(0))[metric]) for c in counts if c != "correct"}
            n, clustered = len(records), len(set(clusters))
            found.append(Result(self.name, metric, at.value, at.low, at.high, n, clustered, None, higher, controls))
        return found

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        counts = chair_counts(
            [r["mentioned"] for r in records], [set(r["truth"]) for r in records], [r["generated"] for r in records]
        )
        return {"chair_s": {r["item"]: float(row[3]) for r, row in zip(records, counts, strict=True)}}


def _metric(name: str, sums: np.ndarray) -> np.ndarray:
    return chair_of_counts(sums)[name]


def _knowing(sample: Sample, labels: list[str], known: tuple[str, ...]) -> Sample:
    return sample.with_(extra={**sample.extra, "labels": labels, "vocabulary": known})


@lru_cache(maxsize=4)
def _vocabulary(file: str, labels: tuple[str, ...]) -> Vocabulary:
    from diptych.core.errors import DiptychError
    from diptych.data.storage import files

    if file:
        try:
            return vocabulary(files.read_text(file).split("\n"))
        except ValueError as error:
            raise DiptychError(f"{file}, {error}") from None
    coco = coco_vocabulary()
    return coco if set(labels) <= {v for v in coco.values() if v} else vocabulary(labels)
