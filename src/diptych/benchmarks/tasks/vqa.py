"""Open questions: VQAv2 (Goyal et al., arXiv:1612.00837), GQA (Hudson & Manning, arXiv:1902.09506), scenes.

Files: VQAv2's questions with ``annotations``; GQA's questions; or rows (.json, .jsonl, .csv, .tsv, .parquet) with image,
question and answer or answers. With several human answers an answer earns the VQA accuracy, else 1 if it is the same
after the evaluator's normalisation. Models that only score need options or ``candidates``: so many of the most common
answers stand to choose from, as captions by ``statement``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.benchmarks.inputs import kind_of
from diptych.benchmarks.metrics.captions import rouge_l_items
from diptych.benchmarks.metrics.vqa import normalise_answer, vqa_accuracy
from diptych.benchmarks.records import Record
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tasks.asking import Asking, Question
from diptych.benchmarks.tasks.base import Items, NotApplicable, readable
from diptych.benchmarks.tasks.published import Pictures, Row, by_id, content, limited, rows, rows_in, unique
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

BUILT_IN = 300  # questions of a source without end


@dataclass(frozen=True)
class Vqa(Asking):
    name: str = "vqa"
    annotations: str = ""  # VQAv2's answers, a file of their own
    candidates: int = 0
    statement: str = "{question} {answer}"

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        return of_sample(source, sample)

    def items(self, source: Source) -> Items:
        if not self.file:
            return from_samples(source, self.n)
        found = self.read()
        unique((q.id for q in found), self.file, "question")
        return Items(found)

    def read(self) -> list[Question]:
        pictures = Pictures(self.images, self.file)
        answers = by_id(rows(self.annotations, "annotations"), "question_id", self.annotations) if self.annotations else None
        table = (
            rows(self.file, "questions") if not self.file.endswith(".json") or kind_of(Path(self.file)) == "lines" else self._read()
        )
        found = limited((self._question(row, pictures, answers) for row in table), self.n)
        if not self.candidates:
            return found
        common = Counter(Counter(map(normalise_answer, q.answers)).most_common(1)[0][0] for q in found)
        options = tuple(sorted(answer for answer, _ in common.most_common(self.candidates)))
        return [replace(q, options=options, statements=self._statements(q.text, options)) for q in found]

    def _read(self) -> list[Row]:
        """VQAv2 names the split of COCO once, for all its questions."""
        whole = content(self.file)
        table = rows_in(whole, self.file, "questions")
        split = whole.get("data_subtype") if isinstance(whole, dict) and "questions" in whole else None
        for row in table if split else []:
            row.setdefault("data_subtype", split)
        return table

    def _statements(self, question: str, options: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.statement.replace("{question}", question).replace("{answer}", o) for o in options)

    def _question(self, row: Row, pictures: Pictures, answers: dict[str, Row] | None) -> Question:
        name = row.text("question_id", "id")
        if answers is not None and name not in answers:
            row.where = f"{row.where} (question {name})"
            raise_missing(row, self.annotations)
        truth = answers[name] if answers is not None else row
        given = (
            truth["answers"] if isinstance(truth.get("answers"), list) and truth["answers"] else [truth.text("answer", "answers")]
        )
        said = tuple(str(a["answer"] if isinstance(a, dict) else a) for a in given)
        image = row.text("image_id", "imageId", "image", "image_path", "file_name")
        kinds = {k: str(truth[k]) for k in ("question_type", "answer_type") if truth.get(k)}
        types = row.get("types")
        if isinstance(types, dict):
            kinds |= {k: str(v) for k, v in types.items() if v}
        return Question(name, image, pictures.path(coco_name(image, row), row.where), row.text("question"), said, slices=kinds)

    def parse(self, record: Record, text: str) -> str | None:
        """The first line; of a closed set the option it names."""
        line = text.strip().partition("\n")[0].strip()
        if record["options"]:
            same = [o for o in record["options"] if normalise_answer(o) == normalise_answer(line)]
            return same[0] if same else (line or None)
        return line or None

    def credit(self, record: Record, answer: str) -> float:
        if len(record["answers"]) > 3:
            return vqa_accuracy(answer, record["answers"])
        return float(normalise_answer(answer) in map(normalise_answer, record["answers"]))


@dataclass(frozen=True)
class OpenAnswers(Vqa):
    """Long answers, such as LLaVA-Bench's (Liu et al., arXiv:2304.08485): questions.jsonl with question_id, image, text, category,
    and ``annotations`` with reference answers (question_id, text). An answer earns its ROUGE-L; a judge of your choice finds
    the answers in the records.
    """

    name: str = "open"
    prompt: str = "{question}"
    max_tokens: int = 512
    needs: tuple[str, ...] = ("prompt",)
    by: str = "generate"

    def items(self, source: Source) -> Items:
        if not self.file:
            raise NotApplicable("it reads its questions from a file: ?file=questions.jsonl")
        return super().items(source)

    def _question(self, row: Row, pictures: Pictures, answers: dict[str, Row] | None) -> Question:
        name, image = row.text("question_id", "id"), row.text("image")
        if answers is not None and name not in answers:
            raise_missing(row, self.annotations)
        said = (answers[name].text("text", "answer"),) if answers is not None else ()
        kinds = {"category": str(row["category"])} if row.get("category") else {}
        return Question(name, image, pictures.path(image, row.where), row.text("text", "question"), said, slices=kinds)

    def parse(self, record: Record, text: str) -> str | None:
        return text.strip() or None

    def credit(self, record: Record, answer: str) -> float:
        if not record["answers"]:
            return 0.0
        return rouge_l_items({"": record["answers"]}, {"": answer})[""]

    def constant(self, records: list[Record]) -> float:
        """The best of the first reference answers, given to every question."""
        first = [r["answers"][0] for r in records[:10] if r["answers"]]
        return max((mean([self.credit(r, a) for r in records]) for a in first), default=0.0)


def raise_missing(row: Row, annotations: str) -> None:
    from diptych.core.errors import DiptychError

    raise DiptychError(f"{row.where}: {annotations} has no annotation for it")


def coco_name(image: str, row: Row) -> str:
    """VQAv2 names COCO's pictures by number; their files have it in twelve digits behind the split's name."""
    split = row.get("data_subtype")
    return f"COCO_{split}_{int(image):012d}.jpg" if split and image.isdigit() else image


def from_samples(source: Source, n: int, kinds: tuple[str, ...] = ()) -> Items:
    """Questions that the samples bring in ``extra["questions"]``: question, answer or answers, perhaps kind and options."""
    items: list[Question] = []
    problems: list[Problem] = []
    most = n or BUILT_IN
    for seen, sample in enumerate(readable(source, problems), 1):
        if sample.image is not None:
            items += of_sample(source, sample, kinds)
        if len(items) >= most or (not items and seen == 100):
            break
    if len({q.cluster for q in items}) < 2:
        raise NotApplicable("the source has no questions (extra['questions'] of its samples); give ?file=")
    return Items(items[:most], problems)


def of_sample(source: Source, sample: Sample, kinds: tuple[str, ...] = ()) -> Iterator[Question]:
    for number, asked in enumerate(sample.extra.get("questions") or []):
        kind = asked.get("kind", "")
        if kinds and kind not in kinds:
            continue
        options, statements = asked.get("options") or [], asked.get("statements") or []
        if not options and hasattr(source, "options"):
            options, statements = source.options(sample, asked)
        answers = asked.get("answers") or [asked["answer"]]
        yield Question(
            f"{sample.id}#{number}",
            sample.id,
            sample.image,  # type: ignore[arg-type]
            asked["question"],
            tuple(map(str, answers)),
            tuple(options),
            tuple(statements),
            {"kind": kind} if kind else {},
        )
