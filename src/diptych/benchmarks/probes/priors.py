"""Language priors: how much of a score remains without the image, and what is left when that is subtracted (after Lin et al.,
arXiv:2306.01879).

A true and a false sentence about each image, scored with the image, without it (the language prior) and corrected: s(text, image)
− α · prior(text). Where scores are log-likelihoods this is P(t|i) / P(t)^α. α is chosen on the other half of the items, so that
``corrected`` is not biased upwards. False sentences: the source's own, else two words swapped.

The prior is the score with a grey image, the mean probability under images of Gaussian noise, as in the paper (§4), or log P(t)
under a language model that sees no image.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from diptych.benchmarks.base import Items, Progress, at_least_two, by_item, count_not_finite, readable
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.groups import text_credit
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import of_credits, shares
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.negatives import swap_words
from diptych.data.source import Problem, Source

if TYPE_CHECKING:
    from diptych.inference.texts.likelihood import TextLikelihood

ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class Priors:
    """What a model answers without the image.

    prior: what is subtracted: ``grey``, ``noise``, or the address of a language model (a run with a part ``lm``, or hf:NAME).
    draws: images of noise.
    """

    name: str = "priors"
    needs: tuple[str, ...] = ("score",)
    n: int = 200
    seed: int = 0
    prior: str = "grey"
    draws: Annotated[int, Field(ge=1)] = 3

    def items(self, source: Source) -> Items:
        """(sample, true sentence, false sentence) of each."""
        items: list[Any] = []
        problems: list[Problem] = []
        for sample in readable(source, problems):
            pair = self._pair(sample)
            if pair is None:
                problems.append(Problem(sample.id, "no picture with a caption that could be made false"))
            else:
                items.append((sample, *pair))
            if len(items) == self.n:
                break
        return at_least_two(Items(items, problems))

    def _pair(self, sample: Sample) -> tuple[str, str] | None:
        if sample.image is None:
            return None
        for i, caption in enumerate(sample.captions):
            own = sample.negatives[i] if i < len(sample.negatives) else ""
            false = own or swap_words(caption, random.Random(f"{self.seed} {sample.id}"))
            if false and false != caption:
                return caption, false
        return None

    def run(self, model: Model, items: list[tuple[Sample, str, str]], records: Records, progress: Progress | None = None) -> None:
        """One record per image with the scores of the true and of the false sentence: with the image, with a grey one of its size,
        and with another item's image; and their prior, where that is not the score with a grey one.
        """
        if all(sample.id in records for sample, _, _ in items):
            return
        reader = None if self.prior in ("grey", "noise") else self._language_model()
        images = [sample.image for sample, _, _ in items if sample.image is not None]
        texts = [text for _, *pair in items for text in pair]
        shapes = {image.shape: image for image in images}
        grey = {shape: len(images) + i for i, shape in enumerate(shapes)}
        draws = self.draws if self.prior == "noise" else 0
        noise = {shape: noise_images(shape, draws, self.seed) for shape in shapes}
        first = {shape: len(images) + len(shapes) + draws * i for i, shape in enumerate(shapes)}
        order = derangement(len(items), seed=self.seed)
        image_of = [
            range(len(images)),
            [grey[image.shape] for image in images],
            range(len(images)) if order is None else order,
            *([first[image.shape] + k for image in images] for k in range(draws)),
        ]
        pairs = [(int(index[i]), 2 * i + j) for index in image_of for i in range(len(items)) for j in (0, 1)]
        shown = [*images, *map(blank, shapes.values()), *(image for several in noise.values() for image in several)]
        scores = np.asarray(model.score(shown, texts, np.array(pairs)))
        own, blind, shuffled, *drawn = scores.reshape(3 + draws, len(items), 2)
        further: list[Record] = [{} for _ in items]  # of each record
        if reader or drawn:
            prior = reader(texts).reshape(-1, 2) if reader else log_mean_exp(np.stack(drawn).astype(np.float64))
            further = [{"prior_scores": [row]} for row in prior]
        records.add(
            {
                "item": sample.id,
                "cluster": sample.id,
                "texts": [true, false],
                "scores": [own[i]],
                "blind_scores": [blind[i]],
                **further[i],
                "fits": [[True, False]],
                "correct": {"accuracy": credit(own[i])},
                "blind": {"accuracy": credit(blind[i])},
                **({} if order is None else {"shuffled": {"accuracy": credit(shuffled[i])}}),
                "chance": {"accuracy": 0.5},
                "ties": {"accuracy": int(own[i, 0] == own[i, 1])},
                "nans": count_not_finite(own[i]),
            }
            for i, (sample, true, false) in enumerate(items)
        )

    def _language_model(self) -> TextLikelihood:
        from diptych.inference.texts.likelihood import text_likelihood

        try:
            return text_likelihood(self.prior)
        except DiptychError as error:
            raise DiptychError(f"task '{self.name}': prior={self.prior}: {error}; or prior=grey, prior=noise") from None

    def summarise(self, records: list[Record]) -> list[Result]:
        """``accuracy`` as scored, and ``corrected``, of which the control ``uncorrected`` is the accuracy."""
        records = by_item(records)
        fields: dict[str, Any] = {"chance": 0.5, "controls": {"uncorrected": mean([r["correct"]["accuracy"] for r in records])}}
        clusters = [str(r["cluster"]) for r in records]
        return [*shares(self.name, records), of_credits(self.name, "corrected", corrected(records), clusters, **fields)]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        rows = by_item(records)
        return {
            "accuracy": {r["item"]: r["correct"]["accuracy"] for r in rows},
            "corrected": {r["item"]: float(c) for r, c in zip(rows, corrected(rows), strict=True)},
        }


def credit(scores: np.ndarray) -> float:
    """Whether the first of two scores is the higher one. A tie counts half; a score that is not finite is the lowest."""
    square = np.stack([scores, scores[::-1]])
    return float(text_credit(square)[0])


def noise_images(shape: tuple[int, ...], draws: int, seed: int) -> list[Image]:
    """uint8 images of this shape; every value is drawn from a normal distribution around the middle of the range, with a quarter of
    the range as its deviation, and cut to the range.
    """
    rng = np.random.default_rng(seed)
    return [np.clip(np.rint(rng.normal(127.5, 255 / 4, shape)), 0, 255).astype(np.uint8) for _ in range(draws)]


def log_mean_exp(scores: np.ndarray) -> np.ndarray:
    """log of the mean of exp(scores) over the first axis: of log-likelihoods, the log of the mean probability."""
    highest = scores.max(0)
    result: np.ndarray = highest + np.log(np.exp(scores - highest).mean(0))
    return result


def prior_credit(record: Record) -> float:
    """The credit that the prior alone earns."""
    if "prior_scores" not in record:
        return float(record["blind"]["accuracy"])
    return credit(np.array([np.nan if s is None else s for s in record["prior_scores"][0]], dtype=np.float64))


def _prior_of(record: Record) -> Any:
    """The scores that are subtracted, [1][2]."""
    return record["prior_scores"] if "prior_scores" in record else record["blind_scores"]


def margins(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The true sentence's score minus the false one's, with the image and by the prior, float [n] each.

    A score with the image that is not finite is the lowest, as in ``credit``; without the image it counts as a prior of 0.
    """
    given: list[list[Any]] = [[r["scores"][0] for r in records], [_prior_of(r)[0] for r in records]]
    own, blind = (
        np.array([[np.nan if s is None else s for s in pair] for pair in pairs], dtype=np.float64).reshape(-1, 2) for pairs in given
    )
    margin = np.where(np.isfinite(own), own, -1e300)  # finite, so that two of them tie
    prior = blind[:, 0] - blind[:, 1]
    return margin[:, 0] - margin[:, 1], np.where(np.isfinite(prior), prior, 0.0)


def credits_at(records: Sequence[Record], alpha: float) -> np.ndarray:
    """Credit of each item when α of the prior is subtracted, float [n]."""
    own, blind = margins(records)
    return (np.sign(own - alpha * blind) + 1) / 2


def half_of(cluster: str) -> int:
    """0 or 1: the half of the items to which a cluster belongs, by a hash."""
    return hashlib.blake2b(cluster.encode(), digest_size=1).digest()[0] % 2


def corrected(records: Sequence[Record]) -> np.ndarray:
    """Credits with the α that is best on the other half of the clusters (the smallest of the best), float [n]."""
    table = np.stack([credits_at(records, a) for a in ALPHAS])
    half = np.array([half_of(str(r["cluster"])) for r in records])
    result: np.ndarray = table[0].copy()
    for side in (0, 1):
        if (half != side).any():
            best = int(table[:, half != side].mean(1).argmax())
            result[half == side] = table[best, half == side]
    return result
