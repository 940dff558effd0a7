"""Naming the concept of an image of one object among all names (protocol: Radford et al., arXiv:2103.00020).

A model that embeds gets the normalised mean of several templates, another one template through its scores. In place of templates, sentences that describe
each class, such as a language model writes (CuPL, Pratt et al., arXiv:2209.03320): ``descriptions``, a JSON file {class: [sentence, …]}.
Shuffled: an image answers with the scores of an image of another concept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.ranking import recall_at, standing, undecided
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean
from diptych.benchmarks.tasks.base import CONTROLS, Items, NotApplicable, Progress, not_finite, share, shares
from diptych.benchmarks.tasks.labels import labelled
from diptych.benchmarks.tasks.published import Pictures, content, pixels, rows
from diptych.core.capabilities import Image, Model
from diptych.core.errors import DiptychError, nearest
from diptych.data.source import Controlled, Problem, Source

TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "an image of a {}", "this is a {}")


@dataclass(frozen=True)
class ZeroShot:
    name: str = "zeroshot"
    needs: tuple[str, ...] = ("score",)
    n: int = 200  # images, of a longer file spread evenly over it; 0: all
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 0
    file: str = ""  # rows with image and label
    images: str = ""  # the directory of its pictures
    descriptions: str = ""  # {class: [sentence, …]} as JSON
    both: bool = False  # descriptions and templates together

    def items(self, source: Source) -> Items:
        """(image, label, names of all classes) of each."""
        if self.file:
            return self._of_file()
        if not isinstance(source, Controlled):
            return self._of_labels(source)
        names = source.concepts()
        items = Items((image, label, names) for image, label in source.concept_samples(self.n))
        if len(items) < 2 or len(names) < 2:
            raise NotApplicable(f"needs two images and two concepts, the source has {len(items)} and {len(names)}")
        return items

    def _of_file(self) -> Items:
        pictures = Pictures(self.images, self.file)
        found = [
            (pictures.path(row.text("image", "file_name", "filename", "path"), row.where), row.text("label", "class"))
            for row in rows(self.file)
        ]
        names = sorted({label for _, label in found})  # of the whole file, whatever part of it is judged
        return self._named([(pixels(path, path), label) for path, label in _spread(found, self.n)], names, [])

    def _of_labels(self, source: Source) -> Items:
        """Images that show one thing only."""
        found = labelled(source, 5 * self.n)
        single = [(sample.image, names[0]) for sample, names in found if len(names) == 1 and sample.image is not None]
        if len(single) < 2:
            raise NotApplicable("the source has no images of one labelled thing each; give ?file= with image and label")
        names = sorted({label for _, label in single})
        return self._named(_spread(single, self.n), names, found.problems)

    def _named(self, found: list[tuple[Image, str]], names: list[str], problems: list[Problem]) -> Items:
        if len(names) < 2:
            raise NotApplicable(f"needs two classes, found {', '.join(names) or 'none'}")
        return Items([(image, names.index(label), names) for image, label in found], problems)

    def run(
        self, model: Model, items: list[tuple[Image, int, list[str]]], records: Records, progress: Progress | None = None
    ) -> None:
        ids = [f"concept-{i:05d}" for i in range(len(items))]
        if all(item in records for item in ids):
            return
        names, labels = items[0][2], np.array([label for _, label, _ in items])
        images = [image for image, _, _ in items]
        scores = self.scores(model, [*images, blank(images[0])], names)  # [N + 1, C]
        positive = labels[:, None] == np.arange(len(names))
        shuffle = derangement(len(items), labels, self.seed)
        matrices = {
            "correct": scores[:-1],
            "blind": np.broadcast_to(scores[-1], positive.shape),
            "chance": np.zeros(positive.shape),
            **({} if shuffle is None else {"shuffled": scores[:-1][shuffle]}),
        }
        ks = (1, 5) if len(names) >= 6 else (1,)
        found = {name: {k: recall_at(k, *standing(m, positive)) for k in ks} for name, m in matrices.items()}
        ties = {k: undecided(k, *standing(scores[:-1], positive)) for k in ks}
        records.add(
            {
                "item": item,
                "cluster": item,
                "class": names[labels[i]],
                "scores": scores[i],
                **{name: {f"top{k}": float(credit[i]) for k, credit in by_k.items()} for name, by_k in found.items()},
                "ties": {f"top{k}": int(ties[k][i]) for k in ks},
                "nans": not_finite(scores[i]),
            }
            for i, item in enumerate(ids)
        )

    def scores(self, model: Model, images: list[Image], names: list[str]) -> np.ndarray:
        """float [N, C]"""
        texts = self.texts(names)
        ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
        every = [text for of_class in texts for text in of_class]
        if not {"embed_image", "embed_text"} <= model.capabilities:
            if not self.descriptions:
                return np.asarray(model.score(images, [of_class[0] for of_class in texts]))
            scores = np.split(np.asarray(model.score(images, every)), ends, axis=1)
            return np.stack([of_class.mean(1) for of_class in scores], 1)
        classes = [of_class.mean(0) for of_class in np.split(_unit(model.embed_text(every)), ends)]
        return model.embed_image(images) @ _unit(np.stack(classes)).T

    def texts(self, names: list[str]) -> list[list[str]]:
        """What is said of each class: names in templates, descriptions from the file, or both."""
        templates = [[prompt(template, name) for template in self.templates] for name in names]
        if not self.descriptions:
            return templates
        described = content(self.descriptions)
        if not isinstance(described, dict):
            raise DiptychError(
                f"{self.descriptions}: expected an object {{class: [sentence, …]}}, found {type(described).__name__}"
            )
        for name in names:
            said = described.get(name)
            if said is None:
                raise DiptychError(f"{self.descriptions}: no descriptions of the class '{name}'{nearest(name, described)}")
            if not isinstance(said, list) or not said or not all(isinstance(text, str) for text in said):
                raise DiptychError(f"{self.descriptions}: class '{name}': expected a list of one or more sentences")
        return [[*described[name], *(more if self.both else ())] for name, more in zip(names, templates, strict=True)]

    def summarise(self, records: list[Record]) -> list[Result]:
        return [*shares(self.name, records), self.per_class(records)]

    def per_class(self, records: list[Record]) -> Result:
        """The mean of the classes' recalls: a rare class counts as much as a common one."""
        _, classes = np.unique([r["class"] for r in records], return_inverse=True)

        def recall(of: str) -> float:
            values = [[r[of]["top1"] for r, c in zip(records, classes, strict=True) if c == k] for k in range(classes.max() + 1)]
            return mean([mean(v) for v in values])

        credit = np.array([r["correct"]["top1"] for r in records])

        def resampled(index: np.ndarray) -> float:
            sizes = np.bincount(classes[index])
            return float((np.bincount(classes[index], credit[index])[sizes > 0] / sizes[sizes > 0]).mean())

        top1 = share(self.name, "top1", records)
        interval = function_interval(resampled, [r["cluster"] for r in records], share=True)
        return Result(
            task=self.name,
            metric="per_class_recall",
            value=recall("correct"),
            low=interval.low,
            high=interval.high,
            n=len(records),
            clusters=top1.clusters,
            chance=recall("chance"),
            controls={c: recall(c) for c in CONTROLS if c in top1.controls},
            ties=top1.ties,
            nans=top1.nans,
        )


def prompt(template: str, name: str) -> str:
    """``template`` with the name in it, and the article that goes with the name."""
    if name[:1].lower() in "aeiou" and name[:3].lower() not in ("uni", "use", "eur", "one"):
        template = template.replace("a {}", "an {}")
    return template.format(name)


def _spread(found: list[Any], n: int) -> list[Any]:
    """n of a list at even distances: its order may be by class."""
    return [found[i * len(found) // n] for i in range(n)] if 0 < n < len(found) else found


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(norm, 1e-12)
