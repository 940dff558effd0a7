"""What a model learns of its own answers: the best by sentence (ViGoR), choices among them (DiVE-k); and pairs of pictures (TWIN)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.choose.align.sampled import asked_samples, best_of, choices, prompt_of, rollouts, sentence_rewards, written
from diptych.core.capabilities import Adapter
from diptych.core.errors import DiptychError
from diptych.data.preferences import preference_of
from diptych.data.sources import open_source

GRAPH = {"things": [{"concept": "fox", "count": 2, "colour": "red", "size": ""}, {"concept": "key", "count": 1, "colour": "blue", "size": ""}],
         "relation": "left", "side": "", "position": "", "background": "paper"}  # fmt: skip
DATA = "preferences:scenes:small?describe=0.5"


class Writes(Adapter):
    """It writes one of its answers, another one with each seed."""

    name = "writes"
    capabilities = frozenset({"generate", "prompt"})

    def __init__(self, *answers: str):
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def generate(self, images: Any, prompt: Any = "", max_tokens: int = 32, **decoding: Any) -> list[str]:
        self.asked += list(prompt)
        return [self.answers[decoding["seed"] % len(self.answers)] for _ in images]


def test_each_sentence_has_its_reward() -> None:
    text = "there are two red foxes. there is a green key! two red foxes left of a blue key. nothing else is known."
    assert [value for _, value in sentence_rewards(text, GRAPH)] == [1.0, -1.0, 1.0, 0.0]
    assert sentence_rewards("", GRAPH) == []


def test_best_and_worst_by_the_truth(tmp_path: Path) -> None:
    samples = asked_samples(open_source(DATA).split("train"), 12)
    answers = []
    for sample in samples:
        pair = preference_of(sample)
        assert pair is not None
        answers.append([pair.rejected, pair.chosen, pair.rejected])
    rows = best_of(samples, answers)
    assert [row["id"] for row in rows] == [s.id for s in samples]
    for row, sample in zip(rows, samples, strict=True):
        pair = preference_of(sample)
        assert pair and (row["chosen"], row["rejected"]) == (pair.chosen, pair.rejected)
    assert best_of(samples, [["same", "same"]] * len(samples)) == []
    source = open_source(written(rows, samples, tmp_path))
    assert len(source) == 12 and not source.problems
    assert np.array_equal(source[3].images[0], samples[3].images[0]) and source[3].turns[0].text.endswith(prompt_of(samples[3]))
    with pytest.raises(DiptychError, match="nothing to learn"):
        written([], samples, tmp_path)


def test_rollouts_become_choices() -> None:
    samples = asked_samples(open_source("preferences:scenes:small?describe=0&facts=colour").split("train"), 6)
    model = Writes("Blue.", "red", "blue", "green", "mauve")
    drawn = rollouts(model, samples, 10, seed=0)
    assert all(sorted(own) == sorted(model.answers * 2) for own in drawn) and set(model.asked) == {prompt_of(s) for s in samples}
    rows = choices(samples, drawn, k=3)
    for row, sample in zip(rows, samples, strict=True):
        pair = preference_of(sample)
        assert pair is not None
        offered = dict(line.split(". ") for line in row["prompt"].split("\n")[1:-1])
        assert len(offered) == 3 and offered[row["chosen"]] == pair.chosen  # the right one, also where the model never said it
        commonest = [a for a in ("blue", "red", "green", "mauve") if a != pair.chosen]
        assert set(offered.values()) == {pair.chosen, *commonest[:2]} and offered[row["rejected"]] == commonest[0]
    only = [[preference_of(s).chosen] * 5 for s in samples]  # type: ignore[union-attr]
    assert choices(samples, only) == []


def answers_of(source: Any, indices: Sequence[int]) -> list[str]:
    return [source[i].turns[1].text for i in indices]


def test_twins_show_the_same_or_one_changed_fact() -> None:
    source: Any = open_source("twins:scenes:small")
    answers, facts = [], set()
    for i in range(120):
        first, second, fact = source.pair(i)
        same = (first.things, first.relation, first.side, first.position) == (
            second.things,
            second.relation,
            second.side,
            second.position,
        )
        assert same == (fact == "") and first.seed != second.seed
        answers.append(fact == "")
        facts.add(fact)
    assert 0.35 < np.mean(answers) < 0.65 and facts == {"", "colour", "count", "object", "relation", "position"}
    sample = source[0]
    assert len(sample.images) == 2 and sample.turns[0].text.count("<image>") == 2
    assert not np.array_equal(*sample.images) and {sample.turns[1].text, preference_of(sample).rejected} == {"yes", "no"}  # type: ignore[union-attr]
    assert source.split("test")[0] != source.split("train")[0] and source.fingerprint() != source.base.fingerprint()
    with pytest.raises(DiptychError, match="made of scenes with pictures"):
        open_source("twins:scenes:clips")
