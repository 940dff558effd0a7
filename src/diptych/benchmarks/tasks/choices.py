"""One right option among several: MMBench (arXiv:2307.06281), SEED-Bench (arXiv:2307.16125), MMMU (arXiv:2311.16502), MME, scenes.

Files: the .tsv of MMBench and SEED-Bench (question, A, B, …, answer, image in base64 or image_path), MMMU's .parquet
(question, options, answer, image_1), or rows with image, question, options and answer. ``circular``: a question counts
only if it is answered right in every rotation of its options. A model that only scores compares "question option".
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from diptych.benchmarks.metrics.multiple_choice import LETTERS, circular, mme_counts, mme_of_counts, parse_choice
from diptych.benchmarks.metrics.pope import parse_yes_no
from diptych.benchmarks.records import Record, Result
from diptych.benchmarks.statistics import mean, mean_interval, sums_interval
from diptych.benchmarks.tasks.asking import LOOKS, Asking, Question
from diptych.benchmarks.tasks.base import Items, NotApplicable
from diptych.benchmarks.tasks.published import Pictures, Row, Shown, embedded, limited, rows, unique
from diptych.benchmarks.tasks.vqa import from_samples, of_sample
from diptych.core.capabilities import Example
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source


@dataclass(frozen=True)
class Choices(Asking):
    name: str = "choices"
    prompt: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
    statement: str = "{question} {option}"
    circular: bool = False

    def items(self, source: Source) -> Items:
        if not self.file:
            found = from_samples(source, self.n)
            if not all(q.options for q in found):
                raise NotApplicable("the source's questions have no options; give ?file=")
        else:
            found = self.read()
        return Items((r for q in found for r in self._rotations(q)), found.problems) if self.circular else found

    def examples(self, source: Source, sample: Sample) -> Iterable[Question]:
        return [q for q in of_sample(source, sample) if q.options]

    def shown(self, question: Question, way: str) -> Example:
        example = super().shown(question, way)  # by its letter, where that is asked for
        return example._replace(text=LETTERS[question.options.index(example.text)]) if way == "generate" else example

    def read(self) -> Items:
        pictures, shared = Pictures(self.images, self.file), {}
        table = rows(self.file)
        for row in table:  # SEED and MMBench keep a picture once and name the row that has it
            if isinstance(row.get("image"), str) and len(row["image"]) > 200:
                shared[row.text("index", "id")] = row["image"]
        problems = [Problem(row.text("id", "index"), why) for row in table if (why := _unfit(row))]
        found = limited((self._question(row, pictures, shared) for row in table if not _unfit(row)), self.n)
        unique((q.id for q in found), self.file, "question")
        if not found:
            raise DiptychError(f"{self.file}: no question of one picture with options")
        return Items(found, problems)

    def _question(self, row: Row, pictures: Pictures, shared: dict[str, Any]) -> Question:
        name, options = row.text("index", "id", "question_id"), _options(row)
        answer = row.text("answer")
        if answer in options:
            right = options.index(answer)
        elif answer.upper() in tuple(LETTERS[: len(options)]):
            right = LETTERS.index(answer.upper())
        elif answer.isdigit() and int(answer) < len(options):
            right = int(answer)
        else:
            raise DiptychError(f"{row.where}: field 'answer': '{answer}' is none of the {len(options)} options")
        hint = str(row.get("hint") or "").strip()
        question = f"{hint}\n{row.text('question')}" if hint and hint != "nan" else row.text("question")
        image, cluster = _picture(row, pictures, shared)
        kinds = {k: str(row[k]) for k in ("category", "l2-category", "subfield", "topic_difficulty") if row.get(k)}
        said = tuple(self.statement.replace("{question}", question).replace("{option}", o) for o in options)
        return Question(name, cluster or name, image, question, (options[right],), tuple(options), said, kinds)

    def _rotations(self, q: Question) -> list[Question]:
        turned = []
        for k in range(len(q.options)):
            options, said = q.options[k:] + q.options[:k], q.statements[k:] + q.statements[:k]
            turned.append(replace(q, id=f"{q.id}@{k}", options=options, statements=said))
        return turned

    def parse(self, record: Record, text: str) -> str | None:
        index = parse_choice(text, record["options"])
        return None if index is None else record["options"][index]

    def constant(self, records: list[Record]) -> float:
        """The best fixed place among the options: by how much the order gives the answer away."""
        most = max(len(r["options"]) for r in records)
        return max(mean([self.credit(r, r["options"][i]) if i < len(r["options"]) else 0.0 for r in records]) for i in range(most))

    def more(self, records: list[Record]) -> list[Result]:
        """With rotations, the circular accuracy: chance is that of a scorer without opinion, who ties in all of them."""
        if not self.circular:
            return []
        whole = [re.sub(r"@\d+", "", r["item"]) for r in records]
        cluster = {name: r["cluster"] for name, r in zip(whole, records, strict=True)}
        values = {
            look: circular([r[look]["accuracy"] for r in records], whole) for look in LOOKS if all(look in r for r in records)
        }
        chances = circular([r["chance"]["accuracy"] for r in records], whole)
        own = values["correct"]
        at = mean_interval(list(own.values()), [cluster[str(name)] for name in own])
        controls = {look: mean(list(of.values())) for look, of in values.items() if look != "correct"}
        n, clusters, chance = len(own), len(set(cluster.values())), mean(list(chances.values()))
        return [
            Result(self.name, "circular", at.value, at.low, at.high, n, clusters, chance, controls=controls, by=records[0]["by"])
        ]


@dataclass(frozen=True)
class Mme(Choices):
    """MME (Fu et al., arXiv:2306.13394): two yes/no questions an image; accuracy and accuracy⁺ (both right), out of 200 a subtask."""

    name: str = "mme"
    prompt: str = "{question}"

    def items(self, source: Source) -> Items:
        if not self.file:
            raise NotApplicable("MME is read from its file: ?file=MME.tsv")
        return self.read()

    def _question(self, row: Row, pictures: Pictures, shared: dict[str, Any]) -> Question:
        answer = row.text("answer").lower()
        if answer not in ("yes", "no"):
            raise DiptychError(f"{row.where}: field 'answer': expected Yes or No, found '{answer}'")
        image, cluster = _picture(row, pictures, shared)
        question = row.text("question")
        said = tuple(self.statement.replace("{question}", question).replace("{option}", o) for o in ("yes", "no"))
        kind = {"category": row.text("category")}
        return Question(row.text("index", "id"), cluster or str(image)[:80], image, question, (answer,), ("yes", "no"), said, kind)

    def parse(self, record: Record, text: str) -> str | None:
        said = parse_yes_no(text)
        return None if said is None else ("yes" if said else "no")

    def more(self, records: list[Record]) -> list[Result]:
        found = []
        for name in sorted({r["slices"]["category"] for r in records}):
            mine = [r for r in records if r["slices"]["category"] == name]
            images, counts = mme_counts([r["correct"]["accuracy"] for r in mine], [r["cluster"] for r in mine])
            at = sums_interval(counts, mme_of_counts, [str(i) for i in images])
            controls = {
                look: float(mme_of_counts(mme_counts([r[look]["accuracy"] for r in mine], [r["cluster"] for r in mine])[1].sum(0)))
                for look in LOOKS[1:]
                if all(look in r for r in mine)
            }
            even = float(mme_of_counts(mme_counts([0.5] * len(mine), [r["cluster"] for r in mine])[1].sum(0)))
            found.append(
                Result(
                    self.name,
                    f"{name} (of 200)",
                    at.value,
                    at.low,
                    at.high,
                    len(mine),
                    len(images),
                    even,
                    controls=controls,
                    by=mine[0]["by"],
                )
            )
        return found


def _unfit(row: Row) -> str:
    """Why a question of MMMU cannot be asked here; "" if it can."""
    if row.get("question_type") == "open":
        return "an open question, without options"
    return "needs several pictures" if row.get("image_2") is not None else ""


def _options(row: Row) -> list[str]:
    given = row.get("options", row.get("choices"))
    if isinstance(given, str):  # MMMU writes a list as text
        try:
            given = json.loads(given)
        except ValueError:
            try:
                given = ast.literal_eval(given)
            except (ValueError, SyntaxError):
                given = None
    if given is None:
        given = [
            row[letter]
            for letter in LETTERS
            if str(row.get(letter) if row.get(letter) is not None else "").strip() not in ("", "nan")
        ]
    if not isinstance(given, list) or len(given) < 2:
        raise DiptychError(f"{row.where}: expected two or more options in fields A, B, … or in the list 'options'")
    return [str(o).strip() for o in given]


def _picture(row: Row, pictures: Pictures, shared: dict[str, Any]) -> tuple[Shown, str]:
    """The picture and, if it has one, its name."""
    value = row.get("image") if row.get("image") is not None else row.get("image_1")
    if isinstance(value, str) and value in shared:
        return embedded(shared[value], row.where), value
    if isinstance(value, str) and len(value) < 200:
        return pictures.path(value, row.where), value
    if value is not None:
        data = embedded(value, row.where)
        return data, str(row.get("image_path") or "") or hashlib.blake2b(data, digest_size=8).hexdigest()
    name = row.text("image_path", "img", "file_name")
    return pictures.path(name, row.where), name
