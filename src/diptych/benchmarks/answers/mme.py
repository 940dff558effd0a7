"""MME: two yes/no questions per image (Fu et al., arXiv:2306.13394). Per subtask accuracy + accuracy⁺ (both right), out of 200.

File: VLMEvalKit's MME.tsv (index, question, answer, category, image in base64 or image_path).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych.benchmarks.answers.choices import Choices, read_answers
from diptych.benchmarks.answers.pope import YES_NO, parse_yes_no
from diptych.benchmarks.answers.questions import CONDITIONS
from diptych.benchmarks.base import Items, NotApplicable
from diptych.benchmarks.pictures import Pictures
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.results import distinct, of_sums
from diptych.benchmarks.tables import Row
from diptych.core.errors import DiptychError
from diptych.data.source import Source


def mme_counts(credits: Sequence[float], images: Sequence[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    """The images and, per image, its questions, questions right, images (1), images with all right; float [I, 4]."""
    of: dict[Hashable, list[float]] = {}
    for credit, image in zip(credits, images, strict=True):
        of.setdefault(image, []).append(credit)
    rows = [[len(c), sum(c), 1, math.prod(c)] for c in of.values()]  # ties are independent: all right by the product
    return list(of), np.array(rows, dtype=np.float64).reshape(-1, 4)


def mme_of_counts(sums: np.ndarray) -> np.ndarray:
    """100 · (accuracy + accuracy⁺) of column sums [..., 4]: out of 200."""
    questions, right, images, whole = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    score: np.ndarray = 100 * (right / np.maximum(questions, 1) + whole / np.maximum(images, 1))
    return score


@dataclass(frozen=True)
class Mme(Choices):
    """MME: two yes-or-no questions for each image (Fu et al. 2023)."""

    name: str = "mme"
    prompt: str = "{question}"

    def items(self, source: Source) -> Items:
        """The questions."""
        if not self.file:
            raise NotApplicable("MME is read from its file: ?file=MME.tsv")
        return self.read(Pictures(self.images, self.file))

    def _options(self, row: Row) -> list[str]:
        answer = row.text("answer")
        if answer.lower() not in YES_NO:
            raise DiptychError(f"{row.where}: field 'answer': expected Yes or No, found '{answer}'")
        if all(row.get(name) is None for name in ("image", "image_path", "image_id")):
            raise DiptychError(f"{row.where}: mme needs the field 'image'")
        row["answer"], row["category"] = answer.lower(), row.text("category", "subtask")
        return list(YES_NO)

    def parse(self, record: Record, text: str) -> str | None:
        """The answer in a model's text; None if there is none."""
        answer = parse_yes_no(text)
        return None if answer is None else YES_NO[not answer]

    def more_results(self, records: list[Record]) -> list[Result]:
        """The score of each subtask."""
        return [
            self._subtask(name, [r for r in records if r["slices"]["category"] == name])
            for name in sorted({r["slices"]["category"] for r in records})
        ]

    def _subtask(self, name: str, records: list[Record]) -> Result:
        # an image counts once for each prompt: accuracy⁺ asks for its questions, not for all prompts
        asked = [(str(r["cluster"]), r["slices"].get("prompt", "")) for r in records]
        clusters = [cluster for cluster, _ in dict.fromkeys(asked)]

        def score(credits: Sequence[float]) -> float:
            """MME's score of a subtask: accuracy plus accuracy+, at most 200."""
            return float(mme_of_counts(mme_counts(credits, asked)[1].sum(0)))

        counts = mme_counts([r["correct"]["accuracy"] for r in records], asked)[1]
        unparsed = sum(r["unparsed"] for r in records)
        best = score([1.0 if r["unparsed"] else r["correct"]["accuracy"] for r in records])
        fields: dict[str, Any] = {
            "chance": score([0.5] * len(records)),
            "controls": {
                condition: score([r[condition]["accuracy"] for r in records])
                for condition in CONDITIONS[1:]
                if all(condition in r for r in records)
            },
            "unparsed": unparsed,
            "band": (float(mme_of_counts(counts.sum(0))), best) if unparsed else None,
            "by": records[0].get("by", ""),
        }
        result = of_sums(self.name, f"{name} (of 200)", counts, mme_of_counts, clusters, bounded=False, **fields)
        return replace(result, n=len(records))


def score_files(questions: Path, answers: Path) -> list[Result]:
    """Accuracy, the score of each subtask, and their total: diptych metrics multiple-choice --mode mme."""
    task = Mme(name="multiple-choice", file=str(questions))
    records = read_answers(task, answers)
    plain, *subtasks = task.accuracy_results(records)
    subtasks = [replace(r, metric=f"{r.metric.removesuffix(' (of 200)')}: mme_score") for r in subtasks]
    clusters = distinct([r["cluster"] for r in records])
    total = sum(r.value or 0.0 for r in subtasks)
    everything = Result(
        "multiple-choice", "mme_score, all subtasks", total, None, None, len(records), clusters, unparsed=plain.unparsed
    )
    return [plain, *subtasks, everything]
