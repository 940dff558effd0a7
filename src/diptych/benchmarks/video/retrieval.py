"""Text ↔ clip retrieval within n items: recall at 1, 5, 10 in both directions, with the controls of clips and the temporal gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, at_least_two, retrieval_items
from diptych.benchmarks.controls import blank
from diptych.benchmarks.matching.retrieval import Retrieval
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.video.conditions import CONDITIONS, ORDERED, attended, is_clip, need_clips, results_of, shown
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Source


@dataclass(frozen=True)
class VideoRetrieval(Retrieval):
    """Finding the caption of a clip, and the clip of a caption."""

    name: str = "video-retrieval"

    def items(self, source: Source) -> Items:
        """Up to n samples with a clip and a caption. Raises NotApplicable if there are fewer than two."""
        items = at_least_two(retrieval_items(source, self.n))
        if not all(is_clip(item.image) for item in items):
            raise NotApplicable("the source has pictures; retrieval is the task for them")
        return items

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per caption, from the scores of all clips with all captions under every condition."""
        need_clips(model)
        names, texts, owner = [], [], []
        for i, item in enumerate(items):
            for j, caption in enumerate(item.captions[: self.captions]):
                names.append(f"{item.id}#{j}" if j else item.id)
                texts.append(caption)
                owner.append(i)
        if all(name in records for name in names):
            return
        rows: list[Record] = []
        for condition in CONDITIONS:
            clips = [shown(item.image, condition, item.id) for item in items if item.image is not None]
            scores = self.scores(model, [*clips, blank(clips[0])], texts)
            found = self.rows([item.id for item in items], np.array(owner), *scores)
            if condition == ORDERED:
                rows = found
            for row, other in zip(rows, found, strict=True):
                row[condition] = other[ORDERED]
            if progress:
                progress(f"{self.name} {condition}")
        seen = attended(model, [items[i].image for i in owner], texts)  # type: ignore[misc]
        more = zip(names, texts, rows, seen, strict=True)
        records.add({"item": name, "caption": text, **row, **weights} for name, text, row, weights in more)

    def summarise(self, records: list[Record]) -> list[Result]:
        """Recall at 1, 5 and 10 in both directions with their controls, and their temporal gains; intervals resample clips."""
        return results_of(self.name, records)
