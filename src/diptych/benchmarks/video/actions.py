"""Action naming: which of the source's actions does a clip show? By the scores of a text for each (labels of ``scenes:clips``).

``top1``: the share of clips for which the text of their action scores highest; slices: the recall of each action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite, readable
from diptych.benchmarks.metrics.ranking import recall_at, standing, undecided
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.video.conditions import CONDITIONS, ORDERED, attended, is_clip, need_clips, results_of, shown
from diptych.core.capabilities import Model
from diptych.core.sample import Sample, class_text
from diptych.data.source import Problem, Source

METRIC = "top1"
BATCH = 32


@dataclass(frozen=True)
class Actions:
    """Naming the action of a clip among all actions of the source."""

    name: str = "actions"
    needs: tuple[str, ...] = ("score",)
    n: int = 200  # clips
    template: str = "{}"  # the text of an action, in which {} is its name

    def items(self, source: Source) -> Items:
        """(sample, the texts of all actions): the first n clips with a label. Raises NotApplicable if there are none."""
        names = list(getattr(source, "class_texts", None) or map(class_text, getattr(source, "classes", None) or ()))
        if len(names) < 2:
            raise NotApplicable("the data has no actions as classes; scenes:clips?actions=all has")
        texts = [self.template.replace("{}", name) for name in names]
        found: list[Sample] = []
        problems: list[Problem] = []
        for number, sample in enumerate(readable(source, problems)):
            if is_clip(sample.image) and "label" in sample.fields:
                found.append(sample)
            if len(found) == self.n or (number >= 100 and not found):
                break
        if len(found) < 2:
            raise NotApplicable("the data has no clips with a label")
        return Items(((sample, texts) for sample in found), problems)

    def run(self, model: Model, items: list[tuple[Sample, list[str]]], records: Records, progress: Progress | None = None) -> None:
        """One record per clip."""
        need_clips(model)
        for start in range(0, len(items), BATCH):
            part = [(s, texts) for s, texts in items[start : start + BATCH] if s.id not in records]
            if not part:
                continue
            texts, right = part[0][1], np.array([s.fields["label"].index for s, _ in part])
            positive = right[:, None] == np.arange(len(texts))
            by, ties, bad, best = {}, np.zeros(len(part), int), np.zeros(len(part), int), right
            for condition in CONDITIONS:
                scores = np.asarray(model.score([shown(s.image, condition, s.id) for s, _ in part if s.image is not None], texts))
                at = standing(scores, positive)
                by[condition] = recall_at(1, *at)
                if condition == ORDERED:
                    ties, bad, best = undecided(1, *at), np.array([count_not_finite(row) for row in scores]), scores.argmax(1)
            named = [texts[int(k)] for k in best]
            seen = attended(model, [s.image for s, _ in part if s.image is not None], named)
            records.add(
                {
                    "item": sample.id,
                    "cluster": sample.id,
                    "slices": {"action": sample.fields["label"].name},
                    "named": named[k],
                    **seen[k],
                    **{c: {METRIC: float(of[k])} for c, of in by.items()},
                    "chance": {METRIC: 1 / len(texts)},
                    "ties": {METRIC: int(ties[k])},
                    "nans": int(bad[k]),
                }
                for k, (sample, _) in enumerate(part)
            )
            if progress:
                progress(f"{self.name} {min(start + BATCH, len(items))}/{len(items)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        """The share of clips named right, with controls and the recall of each action, and the temporal gain."""
        return results_of(self.name, records)
