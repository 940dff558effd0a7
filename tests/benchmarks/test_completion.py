"""The task ``completion`` on a model whose likelihoods and answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diptych.benchmarks.base import NotApplicable
from diptych.benchmarks.records import Records
from diptych.benchmarks.texts.completion import Completion
from diptych.core.capabilities import Adapter
from diptych.data.sources import open_source


class Knows(Adapter):
    """Half of the completions are right; every token has the probability 1 / (2 + its text's number)."""

    name = "knows"
    capabilities = frozenset({"complete"})

    def __init__(self, answers: dict[str, str]):
        self.answers = answers

    def complete(self, prompts: Any, max_tokens: int = 32, **decoding: Any) -> list[str]:
        return [self.answers[p] for p in prompts]

    def text_loglikelihood(self, texts: Any, prompts: Any) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.array([len(t.split()) for t in texts])
        return -tokens * np.log(2 + np.arange(len(texts))), tokens


def test_exact_and_perplexity() -> None:
    items = Completion(n=10).items(open_source("facts:scenes:small").split("test"))
    answers = {s.extra["prompt"]: s.extra["answers"][-1].upper() if i % 2 else "a wrong one" for i, s in enumerate(items)}
    task, records = Completion(n=10), Records()
    task.run(Knows(answers), items, records)
    found = {r.metric: r for r in task.summarise(records.all())}
    wanted = [answers[s.extra["prompt"]].lower() in s.extra["answers"] for s in items]
    assert found["exact"].value == pytest.approx(sum(wanted) / 10) and sum(wanted) == 5
    lengths = [len(s.captions[0].partition(" : ")[2].split()) for s in items]
    nats = sum(n * math.log(2 + i) for i, n in enumerate(lengths))
    perplexity = found["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(nats / sum(lengths))) and not perplexity.higher_is_better
    assert perplexity.low < perplexity.value < perplexity.high
    assert Records().all() == [] and {r["item"] for r in records.all()} == {s.id for s in items}


def test_texts_without_a_prompt_have_a_perplexity_only() -> None:
    items = Completion(n=5).items(open_source("openmoji:all"))
    task, records = Completion(n=5), Records()
    task.run(Knows({}), items, records)
    assert [r.metric for r in task.summarise(records.all())] == ["perplexity"]


def test_texts_without_a_prompt_do_not_keep_others_from_being_completed() -> None:
    (told,) = Completion(n=1).items(open_source("facts:scenes:small").split("test"))
    (alone,) = Completion(n=1).items(open_source("openmoji:all"))
    task, together, single = Completion(n=2), Records(), Records()
    model = Knows({told.extra["prompt"]: told.extra["answers"][0]})
    task.run(model, [told, alone], together)
    task.run(model, [told], single)
    rows = {r["item"]: r for r in together.all()}
    assert rows[told.id] == single.all()[0] and rows[told.id]["correct"]["exact"] == 1.0
    assert "correct" not in rows[alone.id]


def test_a_source_without_texts_has_no_items() -> None:
    class Empty:
        address = "empty:"

        def __len__(self) -> int:
            return 0

    with pytest.raises(NotApplicable, match="empty: has no texts"):
        Completion().items(Empty())  # type: ignore[arg-type]
