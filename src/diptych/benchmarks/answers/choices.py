"""Multiple choice: MMBench (arXiv:2307.06281), SEED-Bench (arXiv:2307.16125), MMMU (arXiv:2311.16502), scenes. (MME: mme.py.)

Files: the .tsv of MMBench and SEED-Bench (question, A, B, …, answer, image in base64 or image_path), MMMU's .parquet (question,
options, answer, image_1), or rows with image, question, options and answer. How the right answer is read: ``keys.answer_key``.
``circular``: a question counts only if it is answered right in every rotation of its options; a file's own rotations share
``group`` or, as in MMBench's files, the index modulo 1,000,000. A model that only scores compares "question option".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.benchmarks.answers.choice_text import parse_choice
from diptych.benchmarks.answers.keys import LETTERS, Options, answer_key, options_of
from diptych.benchmarks.answers.questions import CONDITIONS, Question, QuestionTask, answer_records
from diptych.benchmarks.answers.row_images import IDS, RowImages
from diptych.benchmarks.answers.samples import questions_of, sample_questions
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.inputs import read_rows
from diptych.benchmarks.pictures import NoPictures, Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.tables import Row, Table, match, unique
from diptych.core.capabilities import Example
from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source

MMBENCH_ROTATION = 1_000_000  # between the indices of a question's rotations

# --- the formula ---


def circular(credits: Sequence[float], questions: Sequence[Hashable]) -> dict[Hashable, float]:
    """{question: credit}: right only if every rotation of its options was answered right (the smallest of their credits).

    Equal scores tie in every rotation, so their chance is 1/k, as for one fixed order; a new guess in each rotation is right with
    chance k^−k.
    """
    smallest: dict[Hashable, float] = {}
    for credit, question in zip(credits, questions, strict=True):
        smallest[question] = min(smallest.get(question, 1.0), credit)
    return smallest


# --- the task ---


@dataclass(frozen=True)
class Choices(QuestionTask):
    """Multiple-choice questions, answered by a letter."""

    name: str = "choices"
    prompt: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
    statement: str = "{question} {option}"
    circular: bool = False
    key: str = "auto"  # what the file's answers are: letter, text, index, or auto: the one that fits all of them

    def items(self, source: Source) -> Items:
        """The questions."""
        if self.file:
            items = self.read(Pictures(self.images, self.file))
        else:
            items = sample_questions(source, self.n)
            if not all(q.options for q in items):
                raise NotApplicable("the source's questions have no options; give ?file=")
        if not self.circular or any(q.group for q in items):
            return items
        return Items((r for q in items for r in self._rotations(q)), items.problems)

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        """The questions about a training sample that can be shown as examples."""
        return [q for q in questions_of(source, sample) if q.options]

    def example_of(self, question: Question, way: str) -> Example:
        """A question with its answer, as an example."""
        example = super().example_of(question, way)  # by its letter, as the prompt asks for
        return (
            example._replace(text=(question.letters or LETTERS)[question.options.index(example.text)])
            if way == "generate"
            else example
        )

    def read(self, pictures: Pictures, all_fit: bool = False) -> Items:
        """The questions of the file; open ones and those with several images become problems.

        ``all_fit``: an image is not needed, and every question must have options. Raises DiptychError if there is no question.
        """
        rows = read_rows(self.file).records()
        problems = [] if all_fit else [Problem(row.text(*IDS), reason) for row in rows if (reason := _unfit(row))]
        rows = [row for row in rows if all_fit or not _unfit(row)]
        if not rows:
            raise DiptychError(f"{self.file}: no question of one picture with options")
        options = [self._options(row) for row in rows]
        key = answer_key(rows, options, self.key)
        groups = own_rotations(rows, [of.texts for of in options], self.file) if self.circular else [""] * len(rows)
        kept = set(list(dict.fromkeys(group or i for i, group in enumerate(groups)))[: self.n or None])
        images = RowImages(rows, pictures, needed=not all_fit)
        questions = [
            self._question(row, options[i], key[i], groups[i], images) for i, row in enumerate(rows) if (groups[i] or i) in kept
        ]
        unique((q.id for q in questions), self.file, "question")
        return Items(questions, problems)

    def _options(self, row: Row) -> Options:
        return options_of(row)

    def _question(self, row: Row, options: Options, right: int, group: str, images: RowImages) -> Question:
        name = row.text(*IDS)
        image, cluster = images.of(row)
        hint, text = str(row.get("hint") or "").strip(), row.text("question") if images.needed or row.get("question") else ""
        text = f"{hint}\n{text}" if hint and hint != "nan" else text
        statements = tuple(self.statement.replace("{question}", text).replace("{option}", o) for o in options.texts)
        return Question(
            name,
            cluster or name,
            image,
            text,
            (options.texts[right],),
            tuple(options.texts),
            statements,
            row.slices(),
            group=group,
            letters="" if LETTERS.startswith(options.letters) else options.letters,
        )

    def _rotations(self, q: Question) -> list[Question]:
        rotated = []
        for k in range(len(q.options)):
            options, statements = q.options[k:] + q.options[:k], q.statements[k:] + q.statements[:k]
            rotated.append(replace(q, id=f"{q.id}@{k}", options=options, statements=statements, letters=""))
        return rotated

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a model's text; None if there is none."""
        index = parse_choice(text, record["options"], record.get("letters", ""))
        return None if index is None else record["options"][index]

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best fixed place among the options: how much the order reveals."""
        most = max(len(r["options"]) for r in records)
        return max(mean([self.credit(r, r["options"][i]) if i < len(r["options"]) else 0.0 for r in records]) for i in range(most))

    def more_results(self, records: list[Record]) -> list[Result]:
        """With ``circular``, the circular accuracy. Chance: of equal scores, which tie in every rotation; of texts, of a new
        guess in each."""
        if not self.circular:
            return []
        groups = [r.get("group") or re.sub(r"@\d+(?=(?:~\d+)?$)", "", r["item"]) for r in records]  # an id may hold @7
        cluster = {name: r["cluster"] for name, r in zip(groups, records, strict=True)}
        values = {
            condition: circular([r[condition]["accuracy"] for r in records], groups)
            for condition in CONDITIONS
            if all(condition in r for r in records)
        }
        one = circular([r["chance"]["accuracy"] for r in records], groups)
        sizes = Counter(groups)
        chance = mean([c if "scores" in records[0] else c ** sizes[str(name)] for name, c in one.items()])
        own = list(values["correct"].values())
        unparsed = sum(r["unparsed"] for r in records)
        best = circular([1.0 if r["unparsed"] else r["correct"]["accuracy"] for r in records], groups)
        fields: dict[str, Any] = {
            "chance": chance,
            "controls": {condition: mean(list(of.values())) for condition, of in values.items() if condition != "correct"},
            "ties": sum(r["ties"]["accuracy"] for r in records),
            "nans": sum(r.get("nans", 0) for r in records),
            "unparsed": unparsed,
            "band": (mean(own), mean(list(best.values()))) if unparsed else None,
            "by": records[0].get("by", ""),
        }
        return [of_credits(self.name, "circular", own, [cluster[str(name)] for name in values["correct"]], **fields)]


def own_rotations(rows: Sequence[Row], options: Sequence[Sequence[str]], path: str) -> list[str]:
    """The question that each row is a rotation of; "" for all if the file holds every question once.

    Raises DiptychError if the number of rows of a question is not its number of options.
    """
    if "group" in rows[0]:
        groups = [row.text("group") for row in rows]
    else:
        ids = [row.text(*IDS) for row in rows]
        groups = [str(int(i) % MMBENCH_ROTATION) for i in ids] if all(re.fullmatch(r"\d+", i) for i in ids) else ids
    sizes = Counter(groups)
    if max(sizes.values()) == 1 and "group" not in rows[0]:
        return [""] * len(rows)
    for row, group, of in zip(rows, groups, options, strict=True):
        if sizes[group] != len(of):
            raise DiptychError(f"{row.where}: question '{group}' has {len(of)} options but {sizes[group]} rotations")
    return groups


def _unfit(row: Row) -> str:
    """Why a question of MMMU cannot be used; "" if it can."""
    if row.get("question_type") == "open":
        return "an open question, without options"
    return "needs several pictures" if row.get("image_2") is not None else ""


# --- answers in a file: diptych metrics multiple-choice ---


def read_answers(task: Choices, answers: Path) -> list[Record]:
    """Records with credits of the answers to the task's file: texts, or a score for each option."""
    questions, table = task.read(NoPictures(), all_fit=True), read_rows(answers)
    scored = table.has("scores")
    ids = table.unique(next((name for name in IDS if table.has(name)), "id"))
    name = "prediction" if table.has("prediction") else "answer"  # VLMEvalKit's files have the right answer as ``answer``
    given = table.column("scores", "scores") if scored else table.column(name, "answer", aliases=("text",))
    match(ids, [q.id for q in questions], table, Path(task.file))
    if scored:
        _check_scores(table, ids, given, {q.id: len(q.options) for q in questions})
    return answer_records(task, questions, dict(zip(ids, given, strict=True)), scored)


def _check_scores(table: Table, ids: Sequence[str], given: Sequence[Sequence[float]], sizes: dict[str, int]) -> None:
    for i, (name, scores) in enumerate(zip(ids, given, strict=True)):
        if len(scores) != sizes[name]:
            raise DiptychError(f"{table.where(i)}: {counted(len(scores), 'score')} for {sizes[name]} options")


def score_files(questions: Path, answers: Path, circular: bool = False, key: str = "auto") -> list[Result]:
    """Accuracy and, with ``circular``, circular accuracy of answers to a file of questions, as they are or with their rotations."""
    task = Choices(name="multiple-choice", file=str(questions), circular=circular, key=key)
    records = read_answers(task, answers)
    if circular and not all("group" in r for r in records):
        raise DiptychError(
            f"{questions}: circular needs every rotation of a question: rows with the same 'group', or MMBench's indices"
        )
    return [replace(r, metric="circular_accuracy") if r.metric == "circular" else r for r in task.accuracy_results(records)]
