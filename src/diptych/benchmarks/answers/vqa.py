"""Open questions: VQAv2 (Antol et al., arXiv:1505.00468; Goyal et al., arXiv:1612.00837), GQA (Hudson & Manning,
arXiv:1902.09506), scenes.

Files: VQAv2's questions with ``annotations``; GQA's; TextVQA's (Singh et al., arXiv:1904.08920) and DocVQA's; or rows (.json,
.jsonl, .csv, .tsv, .parquet) with image, question and answer or answers. With four or more human answers an answer earns the VQA
accuracy, else 1 if it is the same after the evaluator's normalisation. ``accuracy_normalised`` normalises everywhere; the official
script does not where all people agree. Of an answer only the first line counts; a blank or null one cannot be parsed. Models that
only score need options or ``candidates``: this many of the most common answers become the options, and captions by ``statement``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.answers.documents import anls
from diptych.benchmarks.answers.final import spoken
from diptych.benchmarks.answers.questions import CONDITIONS, Question, QuestionTask, answer_records
from diptych.benchmarks.answers.row_images import RowImages
from diptych.benchmarks.answers.samples import questions_of, sample_questions
from diptych.benchmarks.base import Items
from diptych.benchmarks.inputs import kind_of, read_json, read_rows, table_of
from diptych.benchmarks.pictures import ImageRef, NoPictures, Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits, take
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tables import Row, match, unique
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import Source

QUESTION_IDS = ("question_id", "questionId", "id", "index")  # questionId: DocVQA's
DIFFERS = "differs from accuracy"  # the slice of accuracy_normalised
FEWEST_HUMANS = 4  # with fewer, a right answer could not get a VQA accuracy of 1

# --- the formula ---

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = dict(
    zip(
        ("none", *["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]),
        map(str, (0, *range(11))),
        strict=True,
    )
)
ARTICLES = frozenset(["a", "an", "the"])

# Contractions written without their apostrophe. "im", "ive" and "id" are missing, because the evaluator's own entries have a
# capital I and are looked up in lower case.
_FAMILIES = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
}
_THREE_PARTS = {
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}


def _contractions() -> dict[str, str]:
    table = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "somebody'd": "somebodyd"}
    table |= {"'ow'sat": "'ow's'at", "'ows'at": "'ow's'at", "ow's'at": "'ow's'at", "yall'll": "y'all'll", "y'allll": "y'all'll"}
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    for end, stems in _FAMILIES.items():
        table |= {stem + end.replace("'", ""): stem + end for stem in stems.split()}
    for end, stems in _THREE_PARTS.items():
        first, second = end[: end.rindex("'")], end[end.rindex("'") :]
        for stem in stems.split():
            whole = stem + end
            table[stem + first.replace("'", "") + second] = whole
            table[stem + first + second.replace("'", "")] = whole
    return table


CONTRACTIONS = _contractions()
_PERIOD, _DIGIT_COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")


def clean(text: str) -> str:
    """What happens to every answer: line ends and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)
def normalise_answer(text: str) -> str:
    """The evaluator's normal form: ``3,000`` → ``3000``, ``U.S.A.`` → ``usa``, ``None`` → ``0``, ``tv/monitor`` → ``tv monitor``.

    A punctuation sign is deleted everywhere if it is next to a space anywhere, or if the text has digit,digit; otherwise it becomes
    a space.
    """
    text = result = clean(text)
    thousands = _DIGIT_COMMA.search(text) is not None
    for sign in PUNCTUATION:
        if sign in text:
            deleted = thousands or f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if deleted else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", result).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 18)
def _counts(truth: tuple[str, ...]) -> tuple[dict[str, int], Callable[[str], str]]:
    """How many people gave each answer, and the form in which answers are compared: as they are if several people all give the same
    answer.
    """
    same = len(truth) >= FEWEST_HUMANS and len({clean(h) for h in truth}) == 1
    form = clean if same else normalise_answer
    return dict(Counter(map(form, truth))), form


def _credit(matches: int, n: int) -> float:
    if n < FEWEST_HUMANS or not matches:
        return float(matches > 0)
    of_matching, of_others = min(matches - 1, 3), min(matches, 3)  # thirds, with a matching and with another human left out
    return (matches * of_matching + (n - matches) * of_others) / (3 * n)


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Mean over the humans, each left out by position, of min(1, matches among the others / 3).

    With ten humans 0, 1, 2, 3, ≥ 4 matches give 0, .3, .6, .9, 1. Both sides are normalised unless all humans say the same.
    Raises ValueError for fewer than four humans, with whom a right answer could not get 1.
    """
    if len(humans) < FEWEST_HUMANS:
        raise ValueError(f"VQA accuracy needs at least {FEWEST_HUMANS} human answers (the data sets have 10), got {len(humans)}")
    counts, form = _counts(tuple(humans))
    return _credit(counts.get(form(answer), 0), len(humans))


def normalised_accuracy(answer: str, humans: Sequence[str]) -> float:
    """``vqa_accuracy`` with both sides normalised also where all humans say the same.

    There the official script compares answers as they are: "Yes" earns nothing against ten times "yes". Raises ValueError as it.
    """
    if len(humans) < FEWEST_HUMANS:
        raise ValueError(f"VQA accuracy needs at least {FEWEST_HUMANS} human answers (the data sets have 10), got {len(humans)}")
    return _credit(Counter(map(normalise_answer, humans)).get(normalise_answer(answer), 0), len(humans))


def _unanimous(truth: Sequence[str]) -> bool:
    return _counts(tuple(truth))[1] is clean


def _normalised_credit(answer: str, truth: Sequence[str]) -> float:
    return normalised_accuracy(answer, truth) if _unanimous(truth) else answer_credit(answer, truth)


def answer_credit(answer: str, truth: Sequence[str]) -> float:
    """The VQA accuracy where there are enough human answers, else 1 if the answer equals one of ``truth`` after normalisation."""
    if len(truth) >= FEWEST_HUMANS:
        return vqa_accuracy(answer, truth)
    counts, form = _counts(tuple(truth))
    return float(form(answer) in counts)


# --- the task ---


@dataclass(frozen=True)
class Vqa(QuestionTask):
    """Visual question answering with the official accuracy of VQAv2 (Antol et al. 2015)."""

    name: str = "vqa"
    annotations: str = ""  # VQAv2's answers, in a separate file
    candidates: int = 0
    statement: str = "{question} {answer}"
    anls: bool = False  # also ANLS, the metric of DocVQA, ST-VQA and InfographicVQA

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        """The questions about a training sample that can be shown as examples."""
        return questions_of(source, sample)

    def items(self, source: Source) -> Items:
        """The questions."""
        if not self.file:
            found = sample_questions(source, self.n)
            return Items(self._with_candidates(found), found.problems)
        return Items(self.read(Pictures(self.images, self.file)))

    def read(self, pictures: Pictures, answers: dict[str, Row] | None = None) -> list[Question]:
        """The questions of the file. Raises DiptychError for a question that occurs twice or has no annotation.

        ``answers``: the annotations by question, if they have been read.
        """
        if answers is None and self.annotations:
            answers = read_annotations(self.annotations)
        rows = self._rows()
        images = RowImages(rows, pictures, needed=not isinstance(pictures, NoPictures))
        questions = [self._question(row, images, answers) for row in islice(rows, self.n or None)]
        unique((q.id for q in questions), self.file, "question")
        return self._with_candidates(questions)

    def _with_candidates(self, questions: list[Question]) -> list[Question]:
        """The questions with the most common answers as options, in place of their own, if ``candidates`` is set."""
        if not self.candidates:
            return questions
        common = Counter(Counter(map(normalise_answer, q.answers)).most_common(1)[0][0] for q in questions if q.answers)
        options = tuple(sorted(answer for answer, _ in common.most_common(self.candidates)))
        return [replace(q, options=options, statements=self._statements(q.text, options)) for q in questions]

    def _rows(self) -> list[Row]:
        """VQAv2 names the split of COCO once, for all its questions."""
        path = Path(self.file)
        if path.suffix.lower() != ".json" or kind_of(path) == "lines":
            return read_rows(path, "questions").records()
        document = read_json(path)
        rows = table_of(document, path, wrapper_of(document)).records()
        split = document.get("data_subtype") if isinstance(document, dict) and "questions" in document else None
        for row in rows if split else []:
            row.setdefault("data_subtype", split)
        return rows

    def _statements(self, question: str, options: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.statement.replace("{question}", question).replace("{answer}", o) for o in options)

    def _question(self, row: Row, images: RowImages, answers: dict[str, Row] | None) -> Question:
        name = row.text(*QUESTION_IDS)
        true = row if answers is None else annotation_of(name, row, answers, self.annotations)
        image, path = _image(row, images)
        kinds = {**row.slices(), **true.slices()}
        types = row.get("types")  # GQA's
        if isinstance(types, dict):
            kinds |= {k: str(v) for k, v in types.items() if v}
        return Question(name, image, path, row.text("question"), _answers(true), slices=kinds)

    def parse(self, record: Record, text: str) -> str | None:
        """The first line of what follows the thinking, or of the last mark such as ``<answer>``; of a closed set the option that it
        names.
        """
        line = spoken(text).strip().partition("\n")[0].strip()
        if not line:
            return None
        same = [o for o in record["options"] if normalise_answer(o) == normalise_answer(line)]
        return same[0] if same else line

    def credit(self, record: Record, answer: str) -> float:
        """The credit of an answer, 0 to 1."""
        return answer_credit(answer, record["answers"])

    def more_results(self, records: list[Record]) -> list[Result]:
        """``accuracy_normalised``, where all people agree about some question; its slice is of the items in which it differs from
        the official accuracy. ``anls``, if asked for.
        """
        results = []
        if any(_unanimous(r["answers"]) for r in records):
            own = self._credits(records, "correct", _normalised_credit)
            differ = np.flatnonzero([r["correct"]["accuracy"] != c for r, c in zip(records, own, strict=True)])
            result = self._result("accuracy_normalised", records, _normalised_credit)
            if len(differ):
                at = of_credits("", "", own[differ], take([r["cluster"] for r in records], differ))
                row = {"value": at.value, "low": at.low, "high": at.high, "n": at.n, "clusters": at.clusters}
                result = replace(result, slices=[{"slice": DIFFERS, **row}])
            results.append(result)
        return [*results, self._result("anls", records, anls)] if self.anls and records else results

    def _credits(self, records: list[Record], condition: str, credit: Callable[[str, Sequence[str]], float]) -> np.ndarray:
        answers = [self.parsed(r, condition) for r in records]
        return np.array(
            [mean([credit(a, r["answers"]) for a in of]) if of else 0.0 for r, of in zip(records, answers, strict=True)]
        )

    def _result(self, metric: str, records: list[Record], credit: Callable[[str, Sequence[str]], float]) -> Result:
        """The mean of another credit of the same answers, with the controls and the band."""
        credits = {c: self._credits(records, c, credit) for c in CONDITIONS if all(c in r for r in records)}
        own = credits.pop("correct")
        unparsed = np.array([r["unparsed"] for r in records], dtype=bool)
        fields: dict[str, Any] = {
            "controls": {condition: mean(values) for condition, values in credits.items()},
            "by": records[0].get("by", ""),
            "unparsed": int(unparsed.sum()),
            "band": (mean(own), mean(np.where(unparsed, 1.0, own))) if unparsed.any() else None,
        }
        return of_credits(self.name, metric, own, [r["cluster"] for r in records], **fields)

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best single answer to all questions."""
        sums: defaultdict[tuple[object, str], float] = defaultdict(float)  # of credits, by the form in which answers are compared
        for r in records:
            counts, form = _counts(tuple(r["answers"]))
            for answer, matches in counts.items():
                sums[form, answer] += _credit(matches, len(r["answers"]))
        answers = {a for r in records for a in r["answers"]}
        return max((sums[clean, clean(a)] + sums[normalise_answer, normalise_answer(a)] for a in answers), default=0) / max(
            len(records), 1
        )


def _image(row: Row, images: RowImages) -> tuple[str, ImageRef]:
    """The name of a row's image, and the image: a file by its name, or what the table holds (the Hub's Parquet, VLMEvalKit)."""
    if images.holds(row):
        path, name = images.of(row)
        return str(row.get("image_id") or row.get("imageId") or name), path
    image = row.text("image_id", "imageId", "image", "image_path", "file_name")
    return image, images.pictures.path(coco_name(image, row), row.where)


def wrapper_of(document: Any) -> str:
    """The field of a document that holds its questions: ``questions`` (VQAv2), or ``data`` (TextVQA, DocVQA)."""
    return "data" if isinstance(document, dict) and "questions" not in document and "data" in document else "questions"


def read_annotations(path: str | Path) -> dict[str, Row]:
    """{question id: annotation}"""
    table = read_rows(path, "annotations")
    return dict(zip(table.unique("question_id"), table.records(), strict=True))


def _answers(row: Row) -> tuple[str, ...]:
    """The human answers, texts or VQAv2's objects with an answer; or the one right answer."""
    given = row.get("answers", row.get("answer"))
    if isinstance(given, str) and given.startswith("["):  # a list written as text, as in VLMEvalKit's tables
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            given = None
    if not isinstance(given, list) or not given:
        return (row.text("answer", "answers"),)
    answers = [a.get("answer") if isinstance(a, dict) else a for a in given]
    if any(a is None or isinstance(a, list | dict) for a in answers):
        raise DiptychError(f"{row.where}: 'answers' must be a list of texts, or of objects with an 'answer'")
    return tuple(map(str, answers))


def annotation_of(name: str, row: Row, answers: dict[str, Row], path: str) -> Row:
    """The annotation of a question. Raises DiptychError if it has none."""
    if name not in answers:
        raise DiptychError(f"{row.where} (question {name}): {path} has no annotation for it")
    return answers[name]


def coco_name(image: str, row: Row) -> str:
    """The file name of a COCO image: VQAv2 gives its number, which the name has in twelve digits after that of the split."""
    split = row.get("data_subtype")
    return f"COCO_{split}_{int(image):012d}.jpg" if split and image.isdigit() else image


# --- answers in a file: diptych metrics vqa ---


def score_files(questions: Path, annotations: Path | None, results: Path, with_anls: bool = False) -> list[Result]:
    """The accuracy of answers in VQAv2's format, with slices by the types of answer and question; with ``with_anls`` also ANLS.

    Without ``annotations`` the right answers are those in the file of questions (TextVQA, DocVQA).
    """
    task = Vqa(file=str(questions), annotations="" if annotations is None else str(annotations), anls=with_anls)
    answers, table = None if annotations is None else read_annotations(annotations), read_rows(results, "data")
    read = task.read(NoPictures(), answers)
    ids = table.unique(next((name for name in QUESTION_IDS if table.has(name)), QUESTION_IDS[0]))
    name = "prediction" if table.has("prediction") else "answer"  # VLMEvalKit's files have the right answer as ``answer``
    given: dict[str, Any] = dict(zip(ids, table.column(name, "answer"), strict=True))
    match(list(given), [q.id for q in read], table, questions)
    if answers is not None and annotations is not None:
        match(list(answers), [q.id for q in read], annotations, questions)
    return task.accuracy_results(answer_records(task, read, given))
