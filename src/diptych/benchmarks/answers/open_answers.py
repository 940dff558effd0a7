"""Long answers, such as LLaVA-Bench's (Liu et al., arXiv:2304.08485): an answer earns its ROUGE-L to the reference answers.

Files: questions.jsonl with question_id, image, text, category, and ``annotations`` with reference answers (question_id, text).
Without reference answers there is no accuracy: the answers are in the records, for people or a judge model of your choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.benchmarks.answers.final import without_thinking
from diptych.benchmarks.answers.questions import CONDITIONS, Question
from diptych.benchmarks.answers.row_images import RowImages
from diptych.benchmarks.answers.vqa import Vqa, annotation_of
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.metrics.captions import Corpus
from diptych.benchmarks.records import Record
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tables import Row
from diptych.data.source import Source


@dataclass(frozen=True)
class OpenAnswers(Vqa):
    """Free answers, kept for people to read."""

    name: str = "open"
    prompt: str = "{question}"
    max_tokens: int = 512
    needs: tuple[str, ...] = ("prompt",)
    by: str = "generate"
    no_results = "there are no reference answers to compare with (&annotations=FILE); its records hold the answers"

    def items(self, source: Source) -> Items:
        """The questions."""
        if not self.file:
            raise NotApplicable("it reads its questions from a file: ?file=questions.jsonl")
        return super().items(source)

    def _question(self, row: Row, images: RowImages, answers: dict[str, Row] | None) -> Question:
        name, image = row.text("question_id", "id"), row.text("image")
        true = () if answers is None else (annotation_of(name, row, answers, self.annotations).text("text", "answer"),)
        return Question(
            name, image, images.pictures.path(image, row.where), row.text("text", "question"), true, slices=row.slices()
        )

    def parse(self, record: Record, text: str) -> str | None:
        """The whole text behind the thinking; None if there is none."""
        return without_thinking(text) or None

    def with_credits(self, record: Record) -> Record:
        """The record with the parsed answer and its credits; without credits where there is no reference answer."""
        record = super().with_credits(record)
        return record if record["answers"] else {k: v for k, v in record.items() if k not in (*CONDITIONS, "ties")}

    def credit(self, record: Record, answer: str) -> float:
        """The credit of an answer, 0 to 1; 0 without a reference answer."""
        if not record["answers"]:
            return 0.0
        return float(Corpus({"": record["answers"]}, {"": answer}).rouge_l()[0])

    def constant(self, records: list[Record]) -> float:
        """The best of the first ten reference answers, given to every question."""
        first = [r["answers"][0] for r in records[:10] if r["answers"]]
        return max((mean([self.credit(r, a) for r in records]) for a in first), default=0.0)
