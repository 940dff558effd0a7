"""POPE: yes/no questions about objects, as many absent as present ones (Li et al., arXiv:2305.10355). "Yes" is the positive class.

File: POPE's JSON lines with image, text and label. Else built from any labelled data: absent objects at random, the most
frequent ones (popular), or those that most often occur together with the present objects (adversarial). Models that only score
choose between "there is a dog" and "there is no dog". ``auc``: the share of (present, absent) pairs of an image in the right order,
without a threshold; only for models that score.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.answers.questions import CONDITIONS, PREFIX, Question, QuestionTask, answer_records
from diptych.benchmarks.answers.row_images import RowImages
from diptych.benchmarks.answers.yes_no_text import parse_yes_no
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_records, read_rows
from diptych.benchmarks.labels import frequencies, labelled, labels_in
from diptych.benchmarks.pictures import NoPictures, Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits, of_sums
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tables import Row, Table, match, unique
from diptych.core.errors import DiptychError, counted
from diptych.data.scenes.concepts import article
from diptych.data.source import Source

KINDS = ("random", "popular", "adversarial")
YES_NO = ("yes", "no")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")

# --- the formula ---


def published_yes_no(text: str | None) -> bool:
    """The rule of POPE's own script: no if the first sentence has the word No, no or not; everything else is yes."""
    words = (text or "").split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_counts(answers: Sequence[bool | None], labels: Sequence[bool]) -> np.ndarray:
    """Per question: true positive, false positive, false negative, true negative, unparsed yes, unparsed no; int [N, 6].

    Every metric is a function of the column sums. Raises ValueError if the lengths differ.
    """
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers but {len(labels)} labels")
    column = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3, (None, True): 4, (None, False): 5}
    columns = [column[None if a is None else bool(a), bool(label)] for a, label in zip(answers, labels, strict=True)]
    return np.eye(6, dtype=np.int64)[columns].reshape(-1, 6)


def pope_of_counts(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: float [...]} of column sums [..., 6]. An unparsed answer counts as no, and is never right; 0/0 is 0."""
    tp, fp, fn, tn, unparsed_yes, unparsed_no = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    n, positives = tp + fp + fn + tn + unparsed_yes + unparsed_no, tp + fn + unparsed_yes
    return {
        "accuracy": _ratio(tp + tn, n),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, positives),
        "f1": _ratio(2 * tp, tp + fp + positives),
        "yes_ratio": _ratio(tp + fp, n),
    }


def pope_scores(answers: Sequence[bool | None], labels: Sequence[bool]) -> dict[str, float]:
    """Accuracy, precision, recall, F1, predicted yes-ratio and the share of ``unparsed`` answers (None)."""
    sums = pope_counts(answers, labels).sum(0)
    values = {name: float(v) for name, v in pope_of_counts(sums).items()}
    return {**values, "unparsed": float(_ratio(sums[4] + sums[5], sums.sum()))}


def pope_band(answers: Sequence[bool | None], labels: Sequence[bool]) -> dict[str, tuple[float, float]]:
    """{metric: (if every unparsed answer were wrong, if every one were right)}; for the yes-ratio (all no, all yes)."""
    tp, fp, fn, tn, yes, no = pope_counts(answers, labels).sum(0)
    wrong = pope_of_counts(np.array([tp, fp + no, fn + yes, tn, 0, 0]))
    right = pope_of_counts(np.array([tp + yes, fp, fn, tn + no, 0, 0]))
    band = {name: (float(wrong[name]), float(right[name])) for name in METRICS}
    n = max(1, tp + fp + fn + tn + yes + no)
    return {**band, "yes_ratio": (float((tp + fp) / n), float((tp + fp + yes + no) / n))}


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) > 0)
    return ratio


def _metric(name: str, sums: np.ndarray) -> np.ndarray:
    return pope_of_counts(sums)[name]


# --- the task ---


@dataclass(frozen=True)
class Pope(QuestionTask):
    """POPE: is there an object in the image? (Li et al. 2023)."""

    name: str = "pope"
    prompt: str = "{question} Please answer yes or no."
    labels: str = ""  # a COCO instances file, for data that brings captions only
    kinds: tuple[str, ...] = KINDS
    samples: int = 100  # images of the data; frequencies are counted in ``labels``, or in the first 500 images
    each: int = 3  # present and absent objects in an image, at most

    def items(self, source: Source) -> Items:
        """The questions."""
        if self.file:
            return Items(self.read(Pictures(self.images, self.file)))
        known = labelled(source, 0, self.labels)
        built = self.build([(s.id, s.image, names) for s, names in known], labels_in(self.labels) if self.labels else None)
        return Items(built[: self.n] if self.n else built, known.problems)

    def read(self, pictures: Pictures) -> list[Question]:
        """The questions of POPE's file. Raises DiptychError for a question that occurs twice."""
        rows = read_records(self.file)
        images = RowImages(rows, pictures, needed=not isinstance(pictures, NoPictures))
        questions = [self._question(row, images, i) for i, row in enumerate(rows[: self.n or None])]
        unique((q.id for q in questions), self.file, "question")
        return questions

    def _question(self, row: Row, images: RowImages, number: int) -> Question:
        label = row.text("label", "answer", "class").lower()  # class: of FG-BMK, with the question as ``prompt``
        if label not in YES_NO:
            raise DiptychError(f"{row.where}: 'label' must be yes or no, got '{label}'")
        text = row.text("prompt") if row.get("class") is not None and row.get("prompt") else row.text("text", "question")
        thing = text.partition("there ")[2].partition(" in the ")[0]
        statements = _statements(thing.removeprefix("an ").removeprefix("a ")) if thing else ()
        name = f"{row.get('question_id', row.get('index', number))}"
        image, cluster = images.of(row, "image_id", "image_path")
        return Question(name, cluster, image, text, (label,), YES_NO, statements, row.slices())

    def build(self, images: list[tuple[str, Any, list[str]]], everything: list[list[str]] | None = None) -> list[Question]:
        """(id, image, objects) of each image → questions, balanced in every image.

        everything: the objects of all images in which frequency is counted; None: only these images.
        """
        alone, together = frequencies(everything or [names for _, _, names in images])
        images = images[: self.samples]
        vocabulary = sorted(alone)
        if len(vocabulary) < 2:
            raise NotApplicable("POPE needs at least two kinds of objects in the data")
        unknown = set(self.kinds) - set(KINDS)
        if unknown:
            raise NotApplicable(f"kinds={unknown.pop()}: valid are {', '.join(KINDS)}")
        questions: list[Question] = []
        for name, image, names in images:
            rng = random.Random(f"{self.seed} {name}")
            absent = [o for o in vocabulary if o not in names]
            present = rng.sample(sorted(names), min(self.each, len(names), len(absent)))
            together_with = {o: sum(together[s][o] for s in names if s in together) for o in absent}
            for kind in self.kinds:
                if kind == "random":
                    chosen = rng.sample(absent, len(present))
                else:  # ties are broken at random, not by the alphabet
                    toss = {o: rng.random() for o in absent}
                    weight = alone if kind == "popular" else together_with
                    chosen = sorted(absent, key=lambda o: (-weight[o], toss[o]))[: len(present)]
                for answer, objects in (("yes", present), ("no", chosen)):
                    for o in objects:
                        text, slices = f"Is there {article(o)} in the image?", {"absent": kind}
                        questions.append(
                            Question(f"{name}/{kind}/{o}", name, image, text, (answer,), YES_NO, _statements(o), slices)
                        )
        return questions

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a model's text; None if there is none."""
        answer = parse_yes_no(text)
        return None if answer is None else YES_NO[not answer]

    def more_results(self, records: list[Record]) -> list[Result]:
        """Precision, recall, F1 and yes-ratio, and the AUC of scores."""
        clusters = [r["cluster"] for r in records]
        conditions = [condition for condition in CONDITIONS if all(condition in r for r in records)]
        counts = {condition: np.stack([self._counts(r, condition) for r in records]) for condition in conditions}
        labels = [r["answers"][0] == "yes" for r in records]
        yes, no = (pope_counts([answer] * len(labels), labels) for answer in (True, False))
        coin, always = pope_of_counts((yes + no).sum(0) / 2), pope_of_counts(yes.sum(0))
        answers = [None if r["unparsed"] else r["parsed"] == "yes" for r in records]
        unparsed = sum(a is None for a in answers)
        bands = pope_band(answers, labels) if unparsed else {}
        results = []
        for metric in METRICS[1:]:
            controls = {condition: float(pope_of_counts(counts[condition].sum(0))[metric]) for condition in conditions[1:]}
            fields: dict[str, Any] = {
                "chance": float(coin[metric]),
                "controls": {**controls, "always_yes": float(always[metric])},
                "higher_is_better": metric != "yes_ratio",
                "band": bands.get(metric),
                "unparsed": unparsed,
                "ties": sum(r["ties"]["accuracy"] for r in records),
                "nans": sum(r.get("nans", 0) for r in records),
                "by": records[0].get("by", ""),
            }
            results.append(of_sums(self.name, metric, counts["correct"], partial(_metric, metric), clusters, **fields))
        return [*results, *self._auc(records)]

    def _counts(self, record: Record, condition: str) -> np.ndarray:
        """A row of ``pope_counts``; a tie is half a yes and half a no."""
        answers: list[str | None] = [*self.parsed(record, condition)] or [None]
        right = record["answers"][0] == "yes"
        counts: np.ndarray = np.mean([pope_counts([None if a is None else a == "yes"], [right])[0] for a in answers], axis=0)
        return counts

    def _auc(self, records: list[Record]) -> list[Result]:
        if not records or any("scores" not in r for r in records):
            return []
        conditions = [condition for condition in CONDITIONS if all(f"{PREFIX[condition]}scores" in r for r in records)]
        values = {condition: _pairs_in_order(records, condition) for condition in conditions}
        own = values["correct"]
        controls = {condition: mean(list(values[condition].values())) for condition in conditions[1:]}
        fields: dict[str, Any] = {"chance": 0.5, "controls": controls, "by": records[0]["by"]}
        return [of_credits(self.name, "auc", list(own.values()), [cluster for cluster, _ in own], **fields)]


def _statements(thing: str) -> tuple[str, str]:
    return f"there is {article(thing)}", f"there is no {thing}"


def _pairs_in_order(records: list[Record], condition: str) -> dict[tuple[str, str], float]:
    """{(image, kind): share of its (present, absent) pairs in the right order}; ties count half."""
    margins: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        scores = [np.nan if s is None else s for s in r[f"{PREFIX[condition]}scores"]]
        yes = r["options"].index("yes")
        key = (r["cluster"], (r.get("slices") or {}).get("absent", ""))
        margins.setdefault(key, {"yes": [], "no": []})[r["answers"][0]].append(scores[yes] - scores[1 - yes])
    shares = {}
    for key, sides in margins.items():
        pairs = [np.sign(a - b) / 2 + 0.5 if np.isfinite(a - b) else 0.0 for a in sides["yes"] for b in sides["no"]]
        if pairs:
            shares[key] = mean(pairs)
    return shares


# --- answers in a file: diptych metrics pope ---


def score_files(questions: Path, answers: Path) -> list[Result]:
    """POPE's metrics. Control ``published``: by the rule of POPE's own script: every answer that is not no is yes."""
    task = Pope(file=str(questions))
    read = task.read(NoPictures())
    given = _answers(read_rows(answers), read, questions)
    records = answer_records(task, read, given)
    labels = [r["answers"][0] == "yes" for r in records]
    published = pope_scores([published_yes_no(r["answer"]) for r in records], labels)
    return [replace(r, controls={**r.controls, "published": published[r.metric]}) for r in task.accuracy_results(records)]


def _answers(table: Table, questions: Sequence[Question], path: Path) -> dict[str, str | None]:
    """{question: answer}: joined by question_id or, where the answers have none, line by line."""
    # VLMEvalKit's files hold the right answer as ``answer`` and the model's as ``prediction``.
    texts = table.column("prediction" if table.has("prediction") else "answer", "answer", aliases=("text",))
    name = next((name for name in ("question_id", "index") if table.has(name)), "")
    if name:
        given = dict(zip(table.unique(name), texts, strict=True))
        match(list(given), [q.id for q in questions], table, path)
        return given
    if len(table) != len(questions):
        raise DiptychError(
            f"{table.path}: {counted(len(table), 'answer')} without question_id for the {len(questions)} questions of {path}"
        )
    for i, (q, repeated) in enumerate(zip(questions, table.column("question", "text"), strict=True)):
        if q.text != repeated.strip():
            rule = "answers without question_id must be in the order of the questions"
            raise DiptychError(f"{table.where(i)}: {rule}, but '{repeated}' is not '{q.text}'")
    return dict(zip([q.id for q in questions], texts, strict=True))
