"""VQAScore (Lin et al., arXiv:2404.01291): P("Yes" | image, "Does this figure show "…"? Please answer yes or no.").

For models that follow prompts and have likelihoods. ``vqascore``: its mean over the images' own captions; shuffled: over captions
of others. ``accuracy``: the share of items in which the own caption gets a higher probability than the other. Prompt and answer are
in the records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, Progress, at_least_two, images_of, retrieval_items
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.matching.blocks import grey
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import shares
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Source


@dataclass(frozen=True)
class VqaScore:
    """VQAScore: the probability of "yes" to whether an image shows a text (Lin et al. 2024)."""

    name: str = "vqascore"
    needs: tuple[str, ...] = ("prompt", "loglikelihood")
    n: int = 100
    prompt: str = 'Does this figure show "{caption}"? Please answer yes or no.'
    answer: str = "Yes"
    seed: int = 0

    def items(self, source: Source) -> Items:
        """Up to n samples with an image and a caption. Raises NotApplicable if there are fewer than two."""
        return at_least_two(retrieval_items(source, self.n))

    def run(self, model: Model, items: list[Sample], records: Records, progress: Progress | None = None) -> None:
        """One record per sample: the probability of the expected answer for its own caption, for another sample's (shuffled), and
        for its own with a grey image (blind).
        """
        order = derangement(len(items), seed=self.seed)
        assert order is not None  # there are at least two items
        todo = [i for i, item in enumerate(items) if item.id not in records]
        if not todo:
            return
        every = images_of(items)
        images = [every[i] for i in todo]
        own = [items[i].captions[0] for i in todo]
        other = [items[order[i]].captions[0] for i in todo]
        scores = {
            "score": self._p(model, images, own),
            "shuffled_score": self._p(model, images, other),
            "blind_score": self._p(model, [grey(image.shape) for image in images], own),
        }
        records.add(
            self.with_credits(
                {
                    "item": items[i].id,
                    "cluster": items[i].id,
                    "caption": own[row],
                    "other_caption": other[row],
                    "prompt": self.prompt,
                    "expected_answer": self.answer,
                    **{k: float(v[row]) for k, v in scores.items()},
                }
            )
            for row, i in enumerate(todo)
        )

    def _p(self, model: Model, images: list[Any], captions: list[str]) -> np.ndarray:
        prompts = [self.prompt.replace("{caption}", caption) for caption in captions]
        return np.exp(model.loglikelihood(images, [self.answer] * len(images), prompts).astype(np.float64))

    def with_credits(self, record: Record) -> Record:
        """The record with its credits."""
        right = np.heaviside(record["score"] - record["shuffled_score"], 0.5)
        return {
            **record,
            "correct": {"vqascore": record["score"], "accuracy": float(right)},
            "blind": {"vqascore": record["blind_score"]},
            "shuffled": {"vqascore": record["shuffled_score"]},
            "chance": {"accuracy": 0.5},
            "ties": {"accuracy": int(record["score"] == record["shuffled_score"])},
        }

    def summarise(self, records: list[Record]) -> list[Result]:
        """``vqascore`` and ``accuracy`` with intervals that resample images."""
        return shares(self.name, [self.with_credits(r) for r in records])
