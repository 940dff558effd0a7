"""TextVQA, DocVQA, ChartQA and OCRBench, read from their files as people download them, each with its published metric."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.benchmarks.answers.documents import anls
from diptych.benchmarks.answers.final import without_thinking
from diptych.benchmarks.answers.questions import Question, QuestionTask
from diptych.benchmarks.answers.row_images import RowImages
from diptych.benchmarks.answers.vqa import Vqa
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_records, read_rows
from diptych.benchmarks.pictures import NoPictures, Pictures
from diptych.benchmarks.reading.base import Credited
from diptych.benchmarks.reading.metrics import contains, relaxed, textvqa_accuracy
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.tables import Row, unique
from diptych.core.errors import DiptychError
from diptych.data.source import Source


def _needs_file(task: Vqa, example: str) -> None:
    if not task.file:
        raise NotApplicable(f"it reads its questions from a file: ?file={example}")


@dataclass(frozen=True)
class TextVqa(Vqa):
    """TextVQA: {data: [{question_id, image_id, question, answers: ten texts}]}; images ``train_images/{image_id}.jpg``. Accuracy
    over ten answers, always normalised.

    ocr: the published file of OCR tokens ({data: [{image_id, ocr_tokens}]}), which are then put before the request for a short
    answer, as LLaVA-1.5 is evaluated.
    """

    name: str = "textvqa"
    ocr: str = ""

    def items(self, source: Source) -> Items:
        """The questions."""
        _needs_file(self, "TextVQA_0.5.1_val.json&images=train_images")
        return super().items(source)

    def read(self, pictures: Pictures, answers: dict[str, Row] | None = None) -> list[Question]:
        """The questions of the file, with the words of the OCR file in their prompts. Raises DiptychError for a picture without
        OCR result.
        """
        questions = super().read(pictures, answers)
        if not self.ocr:
            return questions
        words = {row.text("image_id"): row.need("ocr_tokens", kind=list) for row in read_rows(self.ocr, "data").records()}
        return [replace(q, prompt=self._with_words(q, words)) for q in questions]

    def _with_words(self, question: Question, words: dict[str, list[Any]]) -> str:
        if question.cluster not in words:
            raise DiptychError(f"{self.ocr}: no row with image_id '{question.cluster}' (question {question.id} of {self.file})")
        read = ", ".join(map(str, words[question.cluster]))
        line = f"{{question}}\nReference OCR token: {read}\n" if read else "{question} "
        return line + self.prompt.replace("{question}", "").strip()

    def credit(self, record: Record, answer: str) -> float:
        """TextVQA's accuracy."""
        return textvqa_accuracy(answer, record["answers"])

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best single answer to all questions, among the ten that people give most often."""
        return QuestionTask.constant(self, records)

    def more_results(self, records: list[Record]) -> list[Result]:
        """None."""
        return []


@dataclass(frozen=True)
class DocVqa(Credited):
    """DocVQA and InfographicVQA: {data: [{questionId, question, image, answers, question_types}]}. ``anls`` is the published
    metric, with threshold 0.5; ``accuracy`` the share of answers that are the same after normalisation.
    """

    name: str = "docvqa"
    max_tokens: int = 32

    def items(self, source: Source) -> Items:
        """The questions."""
        _needs_file(self, "val_v1.0.json")
        return super().items(source)

    def _question(self, row: Row, images: RowImages, answers: dict[str, Row] | None) -> Question:
        if row.get("image") is None and row.get("image_local_name") is not None:  # InfographicVQA's
            row["image"] = row["image_local_name"]
        question = super()._question(row, images, answers)
        kinds = row.get("question_types")
        named = {"type": "+".join(map(str, kinds))} if isinstance(kinds, list) and kinds else {}
        return replace(question, slices={**question.slices, **named})

    def more_credits(self, record: Record, answer: str) -> dict[str, float]:
        """ANLS."""
        return {"anls": anls(answer, record["answers"])}

    def credit(self, record: Record, answer: str) -> float:
        """Whether it is one of the right answers after normalisation, however many there are."""
        return float(max(map(_same(answer), record["answers"]), default=False))


def _same(answer: str) -> Any:
    from diptych.benchmarks.answers.vqa import normalise_answer

    return lambda truth: normalise_answer(answer) == normalise_answer(truth)


@dataclass(frozen=True)
class ChartQa(Credited):
    """ChartQA: a file [{imgname, query, label}] such as ``test_human.json``, the folder with ``png/`` and several of them, or the
    Hub's Parquet. ``relaxed_accuracy`` is the published metric (numbers within 5 %); ``accuracy`` the share of equal answers.
    """

    name: str = "chartqa"

    def items(self, source: Source) -> Items:
        """The questions."""
        _needs_file(self, '"ChartQA Dataset/test"')
        folder = Path(self.file) if Path(self.file).is_dir() else Path(self.file).parent
        images = self.images or (str(folder / "png") if (folder / "png").is_dir() else "")
        return Items(self.read(Pictures(images, self.file)))

    def read(self, pictures: Pictures, answers: dict[str, Row] | None = None) -> list[Question]:
        """The questions of the file or of all files of the folder."""
        place = Path(self.file)
        paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
        if not paths:
            raise DiptychError(f"{place}: no .json file in it, such as test_human.json")
        questions: list[Question] = []
        for path in paths:
            rows = read_records(path)
            images = RowImages(rows, pictures, needed=not isinstance(pictures, NoPictures))
            questions += [self._of_chart(path, i, row, images) for i, row in enumerate(rows)]
        questions = questions[: self.n or None]
        unique((q.id for q in questions), self.file, "question")
        return self._with_candidates(questions)

    def _of_chart(self, path: Path, number: int, row: Row, images: RowImages) -> Question:
        name = row.get("imgname")
        if name is not None:
            image, cluster = images.pictures.path(str(name), row.where), str(name)
        else:
            image, cluster = images.of(row)  # type: ignore[assignment]
        label = row.need("label", "answer")
        truth = tuple(map(str, label)) if isinstance(label, list) else (str(label),)
        kind = _part(row, path)
        return Question(
            f"{path.stem}:{number}", cluster, image, row.text("query", "question"), truth, slices={"part": kind} if kind else {}
        )

    def credit(self, record: Record, answer: str) -> float:
        """Whether it is the right answer after normalisation."""
        return float(max(map(_same(answer), record["answers"]), default=False))

    def more_credits(self, record: Record, answer: str) -> dict[str, float]:
        """Relaxed accuracy."""
        return {"relaxed_accuracy": float(any(relaxed(answer, truth) for truth in record["answers"]))}


def _part(row: Row, path: Path) -> str:
    """Human or augmented, from the file's name or the Hub's columns."""
    given = str(row.get("type", row.get("human_or_machine", path.stem)))
    return next((part for part in ("human", "augmented") if part in given), {"0": "human", "1": "augmented"}.get(given, ""))


RECOGNITION = "Recognition"  # in the names of OCRBench's six types of text recognition, but not of formulas


@dataclass(frozen=True)
class OcrBench(Vqa):
    """OCRBench: [{image_path, question, answers, dataset_name, type}], or the Hub's Parquet {image, question, answer, dataset,
    question_type}. ``accuracy``: a right answer occurs in the answer; of the whole file it is the published score / 1000. The slice
    ``group`` has the published sums: recognition, and the other four types.
    """

    name: str = "ocrbench"
    prompt: str = "{question}"
    max_tokens: int = 100

    def items(self, source: Source) -> Items:
        """The questions."""
        _needs_file(self, "OCRBench.json&images=OCRBench_Images")
        return Items(self.read(Pictures(self.images, self.file)))

    def read(self, pictures: Pictures, answers: dict[str, Row] | None = None) -> list[Question]:
        """The questions of the file."""
        rows = read_records(self.file)
        images = RowImages(rows, pictures, needed=not isinstance(pictures, NoPictures))
        return [self._of_bench(i, row, images) for i, row in enumerate(rows[: self.n or None])]

    def _of_bench(self, number: int, row: Row, images: RowImages) -> Question:
        image, cluster = images.of(row, "image_path")
        given = row.need("answers", "answer")
        truth = tuple(map(str, given)) if isinstance(given, list) else (str(given),)
        if not truth:
            raise DiptychError(f"{row.where}: field 'answers': no right answer")
        kind, of = row.text("type", "question_type"), row.text("dataset_name", "dataset")
        group = "Text Recognition" if kind.endswith(f"Text {RECOGNITION}") or kind in _LETTERS else kind
        return Question(
            str(number), cluster, image, row.text("question"), truth, slices={"type": kind, "dataset": of, "group": group}
        )

    def parse(self, record: Record, text: str) -> str | None:
        """The whole text behind the thinking; None if there is none."""
        return without_thinking(text).strip() or None

    def credit(self, record: Record, answer: str) -> float:
        """Whether a right answer occurs in it."""
        return float(contains(answer, record["answers"], formula=record["slices"].get("dataset") == "HME100k"))

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best of the ten most common right answers, given to every question."""
        common = Counter(a for r in records for a in set(r["answers"]))
        return max((sum(self.credit(r, a) for r in records) / len(records) for a, _ in common.most_common(10)), default=0.0)

    def more_results(self, records: list[Record]) -> list[Result]:
        """None."""
        return []


_LETTERS = ("Handwriting Recognition", "Digit String Recognition")
PUBLISHED = {cls.name: cls for cls in (TextVqa, DocVqa, ChartQa, OcrBench)}
