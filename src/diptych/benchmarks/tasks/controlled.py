"""Single skills in groups of k images and k captions that differ in that skill alone.

After Winoground (arXiv:2204.03162) and SPEC (arXiv:2312.00081). A record a group. Per skill: ``<skill>``, the share of
images that find their caption; ``<skill>/text-to-image``; ``<skill>/group``, everything right. Shuffled: the images of
another group of the same skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.benchmarks.controls import derangement
from diptych.benchmarks.metrics import pairs
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress, not_finite, shares
from diptych.benchmarks.tasks.choosing import Asked, grey
from diptych.core.capabilities import Model
from diptych.data.source import Controlled as ControlledSource
from diptych.data.source import Group, Source


@dataclass(frozen=True)
class Controlled:
    name: str = "controlled"
    needs: tuple[str, ...] = ("score",)
    n: int = 100  # groups of each skill
    skills: tuple[str, ...] = ()  # none named: all that the source has
    seed: int = 0

    def items(self, source: Source) -> Items:
        if not isinstance(source, ControlledSource):
            raise NotApplicable("the source has no controlled groups")
        unknown = set(self.skills) - set(source.skills)
        if unknown:
            raise NotApplicable(f"the source has no groups for {', '.join(sorted(unknown))}; it has {', '.join(source.skills)}")
        items = Items(group for skill in self.skills or source.skills for group in source.groups(skill, self.n))
        if not items:
            raise NotApplicable("the source has no controlled groups")
        return items

    def run(self, model: Model, items: list[Group], records: Records, progress: Progress | None = None) -> None:
        todo = [group for group in items if group.id not in records]
        if not todo:
            return
        others = self.others(items)
        asked = Asked()
        plans = []
        for group in todo:
            other, texts = others.get(group.id), group.captions
            own = asked.block(group.images, texts)
            blind = asked.block([grey(group.images[0].shape)] * len(texts), texts)
            plans.append((group, own, blind, asked.block(other.images, texts) if other else None))
        scores = np.asarray(model.score(asked.images, asked.texts, np.array(asked.pairs)))
        records.add(
            self.judge(group, scores[own], scores[blind], None if shuffled is None else scores[shuffled])
            for group, own, blind, shuffled in plans
        )

    def others(self, items: list[Group]) -> dict[str, Group]:
        """For each group, another of the same skill and size; none where there is but one."""
        alike: dict[tuple[str, int], list[Group]] = {}
        for group in items:
            alike.setdefault((group.skill, len(group.images)), []).append(group)
        found = {}
        for groups in alike.values():
            order = derangement(len(groups), seed=self.seed)
            if order is not None:
                found.update({group.id: groups[i] for group, i in zip(groups, order, strict=True)})
        return found

    def judge(self, group: Group, scores: np.ndarray, blind: np.ndarray, shuffled: np.ndarray | None) -> Record:
        """One record from scores [k, k], images down and captions across."""
        chance = pairs.chance(len(group.images))
        ties = {"": _ties(scores), "/text-to-image": _ties(scores.T)}
        return {
            "item": group.id,
            "cluster": group.id,
            "skill": group.skill,
            "captions": group.captions,
            "scores": scores,
            "correct": _credits(group.skill, scores),
            "blind": _credits(group.skill, blind),
            "shuffled": {} if shuffled is None else _credits(group.skill, shuffled),
            "chance": {
                group.skill: chance["text"],
                f"{group.skill}/text-to-image": chance["image"],
                f"{group.skill}/group": chance["group"],
            },
            "ties": {f"{group.skill}{way}": n for way, n in (ties | {"/group": max(ties.values())}).items()},
            "nans": not_finite(scores),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        return shares(self.name, records)


def _credits(skill: str, scores: np.ndarray) -> dict[str, float]:
    return {
        skill: mean(pairs.text_credit(scores)),
        f"{skill}/text-to-image": mean(pairs.image_credit(scores)),
        f"{skill}/group": pairs.group_credit(scores),
    }


def _ties(scores: np.ndarray) -> int:
    """How many rows were decided by sharing a tie."""
    credit = pairs.text_credit(scores)
    return int(((credit > 0) & (credit < 1)).sum())
