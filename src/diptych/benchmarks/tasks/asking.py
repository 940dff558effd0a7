"""What the tasks share that put a question about an image, however a model can answer: one base, three ways.

| way | what the model does | what it needs |
|---|---|---|
| ``generate`` | writes an answer, which is parsed; what cannot be parsed earns nothing and widens the band | prompt, generate |
| ``likelihood`` | the option of the highest log P(option given image and prompt) | prompt, loglikelihood; options |
| ``score`` | the statement that fits the image best, one statement an option | score; statements |

Blind: the same about a grey image. Shuffled: about another image. Constant: the one answer that would do best for all.
``shots``: so many training images, each with a question and its answer, are shown before, the same for every item and control, drawn by the seed. A language
model that learned captions alone then answers, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from diptych.benchmarks.controls import blank, derangement
from diptych.benchmarks.metrics import calibration, selective
from diptych.benchmarks.metrics.ranking import lowest_if_not_finite
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.statistics import function_interval, mean, mean_interval, spread, sums_interval
from diptych.benchmarks.tasks.base import Items, NotApplicable, Progress, not_finite, shares
from diptych.benchmarks.tasks.published import Shown, pixels
from diptych.benchmarks.tasks.shots import check_takes, told
from diptych.core.capabilities import Example, Image, Model
from diptych.core.sample import Sample
from diptych.data.source import Source

WAYS = ("generate", "likelihood", "score")
LOOKS = ("correct", "blind", "shuffled")  # at the image, at a grey one, at another
PREFIX = {"correct": "", "blind": "blind_", "shuffled": "shuffled_"}  # of "answer" and "scores" in a record
RISKS = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Question:
    id: str
    cluster: str  # the image: questions about one image stand or fall together
    image: Shown
    text: str
    answers: tuple[str, ...]  # those of the people asked, or the right one
    options: tuple[str, ...] = ()  # what may be answered, where that is given
    statements: tuple[str, ...] = ()  # the same as captions, for models that only score
    slices: dict[str, str] = field(default_factory=dict)
    prompt: str = ""  # another one than the task's


@dataclass(frozen=True)
class Asking:
    name: str = "asking"
    needs: tuple[str, ...] = ("prompt|score",)
    file: str = ""  # the benchmark's own file; "": questions from the data
    images: str = ""  # the directory of its pictures
    n: int = 0  # so many questions; 0: all, of a built-in world 300
    by: str = "auto"  # generate, likelihood or score
    prompt: str = "{question} Answer the question using a single word or phrase."
    prompts: tuple[str, ...] = ()  # several to be asked with, instead of one: how much hangs on the wording?
    max_tokens: int = 16
    batch: int = 64
    seed: int = 0
    shots: int = 0
    train: str = ""  # data whose training part the examples come from; "": that of the data

    # --- what a task says ---

    def items(self, source: Source) -> Items:
        raise NotImplementedError

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a text; None if there is none. Never a guess."""
        return text.strip() or None

    def credit(self, record: Record, answer: str) -> float:
        """What an answer earns, 0 to 1."""
        return float(answer in record["answers"])

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        """What of a training sample can be shown before a question."""
        raise NotApplicable(f"{self.name} has no examples to show: leave out shots")

    def shown(self, question: Question, way: str) -> Example:
        """A question with its answer, as an example."""
        assert isinstance(question.image, np.ndarray)
        answer = Counter(question.answers).most_common(1)[0][0]
        if way == "score":
            if not question.statements:
                raise NotApplicable(
                    f"shots: the example {question.id} has no statement that could be shown; by=generate shows its answer"
                )
            return Example(question.image, question.statements[question.options.index(answer)], "")
        return Example(question.image, answer, self.asked(question))

    def asked(self, question: Question) -> str:
        """The prompt."""
        options = "\n".join(
            f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", question.options, strict=False)
        )
        return (question.prompt or self.prompt).replace("{question}", question.text).replace("{options}", options)

    def more(self, records: list[Record]) -> list[Result]:
        """Results beyond accuracy and selective prediction."""
        return []

    # --- how it goes ---

    def way(self, model: Model, items: Sequence[Question]) -> str:
        """The setting, or the first way that model and items allow."""
        closed, stated = all(q.options for q in items), all(q.statements for q in items)
        check_takes(model, self.shots)
        able = model.capabilities | ({"prompt"} if self.shots else set())  # it goes on as it was shown
        lacks = {
            "generate": {"prompt", "generate"} - able,
            "likelihood": {"prompt", "loglikelihood"} - able or (set() if closed else {"options to choose from"}),
            "score": {"score"} - model.capabilities or (set() if stated else {"statements to score"}),
        }
        if self.by not in ("auto", *WAYS):
            raise NotApplicable(f"by={self.by}: valid are auto, {', '.join(WAYS)}")
        for way in WAYS if self.by == "auto" else (self.by,):
            if not lacks[way]:
                return way
        said = lacks["score" if self.by == "auto" else self.by]
        raise NotApplicable(f"it cannot answer: no {' and no '.join(sorted(said))}, and it follows no prompts" if self.by == "auto" else
                            f"it cannot answer by {self.by}: no {' and no '.join(sorted(said))}")  # fmt: skip

    def run(self, model: Model, items: list[Question], records: Records, progress: Progress | None = None) -> None:
        way = self.way(model, items)
        before: list[Question] = getattr(items, "examples", [])
        if way != "score":
            items = [p for q in items for p in self._worded(q)]
        others = self._shuffled(items)
        load = lru_cache(maxsize=128)(lambda path: pixels(path, path))  # questions about one image mostly stand together
        blind: dict[Any, Any] = {}
        for start in range(0, len(items), self.batch):
            rows = [i for i in range(start, min(start + self.batch, len(items))) if items[i].id not in records]
            if not rows:
                continue
            asked = [items[i] for i in rows]
            seen = [load(q.image) if isinstance(q.image, str) else pixels(q.image, q.id) for q in asked]
            found = {"correct": self._answers(model, way, seen, asked, before)}
            found["blind"] = self._blind(model, way, seen, asked, before, blind)
            if others:
                strange = [others[q.cluster] for q in asked]
                wrong = [load(q.image) if isinstance(q.image, str) else pixels(q.image, q.id) for q in strange]
                found["shuffled"] = self._answers(model, way, wrong, asked, before)
            noted = {"examples": [e.id for e in before]} if before else {}
            records.add(
                self.judge({**self._record(model, way, q, {k: v[i] for k, v in found.items()}), **noted})
                for i, q in enumerate(asked)
            )
            if progress:
                progress(f"{self.name} {rows[-1] + 1}/{len(items)}")

    def _worded(self, question: Question) -> list[Question]:
        """The question once for each prompt."""
        several = enumerate(self.prompts, 1)
        worded = [
            replace(question, id=f"{question.id}~{i}", prompt=p, slices={**question.slices, "prompt": str(i)}) for i, p in several
        ]
        return worded or [question]

    def _shuffled(self, items: Sequence[Question]) -> dict[str, Question]:
        """For each image, a question about another; empty if there is but one."""
        first: dict[str, Question] = {}
        for q in items:
            first.setdefault(q.cluster, q)
        order = derangement(len(first), seed=self.seed)
        images = list(first.values())
        return {} if order is None else {name: images[i] for name, i in zip(first, order, strict=True)}

    def _answers(
        self, model: Model, way: str, seen: list[Image], asked: Sequence[Question], before: Sequence[Question]
    ) -> list[Any]:
        """A text each, or a score for each option of each, behind the examples ``before``, which are worded as each question is."""
        shown = [[self.shown(replace(e, prompt=q.prompt or e.prompt), way) for e in before] for q in asked] if before else []
        if way == "generate":
            return list(model.generate(seen, [self.asked(q) for q in asked], self.max_tokens, **told(shown)))
        texts = [(i, text) for i, q in enumerate(asked) for text in (q.options if way == "likelihood" else q.statements)]
        if way == "likelihood":
            asked_of, of = [self.asked(asked[i]) for i, _ in texts], [shown[i] for i, _ in texts] if shown else []
            values = model.loglikelihood([seen[i] for i, _ in texts], [t for _, t in texts], asked_of, **told(of))
        else:
            once = list(dict.fromkeys(text for _, text in texts))
            place = {text: j for j, text in enumerate(once)}
            distinct = list({id(image): image for image in seen}.values())  # an image is encoded once
            row = {id(image): i for i, image in enumerate(distinct)}
            pairs = np.array([(row[id(seen[i])], place[text]) for i, text in texts])
            values = model.score(distinct, once, pairs, **told(shown[0] if shown else []))
        owner = np.array([i for i, _ in texts])
        return [np.asarray(values)[owner == i] for i in range(len(asked))]

    def _blind(
        self,
        model: Model,
        way: str,
        seen: list[Image],
        asked: Sequence[Question],
        before: Sequence[Question],
        known: dict[Any, Any],
    ) -> list[Any]:
        """Of a grey image of the same size; the same question about the same grey is put but once."""
        keys = [(image.shape, self.asked(q), q.statements) for image, q in zip(seen, asked, strict=True)]
        fresh = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        if fresh:
            said = self._answers(model, way, [blank(seen[i]) for i in fresh.values()], [asked[i] for i in fresh.values()], before)
            known.update(zip(fresh, said, strict=True))
        return [known[key] for key in keys]

    def _record(self, model: Model, way: str, question: Question, found: dict[str, Any]) -> Record:
        kept: Record = {
            "item": question.id,
            "cluster": question.cluster,
            "slices": question.slices,
            "question": question.text,
            "answers": list(question.answers),
            "options": list(question.options),
            "by": way,
        }
        if way == "score":
            kept["statements"] = list(question.statements)
        else:
            kept["prompt"] = self.asked(question)
        if isinstance(question.image, str):
            kept["image"] = question.image
        what = "answer" if way == "generate" else "scores"
        kept |= {f"{PREFIX[look]}{what}": value for look, value in found.items()}
        if what == "scores":  # whether they are log-probabilities, which can be calibrated
            kept["likelihoods"] = way == "likelihood" or "loglikelihood" in model.capabilities
        return kept

    # --- from records alone ---

    def judge(self, record: Record) -> Record:
        """The record with credits, from what the model said or scored."""
        record = dict(record)
        what = "answer" if "answer" in record else "scores"
        parsed = {look: self._parsed(record, look) for look in LOOKS if f"{PREFIX[look]}{what}" in record}
        for look, answers in parsed.items():
            record[look] = {"accuracy": mean([self.credit(record, a) for a in answers]) if answers else 0.0}
        own = parsed["correct"]
        record["parsed"] = " or ".join(own) or None  # several: they tie
        record["unparsed"] = not own
        record["ties"] = {"accuracy": int(len(own) > 1)}
        if record["options"]:
            record["chance"] = {"accuracy": mean([self.credit(record, option) for option in record["options"]])}
        if "scores" in record:
            scores = _numbers(record["scores"])
            record["nans"] = not_finite(scores)
            record["confidence" if record["likelihoods"] else "margin"] = _sureness(scores, record["likelihoods"])
        return record

    def _parsed(self, record: Record, look: str) -> list[str]:
        """The answer; several if they tie; none if it could not be parsed."""
        if "answer" in record:
            answer = self.parse(record, record[f"{PREFIX[look]}answer"])
            return [] if answer is None else [answer]
        scores = lowest_if_not_finite(_numbers(record[f"{PREFIX[look]}scores"]))
        return [record["options"][i] for i in np.flatnonzero(scores == scores.max())]

    def summarise(self, records: list[Record]) -> list[Result]:
        return self.results(sorted((self.judge(r) for r in records), key=lambda r: str(r["item"])))

    def results(self, records: list[Record]) -> list[Result]:
        """From judged records, in the order of their names."""
        found = [self._with_constant(r, records) for r in shares(self.name, records)]
        return [*found, *self.over_prompts(found), *self.more(records), *self.selective(records)]

    def credits(self, records: list[Record]) -> dict[str, dict[str, float]]:
        return {"accuracy": {r["item"]: r["correct"]["accuracy"] for r in map(self.judge, records)}}

    def over_prompts(self, found: list[Result]) -> list[Result]:
        """The lowest, the mean and the highest accuracy of several prompts: no interval, these are not drawn."""
        result = next((r for r in found if r.metric == "accuracy"), None)
        values = [s["value"] for s in (result.slices if result else []) if s["slice"].startswith("prompt=")]
        if result is None or len(values) < 2:
            return []
        told = spread(values)
        return [
            replace(result, metric=f"accuracy/{name}_prompt", value=value, low=None, high=None, band=None, slices=[], controls={})
            for name, value in (("lowest", told.low), ("highest", told.high))
        ]

    def _with_constant(self, result: Result, records: list[Record]) -> Result:
        if result.metric != "accuracy":
            return result
        return replace(result, controls={**result.controls, "constant": self.constant(records)})

    def constant(self, records: list[Record]) -> float:
        """What the best single answer to everything would get."""
        common = Counter(a for r in records for a in set(r["answers"]))
        return max((mean([self.credit(r, answer) for r in records]) for answer, _ in common.most_common(10)), default=0.0)

    def selective(self, records: list[Record]) -> list[Result]:
        """Answering only when sure, and whether a probability means what it says; only where there are scores."""
        sure = [r.get("confidence", r.get("margin")) for r in records]
        if not records or any(s is None for s in sure):
            return []
        confidence = np.array(sure)
        credit = np.array([r["correct"]["accuracy"] for r in records])
        clusters = [r["cluster"] for r in records]
        common: dict[str, Any] = {"n": len(records), "clusters": len(set(clusters)), "by": records[0]["by"]}
        area = function_interval(lambda i: selective.area_under_risk(confidence[i], credit[i]), clusters, share=True, resamples=500)
        error = 1 - mean(credit)  # what an uninformative confidence gets
        found = [
            Result(self.name, "risk_coverage_area", area.value, area.low, area.high, chance=error, higher_is_better=False, **common)
        ]
        for risk in RISKS:
            at_risk = partial(_coverage, confidence, credit, risk)
            cover = function_interval(at_risk, clusters, share=True, resamples=500)
            found.append(Result(self.name, f"coverage@{risk:.0%}_risk", cover.value, cover.low, cover.high, **common))
        if all(r["likelihoods"] for r in records):
            ece = sums_interval(calibration.bin_sums(confidence, credit), calibration.ece_of_sums, clusters, share=True)
            brier = mean_interval(calibration.brier_items(confidence, credit), clusters)
            for name, interval in (("ece", ece), ("brier", brier)):
                found.append(Result(self.name, name, interval.value, interval.low, interval.high, higher_is_better=False, **common))
        return found


def _coverage(confidence: np.ndarray, credit: np.ndarray, risk: float, index: np.ndarray) -> float:
    return selective.coverage_at_risk(confidence[index], credit[index], risk)


def _numbers(scores: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if s is None else s for s in scores], dtype=np.float64)


def _sureness(scores: np.ndarray, likelihoods: bool) -> float:
    """How sure: the best option's share of the probability, or how far it stands above the next one."""
    scores = lowest_if_not_finite(scores)
    if not np.isfinite(scores).any():
        return 0.0
    if likelihoods:
        share = np.exp(scores - scores.max())
        return float(share.max() / share.sum())
    last, best = np.sort(scores)[-2:] if len(scores) > 1 else (scores[0], scores[0])
    return float(min(best - last, 1e30))
