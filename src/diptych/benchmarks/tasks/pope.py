"""Does it see things that are not there? POPE (Li et al., arXiv:2305.10355): as many absent objects asked about as present ones.

File: POPE's JSON lines with image, text and label. Else built from any labelled data: absent objects at random, the most
frequent ones (popular), or those that most often go with what is there (adversarial). Models that only score choose
between "there is a dog" and "there is no dog". ``auc``: the share of (present, absent) pairs of an image in the right
order, free of any threshold; only where there are scores.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from diptych.benchmarks.metrics.pope import METRICS, parse_yes_no, pope_band, pope_counts, pope_of_counts
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import mean, mean_interval, sums_interval
from diptych.benchmarks.tasks.asking import LOOKS, PREFIX, Asking, Question
from diptych.benchmarks.tasks.base import Items, NotApplicable
from diptych.benchmarks.tasks.labels import frequencies, labelled, labels_in
from diptych.benchmarks.tasks.published import Pictures, Row, limited, rows
from diptych.data.scenes.concepts import article
from diptych.data.source import Source

KINDS = ("random", "popular", "adversarial")
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Pope(Asking):
    name: str = "pope"
    prompt: str = "{question} Please answer yes or no."
    labels: str = ""  # a COCO instances file, for data that brings captions only
    kinds: tuple[str, ...] = KINDS
    samples: int = 100  # so many images of the data are asked about; what is frequent tells ``labels``, else the first 500 images
    each: int = 3  # present and absent objects asked about in an image, at most

    def items(self, source: Source) -> Items:
        if self.file:
            pictures = Pictures(self.images, self.file)
            return Items(limited((self._published(row, pictures, i) for i, row in enumerate(rows(self.file))), self.n))
        found = labelled(source, 0, self.labels)
        built = self.build([(s.id, s.image, names) for s, names in found], labels_in(self.labels) if self.labels else None)
        return Items(built[: self.n] if self.n else built, found.problems)

    def _published(self, row: Row, pictures: Pictures, number: int) -> Question:
        from diptych.core.errors import DiptychError

        label = row.text("label", "answer").lower()
        if label not in YES_NO:
            raise DiptychError(f"{row.where}: field 'label': expected yes or no, found '{label}'")
        image, text = row.text("image", "image_id"), row.text("text", "question")
        thing = text.partition("there ")[2].partition(" in the ")[0]
        name = f"{row.get('question_id', number)}"
        stated = _stated(thing.removeprefix("an ").removeprefix("a ")) if thing else ()
        return Question(name, image, pictures.path(image, row.where), text, (label,), YES_NO, stated)

    def build(self, images: list[tuple[str, Any, list[str]]], everything: list[list[str]] | None = None) -> list[Question]:
        """(id, picture, objects) of each image → questions, balanced in every image.

        everything: the objects of all images that tell what is frequent; None: of these.
        """
        alone, together = frequencies(everything or [names for _, _, names in images])
        images = images[: self.samples]
        vocabulary = sorted(alone)
        if len(vocabulary) < 2:
            raise NotApplicable("POPE needs at least two kinds of objects in the data")
        unknown = set(self.kinds) - set(KINDS)
        if unknown:
            raise NotApplicable(f"kinds={unknown.pop()}: valid are {', '.join(KINDS)}")
        found: list[Question] = []
        for name, image, names in images:
            rng = random.Random(f"{self.seed} {name}")
            absent = [o for o in vocabulary if o not in names]
            shown = rng.sample(sorted(names), min(self.each, len(names), len(absent)))
            with_shown = {o: sum(together[s][o] for s in names if s in together) for o in absent}
            for kind in self.kinds:
                if kind == "random":
                    chosen = rng.sample(absent, len(shown))
                else:  # ties by the toss of a coin: the alphabet must not choose
                    toss = {o: rng.random() for o in absent}
                    weight = alone if kind == "popular" else with_shown
                    chosen = sorted(absent, key=lambda o: (-weight[o], toss[o]))[: len(shown)]
                for answer, objects in (("yes", shown), ("no", chosen)):
                    for o in objects:
                        text = f"Is there {article(o)} in the image?"
                        found.append(
                            Question(f"{name}/{kind}/{o}", name, image, text, (answer,), YES_NO, _stated(o), {"absent": kind})
                        )
        return found

    def parse(self, record: Record, text: str) -> str | None:
        said = parse_yes_no(text)
        return None if said is None else YES_NO[not said]

    def results(self, records: list[Record]) -> list[Result]:
        accuracy = super().results(records)
        selective = [r for r in accuracy if r.metric != "accuracy"]
        base = next(r for r in accuracy if r.metric == "accuracy")
        clusters = [r["cluster"] for r in records]
        looks = [look for look in LOOKS if all(look in r for r in records)]
        counts = {look: np.stack([self._counts(r, look) for r in records]) for look in looks}
        rights = [r["answers"][0] == "yes" for r in records]
        coin = pope_of_counts((pope_counts([True] * len(records), rights) + pope_counts([False] * len(records), rights)).sum(0) / 2)
        always = pope_of_counts(pope_counts([True] * len(records), rights).sum(0))
        said = [None if r["unparsed"] else r["parsed"] == "yes" for r in records]
        bands = pope_band(said, rights) if base.unparsed else {}
        found = [base]
        for metric in METRICS[1:]:
            interval = sums_interval(counts["correct"], partial(_pope, metric), clusters, share=True)
            controls = {look: float(pope_of_counts(counts[look].sum(0))[metric]) for look in looks[1:]}
            low, high = interval.low, interval.high
            found.append(
                replace(base, metric=metric, value=interval.value, low=low, high=high, chance=float(coin[metric]), slices=[], band=bands.get(metric),
                        controls={**controls, "always_yes": float(always[metric])}, higher_is_better=metric != "yes_ratio")
            )  # fmt: skip
        return [*found, *self.auc(records), *selective]

    def _counts(self, record: Record, look: str) -> np.ndarray:
        """A row of ``pope_counts``; a tie is half a yes and half a no."""
        answers: list[str | None] = [*self._parsed(record, look)] or [None]
        right = record["answers"][0] == "yes"
        return np.mean([pope_counts([None if a is None else a == "yes"], [right])[0] for a in answers], axis=0)

    def auc(self, records: list[Record]) -> list[Result]:
        if not records or any("scores" not in r for r in records):
            return []
        looks = [look for look in LOOKS if all(f"{PREFIX[look]}scores" in r for r in records)]
        values = {look: _auc(records, look) for look in looks}
        own = values["correct"]
        at = mean_interval(list(own.values()), [cluster for cluster, _ in own])
        controls = {look: mean(list(values[look].values())) for look in looks[1:]}
        clusters = len({cluster for cluster, _ in own})
        return [
            Result(self.name, "auc", at.value, at.low, at.high, len(own), clusters, 0.5, controls=controls, by=records[0]["by"])
        ]


def _pope(metric: str, sums: np.ndarray) -> np.ndarray:
    return pope_of_counts(sums)[metric]


def _stated(thing: str) -> tuple[str, str]:
    return f"there is {article(thing)}", f"there is no {thing}"


def _auc(records: list[Record], look: str) -> dict[tuple[str, str], float]:
    """Per image and kind, the share of (present, absent) pairs in the right order; ties half."""
    margins: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        scores = [np.nan if s is None else s for s in r[f"{PREFIX[look]}scores"]]
        yes = r["options"].index("yes")
        key = (r["cluster"], (r.get("slices") or {}).get("absent", ""))
        margins.setdefault(key, {"yes": [], "no": []})[r["answers"][0]].append(scores[yes] - scores[1 - yes])
    found = {}
    for key, sides in margins.items():
        pairs = [np.sign(a - b) / 2 + 0.5 if np.isfinite(a - b) else 0.0 for a in sides["yes"] for b in sides["no"]]
        if pairs:
            found[key] = mean(pairs)
    return found
