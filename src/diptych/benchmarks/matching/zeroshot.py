"""Zero-shot classification: naming the class of an image among all names (protocol: Radford et al., arXiv:2103.00020).

For a model that embeds, a class is the normalised mean of several templates; another model scores one template. Instead of
templates, a class may have sentences that describe it, such as a language model writes (CuPL, Pratt et al., arXiv:2209.03320):
``descriptions``, a JSON file {class: [sentence, …]}. Shuffled: an image with the scores of an image of another class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.base import Items, NotApplicable, Progress, count_not_finite, readable
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.inputs import read_json, read_npy, read_records
from diptych.benchmarks.labels import labelled
from diptych.benchmarks.metrics.ranking import recall_at, shared_credits, standing
from diptych.benchmarks.pictures import Pictures, load_image
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import CONTROLS, class_sums, macro, mean_of_classes, of_credits, share, shares
from diptych.core.arrays import unit_rows
from diptych.core.capabilities import Classifying, Image, Model
from diptych.core.errors import DiptychError, counted, nearest
from diptych.core.sample import class_text, in_template
from diptych.data.source import Controlled, Problem, Source

TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "an image of a {}", "this is a {}")
prompt = in_template
FEWEST_FOR_TOP5 = 6  # of five classes, all are in the top five


def topk_credits(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """{"top1": float [N], "top5": …} from scores [N, C] and labels int [N]; ties are shared, no top-5 below six classes."""
    scores = np.asarray(scores)
    at = standing(scores, np.asarray(labels)[:, None] == np.arange(scores.shape[1]))
    return {f"top{k}": recall_at(k, *at) for k in (1, 5) if k == 1 or scores.shape[1] >= FEWEST_FOR_TOP5}


def commonest(classes: Sequence[Any] | np.ndarray) -> float:
    """The top-1 accuracy of always naming the most common class."""
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot naming from class names or descriptions."""

    name: str = "zeroshot"
    needs: tuple[str, ...] = ("score",)
    n: int = 200  # images, spread evenly over a longer file; 0: all
    templates: tuple[str, ...] = TEMPLATES
    seed: int = 0
    file: str = ""  # rows with image and label
    images: str = ""  # the directory of its images
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
        rows = [
            (pictures.path(row.text("image", "file_name", "filename", "path"), row.where), row.text("label", "class"))
            for row in read_records(self.file)
        ]
        names = sorted({label for _, label in rows})  # of the whole file, also if a part of it is used
        return self._items([(load_image(path, path), label) for path, label in _spread(rows, self.n)], names, [])

    def _of_labels(self, source: Source) -> Items:
        """Images with a class, or images with one label only."""
        if classes := getattr(source, "classes", None):
            problems: list[Problem] = []
            samples = readable(source, problems, _spread(range(len(source)), self.n))
            of_class = [
                (s.image, class_text(s.fields["label"].name)) for s in samples if "label" in s.fields and s.image is not None
            ]
            return self._items(of_class, [class_text(name) for name in classes], problems)
        known = labelled(source, 5 * self.n)
        single = [(sample.image, names[0]) for sample, names in known if len(names) == 1 and sample.image is not None]
        if len(single) < 2:
            raise NotApplicable(
                "the source has no images of one labelled thing each; read class folders by classes:FOLDER, "
                "or give ?file= with image and label"
            )
        names = sorted({label for _, label in single})
        return self._items(_spread(single, self.n), names, known.problems)

    def _items(self, images: Sequence[tuple[Image, str]], names: list[str], problems: list[Problem]) -> Items:
        if len(names) < 2:
            raise NotApplicable(f"needs two classes, found {', '.join(names) or 'none'}")
        return Items([(image, names.index(label), names) for image, label in images], problems)

    def run(
        self, model: Model, items: list[tuple[Image, int, list[str]]], records: Records, progress: Progress | None = None
    ) -> None:
        """One record per image with its scores for all classes. The controls are the scores of a grey image (blind), the scores of
        an image of another class (shuffled) and equal scores (chance).
        """
        ids = [f"concept-{i:05d}" for i in range(len(items))]
        if all(item in records for item in ids):
            return
        names, labels = items[0][2], np.array([label for _, label, _ in items])
        images = [image for image, _, _ in items]
        scores = self.scores(model, [*images, blank(images[0])], names)  # [N + 1, C]
        own, shape = scores[:-1], (len(items), len(names))
        shuffle = derangement(len(items), labels, self.seed)
        matrices = {
            "correct": own,
            "blind": np.broadcast_to(scores[-1], shape),
            "chance": np.zeros(shape),
            **({} if shuffle is None else {"shuffled": own[shuffle]}),
        }
        credits = {name: topk_credits(m, labels) for name, m in matrices.items()}
        records.add(
            {
                "item": item,
                "cluster": item,
                "class": names[labels[i]],
                "scores": own[i],
                **{name: {k: float(credit[i]) for k, credit in by_k.items()} for name, by_k in credits.items()},
                "ties": {k: int(shared_credits(credit[i])) for k, credit in credits["correct"].items()},
                "nans": count_not_finite(own[i]),
            }
            for i, item in enumerate(ids)
        )

    def scores(self, model: Model, images: list[Image], names: list[str]) -> np.ndarray:
        """float [N, C]. A model that learned these very classes names them; another is given their texts."""
        if "classify" in model.capabilities and isinstance(model, Classifying):
            known = [class_text(name) for name in model.classes]
            if set(names) <= set(known):
                return np.asarray(model.classify(images))[:, [known.index(name) for name in names]]
        texts = self.texts(names)
        ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
        flat = [text for of_class in texts for text in of_class]
        if not {"embed_image", "embed_text"} <= model.capabilities:
            if not self.descriptions:
                return np.asarray(model.score(images, [of_class[0] for of_class in texts]))
            scores = np.split(np.asarray(model.score(images, flat)), ends, axis=1)
            return np.stack([of_class.mean(1) for of_class in scores], 1)
        classes = [of_class.mean(0) for of_class in np.split(unit_rows(model.embed_text(flat)), ends)]
        cosines: np.ndarray = model.embed_image(images) @ unit_rows(np.stack(classes)).T
        return cosines

    def texts(self, names: list[str]) -> list[list[str]]:
        """The texts of each class: names in templates, descriptions from the file, or both."""
        templates = [[prompt(template, name) for template in self.templates] for name in names]
        if not self.descriptions:
            return templates
        described = read_json(self.descriptions)
        if not isinstance(described, dict):
            raise DiptychError(
                f"{self.descriptions}: expected an object {{class: [sentence, …]}}, found {type(described).__name__}"
            )
        for name in names:
            sentences = described.get(name)
            if sentences is None:
                raise DiptychError(f"{self.descriptions}: no descriptions of the class '{name}'{nearest(name, described)}")
            if not isinstance(sentences, list) or not sentences or not all(isinstance(text, str) for text in sentences):
                raise DiptychError(f"{self.descriptions}: class '{name}': expected a list of one or more sentences")
        return [[*described[name], *(more if self.both else ())] for name, more in zip(names, templates, strict=True)]

    def summarise(self, records: list[Record]) -> list[Result]:
        """Top-1 and, with six classes or more, top-5 accuracy over images, and the mean per-class recall."""
        return [*shares(self.name, records), self._per_class(records)]

    def _per_class(self, records: list[Record]) -> Result:
        """The mean of the classes' recalls: a rare class counts as much as a common one."""
        classes = [r["class"] for r in records]
        which = np.unique(classes, return_inverse=True)[1].ravel()

        def recall(condition: str) -> float:
            """The mean over classes of one control's top-1 accuracy."""
            return float(mean_of_classes(class_sums(np.array([r[condition]["top1"] for r in records]), which).sum(0)))

        top1 = share(self.name, "top1", records)
        credits = np.array([r["correct"]["top1"] for r in records])
        controls = {c: recall(c) for c in CONTROLS if c in top1.controls}
        fields: dict[str, Any] = {"chance": recall("chance"), "controls": controls, "ties": top1.ties, "nans": top1.nans}
        return macro(self.name, "per_class_recall", credits, classes, [r["cluster"] for r in records], **fields)


def _spread(values: Sequence[Any], n: int) -> Sequence[Any]:
    """n values at even distances, since they may be ordered by class; 0: all."""
    return [values[i * len(values) // n] for i in range(n)] if 0 < n < len(values) else values


# --- scores in a file: diptych metrics zeroshot ---


def score_file(scores: Path, labels: Path, classes: Path | None = None, images: Path | None = None) -> list[Result]:
    """Top-1, top-5 and mean per-class recall of scores [N, C]. ``labels``: a JSON list of class numbers, or of names with
    ``classes``."""
    matrix = read_npy(scores, 2)
    which = _labels(labels, scores, matrix, classes)
    clusters = _names(images, unique=False) if images else [str(i) for i in range(len(which))]
    if len(clusters) != len(which):
        raise DiptychError(f"{images}: {counted(len(clusters), 'image')} for {counted(len(which), 'label')}")
    credits = topk_credits(matrix, which)
    nans = sum(count_not_finite(matrix[i : i + 4096]) for i in range(0, len(matrix), 4096))
    results: list[Result] = []
    for name, credit in credits.items():
        k = int(name[3:])
        controls = {"constant": commonest(which)} if k == 1 else {}
        fields = {"chance": k / matrix.shape[1], "ties": int(shared_credits(credit).sum()), "nans": nans, "controls": controls}
        results.append(of_credits("zeroshot", name, credit, clusters, **fields))
    chance = 1 / matrix.shape[1]
    return [
        *results,
        macro("zeroshot", "per_class_recall", credits["top1"], which, clusters, chance=chance, ties=results[0].ties, nans=nans),
    ]


def _labels(path: Path, scores: Path, matrix: np.ndarray, classes: Path | None) -> np.ndarray:
    """The column of each row's class, int [N]."""
    given, names = read_json(path), _names(classes) if classes else None
    if not isinstance(given, list) or len(given) != len(matrix):
        got = counted(len(given), "label") if isinstance(given, list) else type(given).__name__
        raise DiptychError(f"{path}: expected a list of {counted(len(matrix), 'label')}, one per row of {scores}, got {got}")
    if names is not None and len(names) != matrix.shape[1]:
        raise DiptychError(
            f"{classes}: {counted(len(names), 'class', 'classes')} for the {counted(matrix.shape[1], 'column')} of {scores}"
        )
    which = []
    for i, label in enumerate(given):
        if isinstance(label, str) and names is not None and label in names:
            label = names.index(label)
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < matrix.shape[1]:
            remedy = "" if names is not None or not isinstance(label, str) else "; names of classes need --classes"
            raise DiptychError(f"{path}, [{i}]: {label!r:.60} is not one of the {matrix.shape[1]} classes{remedy}")
        which.append(label)
    return np.array(which)


def _names(path: Path, unique: bool = True) -> list[str]:
    given = read_json(path)
    if not isinstance(given, list) or not all(isinstance(n, str | int) for n in given):
        raise DiptychError(f"{path}: expected a list of names")
    names = [str(n) for n in given]
    if unique and len(set(names)) != len(names):
        raise DiptychError(f"{path}: '{next(n for n in names if names.count(n) > 1)}' twice")
    return names
