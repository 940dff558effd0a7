"""Déjà vu memorisation (Jayaraman et al., arXiv:2402.02103): what a model knows of training images that their captions do not say.

The embedding of a caption finds its k nearest images in a public set disjoint from the training data; the objects predicted are
those of these images. A model that did not see the sample, the reference, shows what the caption alone reveals.

``memorization``: the data is what the target was trained on (``--split train``), with labels; ``public`` is a disjoint set with
labels (default: the data's validation part); ``reference`` the address of a model that saw neither. ``recall``, ``precision``:
the target's, with the reference's as control; ``recall_gap`` and ``precision_gap`` (PRG, PPG): share of samples where the target
knows more, minus the share where it knows less; ``area``: between the two recall curves. Without a reference only the first two,
which show nothing by themselves. ``diptych metrics memorization``: the same from embeddings in files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item
from diptych.benchmarks.controls import derangement
from diptych.benchmarks.inputs import read_json
from diptych.benchmarks.labels import labelled
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import of_credits
from diptych.benchmarks.statistics import mean, sign_flip_p
from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample
from diptych.data.source import Source

# --- the formulas ---


def nearest(captions: np.ndarray, public: np.ndarray, k: int, block: int = 1024) -> np.ndarray:
    """Indices [N, k] of the k public images with the highest cosine, from embeddings [N, E] and [M, E]; a tie goes to the lower
    index."""
    if not 1 <= k <= len(public):
        raise ValueError(f"k = {k} nearest of {len(public)} public images")
    public, indices = unit_rows(public, np.float32), []
    for start in range(0, len(captions), block):
        similarity = unit_rows(captions[start : start + block], np.float32) @ public.T
        indices.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(indices) if indices else np.zeros((0, k), dtype=np.int64)


def predicted_objects(neighbours: np.ndarray, public_objects: Sequence[Collection[str]]) -> list[set[str]]:
    """The union of the objects of each sample's neighbours."""
    return [set().union(*(public_objects[j] for j in row)) for row in neighbours]


def precision_recall(predicted: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of each sample, float [N] each; 0 where nothing is predicted. Raises ValueError for a sample without
    objects."""
    precision, recall = [], []
    for i, (objects, present) in enumerate(zip(predicted, true, strict=True)):
        if not present:
            raise ValueError(f"sample {i} has no objects to be recovered")
        hits = len(set(objects) & set(present))
        precision.append(hits / len(set(objects)) if objects else 0.0)
        recall.append(hits / len(set(present)))
    return np.array(precision), np.array(recall)


def population_gap(target: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """sign(target − reference) of each sample, float [N]. Its mean is PPG for precisions and PRG for recalls:
    the share of samples where the target does better minus the share where the reference does."""
    gap: np.ndarray = np.sign(np.round(np.asarray(target) - np.asarray(reference), 12)) + 0.0
    return gap


def recall_curve(recall: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of samples with at least each recall; float [T]."""
    curve: np.ndarray = (np.asarray(recall)[None, :] >= np.asarray(thresholds)[:, None] - 1e-12).mean(1)
    return curve


Values = dict[str, np.ndarray]  # {"precision": float [N], "recall": float [N]}


def _values(predicted: Sequence[Collection[str]], true: Sequence[Collection[str]]) -> Values:
    return dict(zip(("precision", "recall"), precision_recall(predicted, true), strict=True))


def memorization_results(task: str, clusters: Sequence[Any], target: Values, controls: dict[str, Values]) -> list[Result]:
    """precision and recall with ``controls``; if one of these is the reference, also the gaps and the area. Lower is better."""
    fields: dict[str, Any] = {"higher_is_better": False}
    results = [
        of_credits(task, metric, values, clusters, controls={name: mean(of[metric]) for name, of in controls.items()}, **fields)
        for metric, values in target.items()
    ]
    if "reference" not in controls:
        return results
    fields |= {"chance": 0.0, "bounded": False}
    for metric, values in target.items():
        gap = population_gap(values, controls["reference"][metric])
        results.append(of_credits(task, f"{metric}_gap", gap, clusters, ties=int((gap == 0).sum()), **fields))
    return [*results, of_credits(task, "area", target["recall"] - controls["reference"]["recall"], clusters, **fields)]


# --- the task ---


@dataclass(frozen=True)
class Memorization:
    """What a model kept of samples that it was trained on."""

    name: str = "memorization"
    needs: tuple[str, ...] = ("embed_image", "embed_text")
    n: int = 200
    k: int = 10
    public: str = ""  # the address of the public set
    publics: int = 1000  # the number of its images
    reference: str = ""  # the address of the reference model
    labels: str = ""  # a COCO instances file, for data that brings captions only
    seed: int = 0

    def items(self, source: Source) -> Items:
        """(sample, its objects, public images with theirs) of each; the public ones are the same list for all."""
        from diptych.data.sources import open_source

        own = labelled(source, self.n, self.labels)
        public = labelled(open_source(self.public) if self.public else source.split("validation"), self.publics, self.labels)
        ids = {sample.id for sample, _ in own}
        rest = [(s, names) for s, names in public if s.id not in ids]
        if len(rest) < self.k:
            raise NotApplicable(
                f"the public set has {counted(len(rest), 'labelled image')} that the data has not; k={self.k} need more"
            )
        return Items([(sample, names, rest) for sample, names in own if sample.captions], own.problems)

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """One record per sample with the objects that the model predicts for its caption from the nearest public images, and with
        those of the reference model, if one is given.
        """
        todo = [item for item in items if item[0].id not in records]
        if not todo:
            return
        public = items[0][2]
        samples = [sample for sample, _, _ in todo]
        predicted = {"": self._predicted(model, samples, public)}
        if self.reference:
            from diptych.inference.load import load

            if progress:
                progress(f"{self.name}: {self.reference}")
            predicted["reference_"] = self._predicted(load(self.reference), samples, public)
        records.add(
            {
                "item": sample.id,
                "cluster": sample.id,
                "caption": sample.captions[0],
                "labels": names,
                **{f"{who}predicted": sorted(of[i]) for who, of in predicted.items()},
            }
            for i, (sample, names, _) in enumerate(todo)
        )

    def _predicted(self, model: Model, samples: list[Sample], public: list[tuple[Sample, list[str]]]) -> list[set[str]]:
        captions = model.embed_text([sample.captions[0] for sample in samples])
        images = model.embed_image([sample.image for sample, _ in public if sample.image is not None])
        return predicted_objects(nearest(captions, images, self.k), [names for _, names in public])

    def summarise(self, records: list[Record]) -> list[Result]:
        """Precision and recall of the predicted objects; with a reference also the gaps to it and the area. Lower is better."""
        records = by_item(records)
        true, predicted = [r["labels"] for r in records], [r["predicted"] for r in records]
        controls: dict[str, Values] = {}
        if all("reference_predicted" in r for r in records):
            controls["reference"] = _values([r["reference_predicted"] for r in records], true)
        order = derangement(len(records), seed=self.seed)
        if order is not None:
            controls["shuffled"] = _values(predicted, [true[i] for i in order])
        return memorization_results(self.name, [r["cluster"] for r in records], _values(predicted, true), controls)


# --- embeddings in files: diptych metrics memorization ---

NAMES = {
    "precision_gap": "population precision gap", "precision": "precision, target", "recall_gap": "population recall gap",
    "recall": "recall, target", "area": "area between recall curves",
}  # fmt: skip


def score_files(target: Path, reference: Path, objects: Path, k: int = 10) -> list[Result]:
    """The results of two models. ``target``, ``reference``: .npz with ``text`` [N, E] (captions of training samples of the
    target) and ``public`` [M, E] (images of a public set), embedded by each model; ``objects``: JSON with ``samples`` and
    ``public``, lists of labels."""
    labels = _labels(objects)
    values = {}
    for name, path in (("target", target), ("reference", reference)):
        text, public = _embeddings(path)
        for key, array, of in (("text", text, "samples"), ("public", public, "public")):
            if len(array) != len(labels[of]):
                raise DiptychError(
                    f"{path}: '{key}' has {counted(len(array), 'row')}, but {objects} has {len(labels[of])} under '{of}'"
                )
        try:
            values[name] = _values(predicted_objects(nearest(text, public, k), labels["public"]), labels["samples"])
        except ValueError as error:
            raise DiptychError(f"{objects}: {error}") from None
    samples = range(len(labels["samples"]))
    results = {
        r.metric: r for r in memorization_results("memorization", samples, values["target"], {"reference": values["reference"]})
    }
    p = sign_flip_p(population_gap(values["target"]["recall"], values["reference"]["recall"]))
    results["area"] = replace(results["area"], controls={"p of no recall gap": p})
    return [replace(results[metric], metric=name) for metric, name in NAMES.items()]


def _labels(path: Path) -> dict[str, list[list[str]]]:
    document = read_json(path)
    if not isinstance(document, dict) or not {"samples", "public"} <= set(document):
        raise DiptychError(f"{path}: expected an object with 'samples' and 'public', each a list of lists of labels")
    for name in ("samples", "public"):
        rows = document[name]
        if not isinstance(rows, list) or not all(isinstance(r, list) and all(isinstance(o, str) for o in r) for r in rows):
            raise DiptychError(f"{path}: '{name}' must be a list of lists of labels")
    return document


def _embeddings(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise DiptychError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[name] if name in file.files else None for name in ("text", "public")]
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise DiptychError(f"{path}: not an .npz of numbers ({error})") from None
    for name, array in zip(("text", "public"), arrays, strict=True):
        if array is None or array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
            raise DiptychError(
                f"{path}: expected '{name}', numbers in 2 dimensions, got {'nothing' if array is None else array.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            raise DiptychError(f"{path}: '{name}', row {bad[0]} is not finite")
    text, public = arrays
    assert text is not None and public is not None
    if text.shape[1] != public.shape[1]:
        raise DiptychError(f"{path}: 'text' has width {text.shape[1]} but 'public' {public.shape[1]}")
    return text, public
