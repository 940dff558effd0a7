"""Is the right answer likelier than one with a single wrong fact, and is it the picture that makes it so?

``margin``: log P(right answer | picture, question) − log P(wrong answer | picture, question), in nats; ``accuracy``: the share of
the pairs with a positive one. ``swap``: by how much the margin falls when the pictures of the items are exchanged. A model that
learned which words are wrong in general has a margin that does not fall: its ``swap`` is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, batch_for, by_item, count_not_finite, readable
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import credit_slices, of_credits, shares
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Image, Model
from diptych.core.sample import IMAGE
from diptych.data.preferences import Preference, preference_of
from diptych.data.source import Problem, Source

METRICS = ("accuracy", "margin", "swap")
BATCH = 64  # pairs that are asked at once


class Asked(NamedTuple):
    """One item: a question about a picture with two answers."""

    id: str
    image: Image
    prompt: str
    pair: Preference


@dataclass(frozen=True)
class Preferences:
    """Right answers against answers with one wrong fact, with the picture, a grey one and another item's.

    Of data with pairs (``preferences:``) these; of scenes, exact pairs made of them.
    """

    name: str = "preferences"
    needs: tuple[str, ...] = ("loglikelihood", "prompt")
    n: int = 200
    seed: int = 0

    def items(self, source: Source) -> Items:
        """The questions about one picture each. Raises NotApplicable if the data has no pairs."""
        items: list[Asked] = []
        problems: list[Problem] = []
        for sample in readable(with_pairs(source), problems):
            pair = preference_of(sample)
            if pair is None:
                problems.append(Problem(sample.id, "no pair of answers"))
                if len(problems) > self.n and not items:
                    break
                continue
            asked = [turn for turn in sample.turns if turn.role != "assistant"]
            if len(asked) != 1 or len(sample.images) != 1:
                problems.append(Problem(sample.id, "not one question about one picture"))
                continue
            words = asked[0].text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()
            items.append(Asked(sample.id, sample.images[0], words, pair))
            if len(items) == self.n:
                break
        if len(items) < 2:
            raise NotApplicable("needs two pairs of answers: data of preferences:, or scenes")
        return Items(items, problems)

    def run(self, model: Model, items: list[Asked], records: Records, progress: Progress | None = None) -> None:
        """One record per item, with the log-probabilities of both answers under its picture, a grey one and another item's."""
        if all(item.id in records for item in items):
            return
        order = derangement(len(items), seed=self.seed)
        images = [item.image for item in items]
        shown = [images, [blank(image) for image in images], images if order is None else [images[i] for i in order]]
        size = batch_for(model, BATCH)
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            own, blind, other = (self._scores(model, [i for i in of[part] for _ in (0, 1)], items[part]) for of in shown)
            records.add(self._record(item, own[k], blind[k], other[k]) for k, item in enumerate(items[part]))
            if progress is not None:
                progress(f"{self.name} {min(start + size, len(items))}/{len(items)}")

    def _scores(self, model: Model, images: Sequence[Image], items: Sequence[Asked]) -> np.ndarray:
        """log P of both answers of each item, [n, 2]. images: one for each answer."""
        texts = [text for item in items for text in (item.pair.chosen, item.pair.rejected)]
        prompts = [item.prompt for item in items for _ in (0, 1)]
        return np.asarray(model.loglikelihood(images, texts, prompts), dtype=np.float64).reshape(-1, 2)

    def _record(self, item: Asked, own: np.ndarray, blind: np.ndarray, other: np.ndarray) -> Record:
        """What is known of one item."""
        return {
            "item": item.id,
            "cluster": item.id,
            "fact": item.pair.fact or None,
            "prompt": item.prompt,
            "texts": [item.pair.chosen, item.pair.rejected],
            "scores": own,
            "blind_scores": blind,
            "shuffled_scores": other,
            "correct": {"accuracy": credit(own)},
            "blind": {"accuracy": credit(blind)},
            "shuffled": {"accuracy": credit(other)},
            "chance": {"accuracy": 0.5},
            "ties": {"accuracy": int(own[0] == own[1])},
            "nans": count_not_finite(own),
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """``accuracy``, ``margin`` and ``swap``, the latter by the kind of the wrong fact too."""
        records = by_item(records)
        clusters = [str(r["cluster"]) for r in records]
        own, blind, other = (margins(records, name) for name in ("scores", "blind_scores", "shuffled_scores"))
        controls = {"blind": mean(blind.tolist()), "shuffled": mean(other.tolist())}
        facts = {"fact": [r.get("fact") for r in records]}
        result = shares(self.name, records)
        for metric, values, fields in (("margin", own, {"controls": controls}), ("swap", own - other, {"chance": 0.0})):
            more: dict[str, Any] = {**fields, "slices": credit_slices(values, clusters, facts, bounded=False)}
            result.append(of_credits(self.name, metric, values, clusters, bounded=False, **more))
        return result

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        rows = by_item(records)
        own, other = margins(rows, "scores"), margins(rows, "shuffled_scores")
        return {
            "accuracy": {r["item"]: r["correct"]["accuracy"] for r in rows},
            "margin": {r["item"]: float(v) for r, v in zip(rows, own, strict=True)},
            "swap": {r["item"]: float(v) for r, v in zip(rows, own - other, strict=True)},
        }


def margins(records: Sequence[Record], name: str) -> np.ndarray:
    """The margins of one condition, float64 [n]."""
    scores = np.array([r[name] for r in records], dtype=np.float64).reshape(-1, 2)
    result: np.ndarray = scores[:, 0] - scores[:, 1]
    return result


def credit(scores: np.ndarray) -> float:
    """1 if the right answer is likelier, ½ if both are equally likely, else 0."""
    return float(scores[0] > scores[1]) + 0.5 * float(scores[0] == scores[1])


def with_pairs(source: Source) -> Source:
    """The source itself, or the exact pairs of a world of scenes."""
    from diptych.data.preferences.source import preferences
    from diptych.data.scenes.source import Scenes
    from diptych.data.sources import open_source

    return open_source(preferences(source.address)) if type(source) is Scenes else source
