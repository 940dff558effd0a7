"""Moment search: when, in a long clip, does what a text says happen? (after Gao et al., arXiv:1705.02101)

For clips with several events and their intervals (``extra["events"]``: ``scenes:clips?events=4``, ActivityNet's JSON by
``video:``). The model scores windows of the clip against the text of one event; the window with the highest score is its answer.
``recall@1``: the share of events whose window has an intersection over union with the true interval of at least .5. One record per
event; events of one clip are a cluster. Chance: the share of windows that would be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite, readable
from diptych.benchmarks.matching.blocks import Batch
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.video.conditions import CONDITIONS, ORDERED, is_clip, need_clips, results_of, shown
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

METRIC = "recall@1"


@dataclass(frozen=True)
class Moments:
    """The interval of a long clip in which what a text says happens."""

    name: str = "moments"
    needs: tuple[str, ...] = ("score",)
    n: int = 25  # clips
    sizes: tuple[float, ...] = (0.125, 0.1875, 0.25, 0.375, 0.5)  # of windows, as shares of the clip
    step: float = 0.25  # between windows, as a share of their size
    overlap: float = 0.5  # intersection over union from which on a window is right

    def items(self, source: Source) -> Items:
        """n clips with two events or more. Raises NotApplicable if there is none."""
        found: list[Sample] = []
        problems: list[Problem] = []
        for number, sample in enumerate(readable(source, problems)):
            if is_clip(sample.image) and len(sample.extra.get("events") or ()) > 1:
                found.append(sample)
            if len(found) == self.n or (number >= 100 and not found):
                break
        if not found:
            raise NotApplicable("the source has no clips with several events and their times; scenes:clips?events=4 has")
        return Items(found, problems)

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per event; the windows of one clip are scored in one call."""
        need_clips(model)
        for number, sample in enumerate(items, 1):
            events = sample.extra["events"]
            if all(f"{sample.id}#{k}" in records for k in range(len(events))):
                continue
            clip: Any = sample.image
            spans = windows(len(clip), self.sizes, self.step)
            times = [in_seconds(clip, span) for span in spans]
            texts = list(dict.fromkeys(e["text"] for e in events))
            batch = Batch()
            parts = {c: [shown(clip[a:b], c, f"{sample.id} {a} {b}") for a, b in spans] for c in CONDITIONS}
            places = {c: batch.add(list(of), texts) for c, of in parts.items()}
            scores = batch.scores(model)
            for k, event in enumerate(events):
                fits = np.array([iou(t, (event["start"], event["end"])) >= self.overlap for t in times])
                if not fits.any():
                    continue  # no window could be right, which says nothing of the model
                by = {c: scores.at(at).to_text[:, texts.index(event["text"])] for c, at in places.items()}
                best = int(np.argmax(lowest_if_not_finite(by[ORDERED])))
                records.add(
                    [
                        {
                            "item": f"{sample.id}#{k}",
                            "cluster": sample.id,
                            "text": event["text"],
                            "truth": [event["start"], event["end"]],
                            "found": list(times[best]),
                            **{c: {METRIC: first_right(of, fits)} for c, of in by.items()},
                            "chance": {METRIC: mean(fits.astype(float))},
                            "ties": {METRIC: int((by[ORDERED] == by[ORDERED].max()).sum() > 1)},
                            "nans": count_not_finite(by[ORDERED]),
                        }
                    ]
                )
            if progress:
                progress(f"{self.name} {number}/{len(items)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        """Recall at 1 with its controls, and its temporal gain."""
        return results_of(self.name, records)


def windows(frames: int, sizes: tuple[float, ...], step: float) -> list[tuple[int, int]]:
    """First frame, and the frame after the last, of all windows of a clip."""
    spans = []
    for size in sizes:
        width = max(2, round(size * frames))
        stride = max(1, round(step * width))
        spans += [(start, start + width) for start in range(0, frames - width + 1, stride)]
    return list(dict.fromkeys(spans)) or [(0, frames)]


def in_seconds(clip: Any, span: tuple[int, int]) -> tuple[float, float]:
    """From when the first frame of a window is shown until the frame after its last is."""
    seconds = list(getattr(clip, "seconds", [])) or [float(i) for i in range(len(clip))]
    gaps = [b - a for a, b in pairwise(seconds)]
    ends = [*seconds[1:], seconds[-1] + (float(np.median(gaps)) if gaps else 1.0)]
    return seconds[span[0]], ends[span[1] - 1]


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two intervals."""
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / (a[1] - a[0] + b[1] - b[0] - both)


def first_right(scores: np.ndarray, fits: np.ndarray) -> float:
    """The probability that the window with the highest score is right if ties are broken at random."""
    scores = lowest_if_not_finite(scores)
    return mean(fits[scores == scores.max()].astype(float))
