"""Text alone: how likely a language model finds the texts of a source, and whether it completes them rightly.

For sources whose samples have texts. ``facts:scenes:…`` also says which part of a text is given (``extra["prompt"]``: the facts of
a scene), and all that would be a right continuation (``extra["answers"]``: its captions, in any wording).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from diptych.benchmarks.base import Items, NotApplicable, Progress, by_item, readable
from diptych.benchmarks.records import Record, Records, Result
from diptych.benchmarks.results import of_sums, shares
from diptych.core.capabilities import Model
from diptych.core.sample import Sample
from diptych.data.source import Problem, Source
from diptych.data.text import normalise

BATCH = 64


@dataclass(frozen=True)
class Completion:
    """perplexity: exp of the mean −log P of a token, given the prompt and the tokens before it; [EOS] counts. exact: the share of
    greedy completions that are one of the right ones, word for word.

    n: texts. max_tokens: of a completion.
    """

    n: Annotated[int, Field(ge=1)] = 200
    max_tokens: Annotated[int, Field(ge=1)] = 40

    name: ClassVar[str] = "completion"
    needs: ClassVar[tuple[str, ...]] = ("complete",)
    metrics: ClassVar[tuple[str, ...]] = ("exact", "perplexity")

    def items(self, source: Source) -> list[Any]:
        """The first texts of the source."""
        problems: list[Problem] = []
        found = list(islice((s for s in readable(source, problems) if s.captions), self.n))
        if not found:
            raise NotApplicable(f"{source.address} has no texts")
        return Items(found, problems)

    def run(self, model: Model, items: list[Any], records: Records, progress: Progress | None = None) -> None:
        """One record per text."""
        asked: Any = model  # with the capability ``complete``
        left = [item for item in items if item.id not in records]
        for start in range(0, len(left), BATCH):
            part = left[start : start + BATCH]
            given = [divided(sample) for sample in part]
            prompts = [prompt for prompt, _ in given]
            nats, tokens = asked.text_loglikelihood([text for _, text in given], prompts)
            begun = [prompt for prompt in prompts if prompt]
            completions = iter(asked.complete(begun, self.max_tokens) if begun else ())
            written = [next(completions) if prompt else None for prompt in prompts]
            records.add(
                record(sample, *both, float(value), int(count), answer)
                for sample, both, value, count, answer in zip(part, given, nats, tokens, written, strict=True)
            )
            if progress:
                progress(f"{self.name} {start + len(part)}/{len(left)}")

    def summarise(self, records: list[Record]) -> list[Result]:
        """``exact`` if there were prompts, and the perplexity."""
        rows = by_item(records)
        sums = np.array([[-r["nats"], r["tokens"]] for r in rows], dtype=np.float64)
        clusters = [r["cluster"] for r in rows]
        perplexity = of_sums(self.name, "perplexity", sums, per_token, clusters, bounded=False, higher_is_better=False)
        return [*shares(self.name, rows), perplexity]


def divided(sample: Sample) -> tuple[str, str]:
    """What is given of a sample's first text, "" if nothing is, and what follows it."""
    prompt, text = str(sample.extra.get("prompt", "")), sample.captions[0]
    return (prompt, text.removeprefix(prompt).strip()) if prompt and text.startswith(prompt) else ("", text)


def record(sample: Sample, prompt: str, text: str, nats: float, tokens: int, answer: str | None) -> Record:
    """The record of one text. answer: the model's completion; None: nothing was given to complete."""
    row: Record = {"item": sample.id, "cluster": sample.id, "prompt": prompt, "text": text, "nats": nats, "tokens": tokens}
    if answer is None:
        return row
    right = {normalise(a) for a in sample.extra.get("answers", [text])}
    return {**row, "answer": answer, "correct": {"exact": float(normalise(answer) in right)}}


def per_token(sums: np.ndarray) -> np.ndarray:
    """exp(nats / tokens), from sums [..., 2]."""
    result: np.ndarray = np.exp(np.minimum(sums[..., 0] / np.maximum(sums[..., 1], 1), math.log(1e9)))
    return result
