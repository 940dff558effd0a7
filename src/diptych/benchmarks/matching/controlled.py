"""Single skills in groups of k images and k captions that differ in that skill alone.

After Winoground (arXiv:2204.03162) and SPEC (arXiv:2312.00081). One record per group. Per skill: ``<skill>``, the share of images
with the highest score for their own caption; ``<skill>/text-to-image``, the same for captions; ``<skill>/group``, the share of
groups with all of them right. Shuffled: the images of another group of the same skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.matching.blocks import TO_IMAGE, Batch, Sides, grey
from diptych.benchmarks.metrics import groups
from diptych.benchmarks.metrics.ranking import shared_credits
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import shares
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Model
from diptych.data.source import Group, Source


@dataclass(frozen=True)
class Controlled:
    """Controlled tests of single skills on the built-in world."""

    name: str = "controlled"
    needs: tuple[str, ...] = ("score",)
    n: int = 100  # groups of each skill
    skills: tuple[str, ...] = ()  # empty: all that the source has
    seed: int = 0

    def items(self, source: Source) -> Items:
        """n groups per skill. Raises NotApplicable if the source has no controlled groups, or none for one of ``skills``."""
        if not (hasattr(source, "groups") and hasattr(source, "skills")):
            raise NotApplicable("the source has no controlled groups")
        unknown = set(self.skills) - set(source.skills)
        if unknown:
            raise NotApplicable(f"the source has no groups for {', '.join(sorted(unknown))}; it has {', '.join(source.skills)}")
        items = Items(group for skill in self.skills or source.skills for group in source.groups(skill, self.n))
        if not items:
            raise NotApplicable("the source has no controlled groups")
        return items

    def run(self, model: Model, items: list[Group], records: Records, progress: Progress | None = None) -> None:
        """One record per group from k × k scores. All groups are scored in one call, so a model can encode each image and text
        once.
        """
        others, batch, places = self._others(items), Batch(), []
        for group in items:
            if group.id not in records:
                other, texts = others.get(group.id), group.captions
                own = batch.add(group.images, texts)
                blind = batch.add([grey(group.images[0].shape)] * len(texts), texts)
                places.append((group, own, blind, batch.add(other.images, texts) if other else None))
        if places:
            scores = batch.scores(model)
            records.add(
                self.record(group, scores.at(own), scores.at(blind), None if shuffled is None else scores.at(shuffled))
                for group, own, blind, shuffled in places
            )

    def _others(self, items: list[Group]) -> dict[str, Group]:
        """For each group another of the same skill and size; groups without such another are left out."""
        alike: dict[tuple[str, int], list[Group]] = {}
        for group in items:
            alike.setdefault((group.skill, len(group.images)), []).append(group)
        others = {}
        for same in alike.values():
            order = derangement(len(same), seed=self.seed)
            if order is not None:
                others.update({group.id: same[i] for group, i in zip(same, order, strict=True)})
        return others

    def record(self, group: Group, scores: Sides, blind: Sides, shuffled: Sides | None) -> Record:
        """One record from scores [k, k], images down and captions across."""
        to_text, to_image = scores
        chance = groups.chance(len(group.images), two_sided=to_image is not None)
        ties = {"": ties_of(to_text), "/text-to-image": ties_of((to_text if to_image is None else to_image).T)}
        return {
            "item": group.id,
            "cluster": group.id,
            "skill": group.skill,
            "captions": group.captions,
            "scores": to_text,
            **({} if to_image is None else {"scores" + TO_IMAGE: to_image}),
            "correct": credits_of(group.skill, scores),
            "blind": credits_of(group.skill, blind),
            "shuffled": {} if shuffled is None else credits_of(group.skill, shuffled),
            "chance": {
                group.skill: chance["text"],
                f"{group.skill}/text-to-image": chance["image"],
                f"{group.skill}/group": chance["group"],
            },
            "ties": {f"{group.skill}{way}": n for way, n in (ties | {"/group": max(ties.values())}).items()},
            "nans": count_not_finite(to_text),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """The share of credits per skill and direction, with their controls."""
        return shares(self.name, records)


def credits_of(skill: str, scores: Sides) -> dict[str, float]:
    """{metric: credit} of a group's scores [k, k], images down and captions across."""
    to_text, to_image = scores
    return {
        skill: mean(groups.text_credit(to_text)),
        f"{skill}/text-to-image": mean(groups.image_credit(to_text if to_image is None else to_image)),
        f"{skill}/group": groups.group_credit(to_text, to_image),
    }


def ties_of(scores: np.ndarray) -> int:
    """How many rows were decided by sharing a tie."""
    return int(shared_credits(groups.text_credit(scores)).sum())
