"""The base of benchmarks that ask a question about an image. A model answers in one of three ways:

| by | what the model does | what it needs |
|---|---|---|
| ``generate`` | writes an answer, which is parsed; otherwise it earns nothing and widens the band | prompt, generate |
| ``likelihood`` | the option with the highest log P(option given image and prompt) | prompt, loglikelihood; options |
| ``score`` | the statement that fits the image best, one statement per option | score; statements |

Blind: the same about a grey image. Shuffled: about another image. Constant: the one answer that would do best for all. ``shots``:
this many training images, each with a question and its answer, are shown first. They are drawn by the seed, and are the same for
every item and control. A language model that learned only captions can then answer, too.

Answers in files (``diptych metrics``) become the same records, without controls: ``answer_records``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from diptych.benchmarks.answers.confidence import calibration_results, coverage_results
from diptych.benchmarks.answers.keys import LETTERS
from diptych.benchmarks.base import Items, NotApplicable, Progress, batch_for, by_item, count_not_finite, failures
from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.pictures import ImageRef, load_image
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import CONTROLS, shares
from diptych.benchmarks.shots import check_examples, examples_argument
from diptych.benchmarks.statistics import mean, spread
from diptych.core.capabilities import IN_WORDS, Example, Image, Model, Unanswered, in_words
from diptych.core.sample import Sample
from diptych.data.source import Source

WAYS = ("generate", "likelihood", "score")
CONDITIONS = ("correct", "blind", "shuffled")  # with the image, a grey one, another one
PREFIX = {"correct": ""} | {name: f"{name}_" for name in CONTROLS}  # of "answer" and "scores" in a record


@dataclass(frozen=True)
class Question:
    """One question about one image, with its right answers."""

    id: str
    cluster: str  # the image: questions about one image belong together
    image: ImageRef
    text: str
    answers: tuple[str, ...]  # the answers of several people, or the right one
    options: tuple[str, ...] = ()  # the possible answers, if they are given
    statements: tuple[str, ...] = ()  # the same as captions, for models that only score
    slices: dict[str, str] = field(default_factory=dict)
    prompt: str = ""  # instead of the task's prompt
    group: str = ""  # the same for all rotations of the options of one question
    letters: str = ""  # of the options, if they are not A, B, C … in a row


@dataclass(frozen=True)
class QuestionTask:
    """Base class of tasks of questions: asking, parsing, controls, records."""

    conditions: ClassVar[tuple[str, ...]] = CONDITIONS
    name: str = "questions"
    needs: tuple[str, ...] = ("prompt|score",)
    file: str = ""  # the benchmark's own file; "": questions from the data
    images: str = ""  # the directory of its images
    n: int = 0  # the number of questions; 0: all, of a built-in world 300
    by: str = "auto"  # generate, likelihood or score
    prompt: str = "{question} Answer the question using a single word or phrase."
    prompts: tuple[str, ...] = ()  # several instead of one, to measure how much depends on the wording
    max_tokens: int = 16
    batch: int = 64
    seed: int = 0
    shots: int = 0
    train: str = ""  # the examples come from the training part of this data; "": the training part of the evaluated data

    # --- what a benchmark overrides ---

    def items(self, source: Source) -> Items:
        """The questions."""
        raise NotImplementedError

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a model's text; None if there is none. Never a guess."""
        return text.strip() or None

    def credit(self, record: Record, answer: str) -> float:
        """The credit of an answer, 0 to 1."""
        return float(answer in record["answers"])

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        """The questions about a training sample that can be shown as examples."""
        raise NotApplicable(f"{self.name} has no examples to show: leave out shots")

    def example_of(self, question: Question, way: str) -> Example:
        """A question with its answer, as an example."""
        assert isinstance(question.image, np.ndarray)
        answer = Counter(question.answers).most_common(1)[0][0]
        if way == "score":
            if not question.statements:
                raise NotApplicable(
                    f"shots: the example {question.id} has no statement that could be shown; by=generate shows its answer"
                )
            return Example(question.image, question.statements[question.options.index(answer)], "")
        return Example(question.image, answer, self.prompt_for(question))

    def prompt_for(self, question: Question) -> str:
        """The prompt with the question and its lettered options in it."""
        options = "\n".join(
            f"{letter}. {option}" for letter, option in zip(question.letters or LETTERS, question.options, strict=False)
        )
        return (question.prompt or self.prompt).replace("{question}", question.text).replace("{options}", options)

    def more_results(self, records: list[Record]) -> list[Result]:
        """Results beyond accuracy and selective prediction."""
        return []

    # --- running a model ---

    def way(self, model: Model, items: Sequence[Question]) -> str:
        """How the model answers: as the setting ``by`` says, or the first way that model and items allow. Raises NotApplicable if
        there is none.
        """
        closed, stated = all(q.options for q in items), all(q.statements for q in items)
        check_examples(model, self.shots)
        able = model.capabilities | ({"prompt"} if self.shots else set())  # examples can replace the ability to follow prompts
        missing = {
            "generate": {"prompt", "generate"} - able,
            "likelihood": {"prompt", "loglikelihood"} - able or (set() if closed else {"options to choose from"}),
            "score": {"score"} - model.capabilities or (set() if stated else {"statements to score"}),
        }
        if self.by not in ("auto", *WAYS):
            raise NotApplicable(f"by={self.by}: valid are auto, {', '.join(WAYS)}")
        for way in WAYS if self.by == "auto" else (self.by,):
            if not missing[way]:
                return way
        lacks = sorted(missing["score" if self.by == "auto" else self.by])
        abilities = [name for name in lacks if name in IN_WORDS]
        reason = f"it cannot {in_words(abilities)}" if abilities else f"there are no {' and no '.join(lacks)}"
        if self.by == "auto":
            raise NotApplicable(f"the model cannot answer: it follows no prompts, and {reason}")
        raise NotApplicable(f"the model cannot answer by {self.by}: {reason}")

    def run(self, model: Model, items: list[Question], records: Records, progress: Progress | None = None) -> None:
        """One record per question with the model's answers and its answers under the controls blind and, where there are other
        images, shuffled. With ``prompts`` each question is asked once per prompt, unless the model scores statements. Raises
        NotApplicable if the model can answer in none of the ways.
        """
        way = self.way(model, items)
        examples: list[Question] = getattr(items, "examples", [])
        if way != "score":
            items = [variant for q in items for variant in self._with_prompts(q)]
        others = self._others(items)
        load_file = lru_cache(maxsize=128)(
            lambda path: load_image(path, path)
        )  # questions about one image mostly follow each other

        def load(q: Question) -> Image:
            """The image of a question, uint8 [H, W, 3]."""
            return load_file(q.image) if isinstance(q.image, str) else load_image(q.image, q.id)

        blind: dict[Any, Any] = {}
        batch = batch_for(model, self.batch)
        for start in range(0, len(items), batch):
            rows = [i for i in range(start, min(start + batch, len(items))) if items[i].id not in records]
            if not rows:
                continue
            questions = [items[i] for i in rows]
            images = [load(q) for q in questions]
            answers = {"correct": self._answers(model, way, images, questions, examples)}
            answers["blind"] = self._blind(model, way, images, questions, examples, blind)
            if others:
                wrong = [load(others[q.cluster]) for q in questions]
                answers["shuffled"] = self._answers(model, way, wrong, questions, examples)
            more = {"examples": [e.id for e in examples]} if examples else {}
            records.add(
                self.with_credits({**self._record(model, way, q, {k: v[i] for k, v in answers.items()}), **more})
                for i, q in enumerate(questions)
            )
            if progress:
                progress(f"{self.name} {rows[-1] + 1}/{len(items)}")

    def _with_prompts(self, question: Question) -> list[Question]:
        """The question once for each of ``prompts``; its rotations with one prompt are a group of their own."""
        group = question.group
        variants = [
            replace(
                question,
                id=f"{question.id}~{i}",
                prompt=p,
                slices={**question.slices, "prompt": str(i)},
                group=f"{group}~{i}" if group else "",
            )
            for i, p in enumerate(self.prompts, 1)
        ]
        return variants or [question]

    def _others(self, items: Sequence[Question]) -> dict[str, Question]:
        """For each image, a question about another one; empty if there is only one."""
        first: dict[str, Question] = {}
        for q in items:
            first.setdefault(q.cluster, q)
        order = derangement(len(first), seed=self.seed)
        questions = list(first.values())
        return {} if order is None else {name: questions[i] for name, i in zip(first, order, strict=True)}

    def _answers(
        self, model: Model, way: str, images: list[Image], questions: Sequence[Question], examples: Sequence[Question]
    ) -> list[Any]:
        """A text for each question, or a score for each option of it. ``examples`` get the prompt of the question they precede."""
        shown = (
            [[self.example_of(replace(e, prompt=q.prompt or e.prompt), way) for e in examples] for q in questions]
            if examples
            else []
        )
        if way == "generate":
            prompts = [self.prompt_for(q) for q in questions]
            return list(model.generate(images, prompts, self.max_tokens, **examples_argument(shown)))
        texts = [(i, text) for i, q in enumerate(questions) for text in (q.options if way == "likelihood" else q.statements)]
        if way == "likelihood":
            prompts = [self.prompt_for(questions[i]) for i, _ in texts]
            before = examples_argument([shown[i] for i, _ in texts] if shown else [])
            values = model.loglikelihood([images[i] for i, _ in texts], [t for _, t in texts], prompts, **before)
        else:
            different = list(dict.fromkeys(text for _, text in texts))
            place = {text: j for j, text in enumerate(different)}
            distinct = list({id(image): image for image in images}.values())  # an image is encoded once
            row = {id(image): i for i, image in enumerate(distinct)}
            pairs = np.array([(row[id(images[i])], place[text]) for i, text in texts])
            values = model.score(distinct, different, pairs, **examples_argument(shown[0] if shown else []))
        owner = np.array([i for i, _ in texts])
        return [np.asarray(values)[owner == i] for i in range(len(questions))]

    def _blind(
        self,
        model: Model,
        way: str,
        images: list[Image],
        questions: Sequence[Question],
        examples: Sequence[Question],
        known: dict[Any, Any],
    ) -> list[Any]:
        """The answers about a grey image of the same size; the same question about the same grey image is asked once."""
        keys = [(image.shape, self.prompt_for(q), q.statements) for image, q in zip(images, questions, strict=True)]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        if new:
            grey = [blank(images[i]) for i in new.values()]
            given = dict(zip(new, self._answers(model, way, grey, [questions[i] for i in new.values()], examples), strict=True))
            known.update((key, answer) for key, answer in given.items() if not isinstance(answer, Unanswered))
            return [given[key] if key in given else known[key] for key in keys]
        return [known[key] for key in keys]

    def _record(self, model: Model, way: str, question: Question, answers: dict[str, Any]) -> Record:
        record = question_record(question) | {"by": way}
        if way == "score":
            record["statements"] = list(question.statements)
        else:
            record["prompt"] = self.prompt_for(question)
        if isinstance(question.image, str):
            record["image"] = question.image
        what = "answer" if way == "generate" else "scores"
        record |= failures(answers)
        answers = {condition: None if isinstance(value, Unanswered) else value for condition, value in answers.items()}
        record |= {f"{PREFIX[condition]}{what}": value for condition, value in answers.items()}
        if what == "scores":  # whether they are log-probabilities, which can be calibrated
            record["likelihoods"] = way == "likelihood" or "loglikelihood" in model.capabilities
        return record

    # --- from records alone ---

    def with_credits(self, record: Record) -> Record:
        """The record with the parsed answer and its credits."""
        record = dict(record)
        what = "answer" if "answer" in record else "scores"
        parsed = {
            condition: self.parsed(record, condition) for condition in self.conditions if f"{PREFIX[condition]}{what}" in record
        }
        for condition, answers in parsed.items():
            record[condition] = {"accuracy": mean([self.credit(record, a) for a in answers]) if answers else 0.0}
        own = parsed["correct"]
        record["parsed"] = " or ".join(own) or None  # several: they tie
        record["unparsed"] = not own
        record["ties"] = {"accuracy": int(len(own) > 1)}
        if record["options"]:
            record["chance"] = {"accuracy": mean([self.credit(record, option) for option in record["options"]])}
        if "scores" in record:
            scores = _floats(record["scores"])
            record["nans"] = count_not_finite(scores)
            record["confidence" if record["likelihoods"] else "margin"] = _confidence(scores, record["likelihoods"])
        return record

    def parsed(self, record: Record, condition: str) -> list[str]:
        """The answer; several if their scores tie; none if the text is null or cannot be parsed."""
        if "answer" in record:
            text = record[f"{PREFIX[condition]}answer"]
            answer = None if text is None else self.parse(record, text)
            return [] if answer is None else [answer]
        scores = lowest_if_not_finite(_floats(record[f"{PREFIX[condition]}scores"]))
        return [record["options"][i] for i in np.flatnonzero(scores == scores.max())]

    def summarise(self, records: list[Record]) -> list[Result]:
        """Accuracy, its spread over prompts, the benchmark's other results, and selective prediction where there are scores."""
        records = by_item(self.with_credits(r) for r in records)
        return [*self.accuracy_results(records), *self.selective(records)]

    def accuracy_results(self, records: list[Record]) -> list[Result]:
        """All but selective prediction, from records with credits that are sorted by item."""
        accuracy = [self._with_constant(r, records) for r in shares(self.name, records)]
        return [*accuracy, *self._over_prompts(accuracy), *self.more_results(records)]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """{metric: {item: credit}}: what a paired test compares."""
        by_item = {r["item"]: r["correct"]["accuracy"] for r in map(self.with_credits, records) if "correct" in r}
        return {"accuracy": by_item} if by_item else {}

    def _over_prompts(self, results: list[Result]) -> list[Result]:
        """The lowest and the highest accuracy of several prompts; without an interval, since prompts are not drawn at random."""
        result = next((r for r in results if r.metric == "accuracy"), None)
        values = [s["value"] for s in (result.slices if result else []) if s["slice"].startswith("prompt=")]
        if result is None or len(values) < 2:
            return []
        ends = spread(values)
        return [
            replace(result, metric=f"accuracy/{name}_prompt", value=value, low=None, high=None, band=None, slices=[], controls={})
            for name, value in (("lowest", ends.low), ("highest", ends.high))
        ]

    def _with_constant(self, result: Result, records: list[Record]) -> Result:
        if result.metric != "accuracy":
            return result
        return replace(result, controls={**result.controls, "constant": self.constant(records)})

    def constant(self, records: list[Record]) -> float:
        """The accuracy of the best single answer to all questions, among the ten that are right most often."""
        common = Counter(a for r in records for a in set(r["answers"]))
        return max((mean([self.credit(r, answer) for r in records]) for answer, _ in common.most_common(10)), default=0.0)

    def selective(self, records: list[Record]) -> list[Result]:
        """Selective prediction and calibration, if the model scored options."""
        values = [r.get("confidence", r.get("margin")) for r in records]
        if not records or any(v is None for v in values):
            return []
        confidence, credit = np.array(values), np.array([r["correct"]["accuracy"] for r in records])
        clusters, by = [r["cluster"] for r in records], records[0]["by"]
        results = coverage_results(self.name, confidence, credit, clusters, by=by)
        if all(r["likelihoods"] for r in records):
            results += calibration_results(self.name, confidence, credit, clusters, by=by)
        return results


def question_record(question: Question) -> Record:
    """The part of a record that describes its question."""
    record: Record = {
        "item": question.id,
        "cluster": question.cluster,
        "slices": question.slices,
        "question": question.text,
        "answers": list(question.answers),
        "options": list(question.options),
    }
    more = {"group": question.group, "letters": question.letters}
    return record | {name: value for name, value in more.items() if value}


def answer_records(
    task: QuestionTask, questions: Iterable[Question], given: Mapping[str, Any], scored: bool = False
) -> list[Record]:
    """Records with credits of answers from a file: {question id: text or null, or with ``scored`` a score for each option}."""
    records = []
    for q in questions:
        answer = {"scores": given[q.id], "likelihoods": False} if scored else {"answer": given[q.id]}
        records.append(task.with_credits(question_record(q) | answer))
    return by_item(records)


def _floats(scores: Sequence[float | None]) -> np.ndarray:
    """Scores as float64; null is NaN."""
    return np.array([np.nan if s is None else s for s in scores], dtype=np.float64)


def _confidence(scores: np.ndarray, likelihoods: bool) -> float:
    """The best option's share of the probability, or the distance of its score from the next one."""
    scores = lowest_if_not_finite(scores)
    if not np.isfinite(scores).any():
        return 0.0
    if likelihoods:
        share = np.exp(scores - scores.max())
        return float(share.max() / share.sum())
    last, best = np.sort(scores)[-2:] if len(scores) > 1 else (scores[0], scores[0])
    return float(min(best - last, 1e30))
