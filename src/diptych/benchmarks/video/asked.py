"""Questions about clips: by choice, by yes or no, or open, with what is left of the score if frames or their order are taken away.

A model answers as in ``answers.questions``: it writes, or scores options; one that only scores compares "question option". Beside
the accuracy stand one frame, shuffled frames, reversed, the text alone and the temporal gain (``conditions``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.answers.choice_text import parse_choice
from diptych.benchmarks.answers.questions import PREFIX, Question, QuestionTask, question_record
from diptych.benchmarks.answers.samples import sample_questions
from diptych.benchmarks.answers.vqa import answer_credit
from diptych.benchmarks.answers.yes_no_text import parse_yes_no
from diptych.benchmarks.base import Items, NotApplicable, Progress, batch_for
from diptych.benchmarks.pictures import Clip, load_image
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import macro
from diptych.benchmarks.statistics import mean
from diptych.benchmarks.video.conditions import CONDITIONS, gain, is_clip, need_clips, shown
from diptych.core.capabilities import Image, Model
from diptych.data.source import BrokenItem, Source

YES_NO = ("yes", "no")
OPEN = "{question} Answer the question using a single word or phrase."
CHOICE = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
CLOSED = "{question} Please answer yes or no."


@dataclass(frozen=True)
class ClipQuestions(QuestionTask):
    """Questions about clips that the data brings along (``extra["questions"]`` of its samples)."""

    conditions: ClassVar[tuple[str, ...]] = CONDITIONS
    of_clips: ClassVar[bool] = True  # also what its files hold
    name: str = "video-questions"
    videos: str = ""  # the directory of the clips that ``file`` names; "": that of the file
    frames: int = 16  # of a clip, at most
    size: int = 224  # the shorter side of larger frames, in pixels
    prompt: str = ""  # "": one for questions by choice, one for yes or no, and one for open questions
    statement: str = "{question} {option}"
    batch: int = 8

    def items(self, source: Source) -> Items:
        """The questions. Raises NotApplicable if the source has none about clips."""
        items = sample_questions(source, self.n)
        if not all(is_clip(q.image) for q in items):
            raise NotApplicable("the source's questions are about pictures; vqa and choices are the tasks for them")
        return items

    def prompt_for(self, question: Question) -> str:
        """The prompt with the question and its lettered options in it."""
        if not (question.prompt or self.prompt):
            usual = CLOSED if question.options == YES_NO else CHOICE if question.options else OPEN
            question = replace(question, prompt=usual)
        return super().prompt_for(question)

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a model's text; None if there is none."""
        options = record["options"]
        if tuple(options) == YES_NO:
            said = parse_yes_no(text)
            return None if said is None else YES_NO[not said]
        if options:
            index = parse_choice(text, options, record.get("letters", ""))
            return None if index is None else options[index]
        return super().parse(record, text)

    def credit(self, record: Record, answer: str) -> float:
        """The credit of an answer, 0 to 1."""
        return super().credit(record, answer) if record["options"] else answer_credit(answer, record["answers"])

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best fixed place among the options, or of the best single answer to open questions."""
        if not all(r["options"] for r in records):
            return super().constant(records)
        most = max((len(r["options"]) for r in records), default=0)
        tried = [[self.credit(r, r["options"][i]) if i < len(r["options"]) else 0.0 for r in records] for i in range(most)]
        return max(map(mean, tried), default=0.0)

    # --- running a model ---

    def run(self, model: Model, items: list[Question], records: Records, progress: Progress | None = None) -> None:
        """One record per question with the answers under every condition. A clip that cannot be read is a question without an
        answer, with the reason.
        """
        need_clips(model)
        way = self.way(model, items)
        if way != "score":
            items = [variant for q in items for variant in self._with_prompts(q)]
        batch = batch_for(model, self.batch)
        for start in range(0, len(items), batch):
            clips: dict[Any, Image | BrokenItem] = {}
            asked: list[Question] = []
            for q in items[start : start + batch]:
                if q.id in records:
                    continue
                if _key(q) not in clips:
                    clips[_key(q)] = _loaded(q)
                clip = clips[_key(q)]
                if isinstance(clip, BrokenItem):
                    records.add([self._unread(q, way, clip.problem.reason)])
                else:
                    asked.append(q)
            if not asked:
                continue
            answers = {}
            for condition in self.conditions:
                seen = {key: shown(c, condition, repr(key)) for key, c in clips.items() if isinstance(c, np.ndarray)}
                answers[condition] = self._answers(model, way, [seen[_key(q)] for q in asked], asked, ())
            records.add(
                self.with_credits(self._record(model, way, q, {k: v[i] for k, v in answers.items()})) for i, q in enumerate(asked)
            )
            if progress:
                progress(f"{self.name} {min(start + batch, len(items))}/{len(items)}")

    def _unread(self, question: Question, way: str, reason: str) -> Record:
        empty = {f"{PREFIX[condition]}answer": None for condition in self.conditions}
        return self.with_credits({**question_record(question), "by": way, **empty, "failed": {"correct": reason}})

    # --- from records alone ---

    def accuracy_results(self, records: list[Record]) -> list[Result]:
        """Accuracy, its temporal gain and, of several tasks, the mean over tasks, with the benchmark's other results."""
        results = super().accuracy_results(records)
        if not results:
            return []
        tasks = [(r.get("slices") or {}).get("task") for r in records]
        means = []
        if None not in tasks and len(set(tasks)) > 1:
            credits = np.array([r["correct"]["accuracy"] for r in records])
            means.append(macro(self.name, "macro", credits, tasks, [r["cluster"] for r in records]))
        return [results[0], gain(self.name, "accuracy", records), *means, *results[1:]]

    def statements(self, question: str, options: Iterable[str]) -> tuple[str, ...]:
        """The texts that a model compares which only scores, one for each option."""
        return tuple(self.statement.replace("{question}", question).replace("{option}", option) for option in options)


def _key(question: Question) -> Any:
    """What is the same for questions about one clip, or one part of it."""
    return question.image if isinstance(question.image, Clip) else question.cluster


def _loaded(question: Question) -> Image | BrokenItem:
    """The clip of a question, or why there is none."""
    if is_clip(question.image):
        return question.image  # type: ignore[return-value]
    try:
        return load_image(question.image, question.id)
    except BrokenItem as broken:
        return broken


def limited(questions: Sequence[Question], n: int) -> list[Question]:
    """The first n questions; of several tasks as many of each, in the order of the file. n: 0: all."""
    if not n or len(questions) <= n:
        return list(questions)
    tasks: dict[str, list[int]] = {}
    for i, q in enumerate(questions):
        tasks.setdefault(q.slices.get("task", ""), []).append(i)
    ranked = sorted((place, i) for rows in tasks.values() for place, i in enumerate(rows))
    return [questions[i] for i in sorted(i for _, i in ranked[:n])]
