"""Measures that are more than one task on one model: memorisation, dependence on concept frequency, language prior.

Each is ``function(runs, arm, seed, *, options) -> Measured``: a mean over items, so that runs can be compared item by item.
Your own: ``module:function`` in a study's YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.study.runs import ArmName, Runs, loaded
from diptych.study.verdict import Measured

if TYPE_CHECKING:
    from diptych.core.sample import Sample
    from diptych.data.source import Source


# --- memorisation ---


def deja_vu(
    runs: Runs,
    arm: str,
    seed: int,
    *,
    of: Literal["recall", "precision", "prg", "ppg"] = "recall",
    reference: ArmName,
    members: Literal["own", "ordinary"] = "own",
    public: int = 4000,
    neighbours: int = 5,
    shown: Literal["labels", "colours"] = "labels",
) -> Measured:
    """Déjà vu memorisation (Jayaraman et al., arXiv:2402.02103) of the arm's repeated samples, against an arm not trained on them.

    The caption of a member is embedded; the labels of the ``neighbours`` nearest of ``public`` held-out pictures (validation part)
    are the prediction of what the member's picture shows. Labels that the caption names do not count.

    of: recall or precision of the predicted labels, the arm's minus the reference's, a mean over members (for recall, the area
    between the two recall curves); or the share of members with more minus the share with less than the reference: prg for
    recall, ppg for precision.
    members: ``own``, the repeated samples; ``ordinary``, as many others that neither of the arms repeats.
    shown: ``colours`` uses the colours of objects as labels (scenes only): small models learn them long before shapes.
    """
    from diptych.benchmarks.probes.memorization import population_gap

    data = runs.recipe(arm, seed).data.train
    of_arm = _deja_vu(runs.path(arm, seed), data, members, public, neighbours, shown)
    of_reference = _deja_vu(runs.path(reference, seed), data, members, public, neighbours, shown)
    a, b = (scores["recall" if of in ("recall", "prg") else "precision"] for scores in (of_arm, of_reference))
    items = population_gap(a, b) if of in ("prg", "ppg") else a - b
    return _of_items(of_arm["items"], items, {"ours": a.tolist(), "reference": b.tolist()}, limits=(-1.0, 1.0))


@lru_cache(maxsize=64)
def _deja_vu(run: Path, data: str, members: str, public: int, neighbours: int, shown: str) -> dict[str, Any]:
    """Items, recall [N] and precision [N] of the model in ``run`` for the samples that ``data`` repeats."""
    from diptych.benchmarks.probes.memorization import nearest, precision_recall, predicted_objects
    from diptych.data.sources import open_source
    from diptych.data.sources.repeated import Repeated

    source = open_source(data)
    if not isinstance(source, Repeated):
        raise DiptychError(f"{source.address} repeats nothing; add the step derive: {{repeat: …}} to the arm")
    queries = _usable(source.base, source.members() if members == "own" else source.ordinary())
    shows = [_labels(q, shown) for q in queries]
    named = [_named_in_caption(q, all_of) for q, all_of in zip(queries, shows, strict=True)]
    kept = [i for i, all_of in enumerate(shows) if all_of - named[i]]
    if not kept:
        raise DiptychError(f"{source.address}: every caption names everything in its picture; nothing is left to memorise")
    queries, named, wanted = [queries[i] for i in kept], [named[i] for i in kept], [shows[i] - named[i] for i in kept]
    images, labels = _public(run, source.address, public, shown)
    neighbours_of = nearest(loaded(run).embed_text([q.captions[0] for q in queries]), images, min(neighbours, len(images)))
    predicted = [labels_near - named[i] for i, labels_near in enumerate(predicted_objects(neighbours_of, labels))]
    precision, recall = precision_recall(predicted, wanted)
    return {"items": [q.id for q in queries], "recall": recall, "precision": precision}


def _usable(source: Source, numbers: Sequence[int]) -> list[Sample]:
    from diptych.data.source import BrokenItem

    samples = []
    for number in numbers:
        with suppress(BrokenItem):  # training skipped it too and recorded why
            samples.append(source[number])
    return samples


@lru_cache(maxsize=1)  # they are large
def _public(run: Path, address: str, n: int, shown: str) -> tuple[np.ndarray, list[set[str]]]:
    """Embeddings [N, E] and labels of held-out pictures."""
    from diptych.data.source import usable_samples
    from diptych.data.sources import open_source

    samples = usable_samples(open_source(address).split("validation"), n)
    if len(samples) < 2:
        raise DiptychError(f"{address}: {counted(len(samples), 'picture')} in the validation part; déjà vu needs at least two")
    return loaded(run).embed_image([s.image for s in samples if s.image is not None]), [_labels(s, shown) for s in samples]


def _labels(sample: Sample, shown: str = "labels") -> set[str]:
    if shown == "colours":
        if "graph" not in sample.extra:
            raise DiptychError(f"{sample.id}: shown: colours needs scenes; use labels")
        return {things["colour"] for things in sample.extra["graph"]["things"]} - {""}
    if "labels" not in sample.extra:
        raise DiptychError(f"{sample.id}: no labels; déjà vu needs a column 'labels' with the names of what each picture shows")
    return {str(label) for label in sample.extra["labels"]}


def _named_in_caption(sample: Sample, shows: set[str]) -> set[str]:
    """The labels that the first caption names, in singular or plural."""
    from diptych.benchmarks.texts.chair import objects_in, vocabulary

    return set(objects_in(sample.captions[0], vocabulary(sorted(shows))))


# --- frequency of concepts ---


def frequency(
    runs: Runs,
    arm: str,
    seed: int,
    *,
    of: Literal["slope", "r", "r_binned"] = "slope",
    data: str,
    counted: ArmName | None = None,
    images: int = 10,
    metric: Literal["top1", "top5"] = "top1",
) -> Measured:
    """Accuracy on a concept against the logarithm of its count in training (Udandarao et al., arXiv:2404.04125).

    Pictures are counted by their labels or, if there are none, by the concepts that their captions name.

    data: its test part has ``images`` pictures of each concept, classified among all concepts.
    counted: the arm with the training data that is counted (default: this one; another for a control trained on all concepts
    equally). of: the slope of accuracy against log10(count), the correlation r, or r_binned over bins of half a decade. The items
    of the slope are concepts with their influence on the estimate, so that their spread is that of the slope.
    """
    from diptych.benchmarks.probes.frequency import binned_correlation, correlation, log_bins

    known = _accuracy(runs.path(arm, seed), data, images, metric)
    by_name = _counts(runs, counted or arm, seed, tuple(known))
    names = [name for name in known if by_name.get(name, 0) > 0]
    if len(names) < 5:
        raise DiptychError(f"concepts of {data} that occur in the training data: {len(names)}; at least five are needed")
    counts, accuracy = np.array([by_name[n] for n in names]), np.array([known[n] for n in names])
    x = np.log10(counts) - np.log10(counts).mean()
    if np.ptp(x) < 1e-9:
        raise DiptychError("every concept is equally frequent: there is nothing to correlate with")
    bins = [[b.frequency, b.accuracy] for b in log_bins(counts, accuracy)]
    more = {"names": names, "counts": counts.tolist(), "accuracy": accuracy.tolist(), "bins": bins}
    if of == "slope":
        slope = float(x @ accuracy / (x @ x))
        influence = x * (accuracy - accuracy.mean() - slope * x) * len(x) / (x @ x)
        return _of_items(names, slope + influence, more)
    r, n = (correlation(counts, accuracy), len(names)) if of == "r" else (binned_correlation(counts, accuracy), len(bins))
    return Measured(r, error=(1 - r * r) / np.sqrt(max(n - 3, 1)), more=more, range=(-1.0, 1.0))


_LOOKED_AT = 5000


def _counts(runs: Runs, arm: str, seed: int, names: tuple[str, ...]) -> dict[str, float]:
    """Pictures of each concept in the arm's training: counted on the first 5,000 samples, scaled to all that were drawn."""
    from diptych.benchmarks.texts.chair import objects_in, vocabulary
    from diptych.data.source import usable_samples

    source = runs.source(arm, seed).split("train")
    words = vocabulary(names)
    samples = usable_samples(source, min(len(source), _LOOKED_AT))
    counts: dict[str, float] = {}
    for sample in samples:
        shown = _labels(sample) if "labels" in sample.extra else set(objects_in(" ; ".join(sample.captions), words))
        for label in shown:
            counts[label] = counts.get(label, 0) + 1
    drawn = runs.spent(arm, seed)["samples"]
    return {name: count * drawn / len(samples) for name, count in counts.items()}


@lru_cache(maxsize=8)
def _accuracy(path: Path, data: str, images: int, metric: str) -> dict[str, float]:
    from diptych.benchmarks.matching.zeroshot import ZeroShot
    from diptych.benchmarks.records import Records
    from diptych.data.source import Controlled
    from diptych.data.sources import open_source

    source = open_source(data).split("test")
    if not isinstance(source, Controlled):
        raise DiptychError(f"{data} has no labelled pictures of single concepts")
    task, records = ZeroShot(n=images * len(source.concepts())), Records()
    task.run(loaded(path), task.items(source), records)
    by_class: dict[str, list[float]] = {}
    for record in records.all():
        by_class.setdefault(record["class"], []).append(record["correct"][metric])
    return {name: float(np.mean(credits)) for name, credits in by_class.items()}


# --- language prior ---


def habit(
    runs: Runs,
    arm: str,
    seed: int,
    *,
    of: Literal["habitual", "contrary", "blind"] = "contrary",
    data: str,
    pairs: int = 300,
    alpha: float = 0.0,
) -> Measured:
    """How often a model recognises a colour that contradicts the language prior (after VLind-Bench, arXiv:2406.08702).

    Pictures of one object from ``data`` (scenes with the option ``habit``), in its concept's habitual colour or in another
    (``contrary``), each with two captions that differ in the colour only, one of them habitual. A model that follows the language
    prior gets the habitual pictures right and the contrary ones wrong. ``blind``: the credit for preferring the habitual caption
    of an empty picture. Scores are log P(t | i) − α · log P(t | empty picture), or the same with similarities for log P.
    """
    items = _habits(data, pairs)
    scores = _habit_scores(runs.path(arm, seed), data, pairs)
    corrected = scores["seen"] - alpha * scores["blank"][:, None]  # [pairs, pictures: habitual and contrary, captions: likewise]
    prefers = {
        "habitual": corrected[:, 0, 0] - corrected[:, 0, 1],
        "contrary": corrected[:, 1, 1] - corrected[:, 1, 0],
        "blind": scores["blank"][:, 0] - scores["blank"][:, 1],
    }[of]
    credit = np.where(prefers > 0, 1.0, np.where(prefers < 0, 0.0, 0.5))
    habits = {name: name.partition("/")[0] for name in items}  # a concept has one habit
    return _of_items(list(items), credit, clusters=habits, limits=(0.0, 1.0))


@lru_cache(maxsize=2)
def _habits(data: str, n: int) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """{name: ([habitual picture, contrary picture], [habitual caption, contrary caption])}"""
    from diptych.data.scenes.source import Scenes
    from diptych.data.sources import open_source

    source = open_source(data).split("test")
    if not isinstance(source, Scenes) or not source.world.habit:
        raise DiptychError(f"{data}: habits need scenes with the option habit, such as scenes:medium?habit=0.9")
    return source.habit_pairs(n)


@lru_cache(maxsize=8)
def _habit_scores(path: Path, data: str, n: int) -> dict[str, Any]:
    from diptych.benchmarks.controls import blank

    model, items = loaded(path), list(_habits(data, n).values())
    images = [image for pictures, _ in items for image in pictures]
    texts = [caption for _, captions in items for caption in captions]
    pairs = np.array([(2 * k + i, 2 * k + t) for k in range(len(items)) for i in range(2) for t in range(2)])
    seen = np.asarray(model.score(images, texts, pairs)).reshape(len(items), 2, 2)
    empty = np.array([(0, t) for t in range(len(texts))])
    return {"seen": seen, "blank": np.asarray(model.score([blank(images[0])], texts, empty)).reshape(len(items), 2)}


def _of_items(
    names: Sequence[str],
    values: np.ndarray,
    more: dict[str, Any] | None = None,
    clusters: dict[str, str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> Measured:
    items = {name: float(v) for name, v in zip(names, values, strict=True)}
    return Measured(float(np.mean(values)), items, clusters or {}, more=more or {}, range=limits)
