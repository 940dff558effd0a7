"""Open vocabularies: every name is asked for in every picture; mean average precision of the scored boxes (``precision``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.regions.answers import ask
from diptych.benchmarks.regions.boxes import centre, whole
from diptych.benchmarks.regions.items import Query, leak_notes, mark_leaks, with_regions
from diptych.benchmarks.regions.precision import Found, matched, mean_average_precision
from diptych.benchmarks.statistics import function_interval
from diptych.core.capabilities import Model
from diptych.core.errors import counted
from diptych.data.source import Problem, Source

RESAMPLES = 300


@dataclass(frozen=True)
class OpenVocabulary:
    """AP (mean over overlaps of .5 to .95), AP50 and AP75 over the names that the pictures' regions have.

    A model gives one box for a name and picture, so of several equal things it finds one at most; a note says how much could be
    reached so. Controls: the whole picture and its middle as every box, with the model's scores; ``unscored``, the model's boxes
    with equal scores; ``shuffled``, its scores of another picture.

    n: pictures. most: names; more are refused, since every name is asked for in every picture. train: as for the other tasks.
    """

    name: str = "open-vocabulary"
    needs: tuple[str, ...] = ("locate",)
    n: int = 50
    most: int = 80
    batch: int = 32
    train: str = ""
    train_limit: int = 20_000

    metrics: ClassVar[tuple[str, ...]] = ("AP", "AP50", "AP75")

    def items(self, source: Source) -> Items:
        """n pictures with their names and boxes. Raises NotApplicable if there are more than ``most`` names."""
        return pictures_of(source, self)

    def run(self, model: Model, items: list[Query], records: Records, progress: Progress | None = None) -> None:
        """One record for each picture."""
        names = sorted({name for q in items for name in q.slices["names"].split("\n")})
        for number, q in enumerate(items, 1):
            if q.id in records:
                continue
            found = []
            for start in range(0, len(names), self.batch):
                part = names[start : start + self.batch]
                found += ask(model, [q.image] * len(part), part, None)
            rows = [[n, a.score, list(a.box)] for n, a in zip(names, found, strict=True) if a.box is not None]
            own = [[n, list(box)] for n, box in zip(q.slices["names"].split("\n"), q.boxes, strict=True)]
            leaked = {"slices": {"leaked": q.slices["leaked"]}} if "leaked" in q.slices else {}
            size = list(q.image.shape[:2])
            by = next((a.by for a in found), "")
            records.add(
                [{"item": q.id, "cluster": q.id, "size": size, "names": names, "found": rows, "truth": own, "by": by, **leaked}]
            )
            if progress:
                progress(f"{self.name} {number}/{len(items)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        """AP, AP50 and AP75 with intervals over pictures, and the controls."""
        rows = by_item(records)
        if not rows:
            return []
        own = _all_found(rows, lambda r, name, box: box)
        others = {
            "whole": _all_found(rows, lambda r, name, box: list(whole(*r["size"]))),
            "centre": _all_found(rows, lambda r, name, box: list(centre(*r["size"]))),
            "unscored": _all_found(rows, lambda r, name, box: box, equal=True),
            "shuffled": _all_found(rows, lambda r, name, box: box, shift=1),
        }
        control = {name: mean_average_precision(found) for name, found in others.items()}
        results = []
        for metric, at in (("AP", slice(None)), ("AP50", slice(0, 1)), ("AP75", slice(5, 6))):
            interval = function_interval(
                lambda index, at=at: _mean(own, index, len(rows), at),  # type: ignore[misc]
                [r["cluster"] for r in rows], share=True, resamples=RESAMPLES,
            )  # fmt: skip
            fields: dict[str, Any] = {"controls": {name: float(np.mean(v[at])) for name, v in control.items()}, "by": rows[0]["by"]}
            n = sum(len(r["truth"]) for r in rows)
            results.append(Result(self.name, metric, interval.value, interval.low, interval.high, n, len(rows), **fields))
        return results

    def notes(self, records: Sequence[Record]) -> list[str]:
        """What one box for each name could reach, and leaks."""
        rows = by_item(records)
        best = []
        for r in rows:
            first: dict[str, Any] = {}
            for name, box in r["truth"]:
                first.setdefault(name, box)
            best.append({**r, "found": [[name, 1.0, box] for name, box in first.items()]})
        reach = float(np.mean(mean_average_precision(_all_found(best, lambda r, name, box: box))))
        return [f"the model gives one box for a name and picture: AP is {reach:.3f} at most", *leak_notes(records, self.train)]


def pictures_of(source: Source, task: Any) -> Items:
    """The first ``task.n`` pictures as queries: ``boxes`` and ``masks`` of all regions, their names joined by line ends in
    ``slices["names"]``. Raises NotApplicable if there are more names than ``task.most``.
    """
    problems: list[Problem] = []
    found: list[Query] = []
    for sample, regions in with_regions(source, problems):
        boxes = [region.box for _, region in regions]
        names = "\n".join(" ".join(region.phrase.split()) for _, region in regions)
        assert sample.image is not None
        masks = [region.mask for _, region in regions]
        found.append(Query(sample.id, sample.id, sample.image, "", boxes, masks, boxes, slices={"names": names}))
        if len(found) == task.n:
            break
    names_of = {name for q in found for name in q.slices["names"].split("\n")}
    if not found or len(names_of) > task.most:
        raise NotApplicable(
            f"the regions have {counted(len(names_of), 'different phrase')}; this task asks for each in every picture, and takes "
            f"{task.most} at most ({task.name}?most=…): it is for names (scenes:regions?named=1, coco: with instances)"
            if found
            else "the source has no regions with a phrase"
        )
    return Items(mark_leaks(found, task.train, task.train_limit), problems)


def _all_found(
    rows: Sequence[Record], box_of: Callable[[Record, str, Any], Any], *, equal: bool = False, shift: int = 0
) -> list[Found]:
    """The boxes of each name. equal: with equal scores; shift: with the scores of the picture so many places further."""
    names = list(dict.fromkeys(name for r in rows for name in r["names"]))
    result = []
    for name in names:
        boxes, scores, truths = [], [], []
        given = [[(score, box) for n, score, box in r["found"] if n == name] for r in rows]
        for i, r in enumerate(rows):
            boxes.append(np.array([box_of(r, name, box) for _, box in given[i]], np.float64).reshape(-1, 4))
            other = given[(i + shift) % len(rows)]
            values = [0.0 if equal else (other[k][0] if k < len(other) else 0.0) for k in range(len(given[i]))]
            scores.append(np.array([-np.inf if v is None else v for v in values], np.float64))
            truths.append(np.array([box for n, box in r["truth"] if n == name], np.float64).reshape(-1, 4))
        result.append(matched(boxes, scores, truths))
    return result


def _mean(found: Sequence[Found], index: np.ndarray, pictures: int, at: slice) -> float:
    times = np.bincount(index, minlength=pictures)
    return float(np.mean(mean_average_precision(found, times)[at]))
