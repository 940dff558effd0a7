"""Pairs of clips that differ in one thing alone, most of them in the order of the same frames (``scenes:clips?actions=all``).

One record per pair. Per skill: ``SKILL``, the share of clips with the highest score for their own caption; ``SKILL/text-to-image``,
the same for captions, which choose a clip; ``SKILL/group``, the share of pairs with all of them right; and the temporal gain of
each. A model that ignores the order of frames is exactly at chance on skills of the same frames, if it reads all frames of a clip:
of longer clips it would be shown other frames of a clip than of its reverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite
from diptych.benchmarks.matching.blocks import TO_IMAGE, Batch, Sides
from diptych.benchmarks.matching.controlled import credits_of, ties_of
from diptych.benchmarks.metrics import groups
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.video.conditions import CONDITIONS, ORDERED, is_clip, need_clips, results_of, shown
from diptych.core.capabilities import Model
from diptych.data.source import Group, Source

BATCH = 16  # pairs scored in one call


@dataclass(frozen=True)
class Temporal:
    """Pairs of clips: order, direction, before and after, counting up, what can happen."""

    name: str = "temporal"
    needs: tuple[str, ...] = ("score",)
    n: int = 50  # pairs of each skill
    skills: tuple[str, ...] = ()  # empty: all that the source has

    def items(self, source: Source) -> Items:
        """n pairs per skill. Raises NotApplicable if the source has no pairs of clips, or none for one of ``skills``."""
        known = tuple(getattr(source, "skills", ()))
        if not known or not hasattr(source, "groups"):
            raise NotApplicable("the source has no pairs of clips; scenes:clips?actions=all has")
        if unknown := set(self.skills) - set(known):
            raise NotApplicable(f"the source has no pairs for {', '.join(sorted(unknown))}; it has {', '.join(known)}")
        items = Items(group for skill in self.skills or known for group in source.groups(skill, self.n))
        if not items or not is_clip(items[0].images[0]):
            raise NotApplicable("the source has pairs of pictures, not of clips; scenes:clips?actions=all has")
        return items

    def run(self, model: Model, items: list[Group], records: Records, progress: Progress | None = None) -> None:
        """One record per pair, with its scores under every condition."""
        need_clips(model)
        for start in range(0, len(items), BATCH):
            part = [group for group in items[start : start + BATCH] if group.id not in records]
            batch, places = Batch(), []
            for group in part:
                clips = {c: [shown(clip, c, f"{group.id} {k}") for k, clip in enumerate(group.images)] for c in CONDITIONS}
                places.append((group, {c: batch.add(list(of), group.captions) for c, of in clips.items()}))
            if places:
                scores = batch.scores(model)
                records.add(self.record(group, {c: scores.at(at) for c, at in of.items()}) for group, of in places)
                if progress:
                    progress(f"{self.name} {min(start + BATCH, len(items))}/{len(items)}")

    def record(self, group: Group, scores: dict[str, Sides]) -> Record:
        """One record from the scores [k, k] of each condition, clips down and captions across."""
        to_text, to_image = scores[ORDERED]
        chance = groups.chance(len(group.images), two_sided=to_image is not None)
        ties = {"": ties_of(to_text), "/text-to-image": ties_of((to_text if to_image is None else to_image).T)}
        known: dict[str, Any] = {"same_frames": str(group.extra["same_frames"]).lower()} if "same_frames" in group.extra else {}
        return {
            "item": group.id,
            "cluster": group.id,
            "skill": group.skill,
            **known,
            "captions": group.captions,
            "scores": to_text,
            **({} if to_image is None else {"scores" + TO_IMAGE: to_image}),
            **{condition: credits_of(group.skill, of) for condition, of in scores.items()},
            "chance": {
                group.skill: chance["text"],
                f"{group.skill}/text-to-image": chance["image"],
                f"{group.skill}/group": chance["group"],
            },
            "ties": {f"{group.skill}{way}": n for way, n in (ties | {"/group": max(ties.values())}).items()},
            "nans": sum(count_not_finite(np.asarray(of.to_text)) for of in scores.values()),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """The share of credits per skill and direction with their controls, and their temporal gains."""
        return results_of(self.name, records)
