"""Reading print: questions about a single text of a picture, by the height of the print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diptych.benchmarks.answers.documents import anls
from diptych.benchmarks.answers.questions import Question
from diptych.benchmarks.answers.samples import BUILT_IN
from diptych.benchmarks.base import Items, NotApplicable, readable
from diptych.benchmarks.reading.base import Credited
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import of_credits, of_sums, take
from diptych.benchmarks.statistics import mean
from diptych.core.capabilities import Model
from diptych.data.source import Problem, Source

READING = ("sign", "label", "number", "note")  # kinds of questions that ask for a text
METRICS = ("accuracy", "anls", "half_height")


@dataclass(frozen=True)
class PrintQuestion(Question):
    """A question about print of a known height in pixels."""

    height: int = 0


@dataclass(frozen=True)
class Read(Credited):
    """What signs, labels and small print say (``scenes:text``): exact match and ANLS, sliced by the height of the print.

    ``half_height``: the least height of print, in pixels of the picture, from which on at least half of the texts are read;
    not given if the largest print is not read as often.
    """

    name: str = "read"
    kinds: tuple[str, ...] = READING
    step: int = 2  # heights of print in one slice, in pixels

    def items(self, source: Source) -> Items:
        """The questions of the samples that say how high the print is (``height``). Raises NotApplicable if there are none."""
        if self.file:
            raise NotApplicable("it reads no files; textvqa, docvqa, chartqa and ocrbench do")
        if self.step < 1:
            raise NotApplicable(f"step={self.step}: must be at least 1 pixel")
        problems: list[Problem] = []
        found: list[Question] = []
        limit = self.n or BUILT_IN
        for count, sample in enumerate(readable(source, problems), 1):
            for number, given in enumerate(sample.extra.get("questions") or []):
                if given.get("height") and given.get("kind") in self.kinds and sample.image is not None:
                    options, statements = source.options(sample, given) if hasattr(source, "options") else ((), ())
                    found.append(
                        PrintQuestion(
                            f"{sample.id}#{number}",
                            sample.id,
                            sample.image,
                            given["question"],
                            (str(given["answer"]),),
                            tuple(options),
                            tuple(statements),
                            {"kind": given["kind"], "print": self.bin(given["height"])},
                            height=int(given["height"]),
                        )
                    )
            if len(found) >= limit or (not found and count == 100):
                break
        if len({q.cluster for q in found}) < 2:
            raise NotApplicable("the samples have no questions about print of known height; scenes:text has")
        return Items(self._with_candidates(found[:limit]), problems)

    def bin(self, height: int) -> str:
        """The slice of a height: "06–07 px", in an order that sorts."""
        low = height - height % self.step
        return f"{low:02d} px" if self.step == 1 else f"{low:02d}–{low + self.step - 1:02d} px"

    def _record(self, model: Model, way: str, question: Question, answers: dict[str, Any]) -> Record:
        assert isinstance(question, PrintQuestion)
        return {**super()._record(model, way, question, answers), "height": question.height}

    def parse(self, record: Record, text: str) -> str | None:
        """As of other questions, without a full stop at the end."""
        answer = super().parse(record, text)
        return None if answer is None else answer.rstrip(".").strip() or None

    def more_credits(self, record: Record, answer: str) -> dict[str, float]:
        """ANLS."""
        return {"anls": anls(answer, record["answers"])}

    def more_results(self, records: list[Record]) -> list[Result]:
        """``half_height``, with its interval over pictures."""
        points = curve(records)
        if not points or points[-1].accuracy < 0.5:
            return []
        known = sorted({p.height for p in points})
        place = {height: k for k, height in enumerate(known)}
        sums = np.zeros((len(records), 2 * len(known)))
        for row, r in zip(sums, records, strict=True):
            k = place[int(r["height"])]
            row[k], row[len(known) + k] = 1, r["correct"]["accuracy"]

        def half(total: np.ndarray) -> np.ndarray:
            """Of column sums [..., 2 · heights]; the greatest height where not even that is read half of the time."""
            n, right = np.split(total, 2, axis=-1)
            enough = np.where(n > 0, right >= n / 2, True)
            trailing = np.flip(np.cumprod(np.flip(enough, -1), -1), -1).sum(-1)  # heights at the end that are all read
            result: np.ndarray = np.array(known, float)[np.clip(len(known) - trailing, 0, len(known) - 1)]
            return result

        clusters = [r["cluster"] for r in records]
        by = records[0].get("by", "")
        return [of_sums(self.name, "half_height", sums, half, clusters, bounded=False, higher_is_better=False, by=by)]


# --- accuracy against print size ---


class Point(NamedTuple):
    """How well print of one height is read. low, high: 95 % interval of the accuracy over pictures."""

    height: int  # pixels
    n: int
    accuracy: float
    low: float | None
    high: float | None
    anls: float


def curve(records: Sequence[Record]) -> list[Point]:
    """Accuracy and ANLS at each height of print, from the records of ``read``, the smallest print first."""
    heights = np.array([int(r["height"]) for r in records])
    points = []
    for height in np.unique(heights):
        rows = take(list(records), np.flatnonzero(heights == height))
        at = of_credits("", "", [r["correct"]["accuracy"] for r in rows], [r["cluster"] for r in rows])
        points.append(
            Point(int(height), len(rows), float(at.value or 0), at.low, at.high, mean([r["correct"]["anls"] for r in rows]))
        )
    return points


def table(models: dict[str, Sequence[Record]], step: int = 2) -> str:
    """Accuracy against height of print as Markdown, in per cent with intervals: a row for each slice of heights, a column for each
    model. models: the records of ``read`` by name.
    """
    binned: dict[str, dict[int, list[Any]]] = {}
    for name, records in models.items():
        for r in records:
            low = int(r["height"]) // step * step
            binned.setdefault(name, {}).setdefault(low, []).append(r)
    lows = sorted({low for of in binned.values() for low in of})
    lines = [f"| print, px | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for low in lows:
        cells = []
        for name in models:
            rows = binned.get(name, {}).get(low, [])
            at = of_credits("", "", [r["correct"]["accuracy"] for r in rows], [r["cluster"] for r in rows]) if rows else None
            cells.append(_cell(at))
        lines.append(f"| {low if step == 1 else f'{low}–{low + step - 1}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Result | None) -> str:
    if result is None or result.value is None:
        return "—"
    interval = "" if result.low is None or result.high is None else f" [{100 * result.low:.0f}, {100 * result.high:.0f}]"
    return f"{100 * result.value:.0f}{interval} (n {result.n})"
