"""Pairs of answers: exact ones of scenes, those of a file, and their rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conversations_fixture import CHATML, GEMMA, LLAMA3, VICUNA, chat, picture, said
from diptych.benchmarks.texts.facts import claim_credits, parse_caption
from diptych.core.errors import DiptychError
from diptych.core.sample import Turn
from diptych.data.conversations.turns import DESCRIBE
from diptych.data.fields.preferences import asked_with, last_run, marked
from diptych.data.preferences import Preference, preference_of
from diptych.data.preferences.scenes import FACTS
from diptych.data.preferences.spans import differing
from diptych.data.sources import open_source

SCENES = "preferences:scenes:small"


def test_scenes_change_one_fact() -> None:
    """Of a description, the chosen one is true, and of the rejected one exactly the claim that is named is false."""
    source = open_source(f"{SCENES}?describe=1")
    seen = set()
    for i in range(300):
        sample = source[i]
        pair = preference_of(sample)
        assert pair is not None
        right, wrong = (claim_credits(parse_caption(text), sample.extra["graph"]) for text in (pair.chosen, pair.rejected))
        assert right["all_true"] == 1 and wrong["all_true"] == 0, (pair, right, wrong)
        false = {name for name in ("objects", "count", "colour", "relation", "side", "position") if wrong.get(name, 1) < 1}
        expected = {"object": {"objects"}, "relation": {"relation", "side"}}.get(pair.fact, {pair.fact})
        assert false <= expected and len(false) == 1, (pair, false)
        seen.add(pair.fact)
    assert seen == set(FACTS)


def test_short_answers_are_wrong_ones_of_the_same_kind() -> None:
    source = open_source(f"{SCENES}?describe=0")
    for i in range(200):
        _, pair = source.pair(i)  # type: ignore[attr-defined]
        chosen, rejected, fact = pair.preference.chosen, pair.preference.rejected, pair.preference.fact
        assert chosen != rejected and pair.prompt != DESCRIBE
        assert (chosen in ("yes", "no")) == (rejected in ("yes", "no"))
        assert fact in FACTS and (fact != "count" or {chosen, rejected} <= {"one", "two", "three", "four", "five", "six"})


def test_samples_do_not_change_and_splits_differ() -> None:
    source = open_source(f"{SCENES}?facts=colour,count&describe=1")
    train, test = source.split("train"), source.split("test")
    assert train[3] == open_source(train.address)[3] and train[3] != test[3]
    assert open_source(test.address).fingerprint() == test.fingerprint() != train.fingerprint()
    assert {preference_of(train[i]).fact for i in range(9)} <= {"colour", "count"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("?facts=colours", "there is no fact 'colours'; did you mean 'colour'"),
        ("?describe=2", "describe"),
        ("?images=here", "images is an option for files"),
        ("?sorts=1", "unknown option"),
    ],
)
def test_wrong_options(address: str, says: str) -> None:
    with pytest.raises(DiptychError, match=says):
        open_source(SCENES + address)
    with pytest.raises(DiptychError, match="made of scenes with pictures"):
        open_source("preferences:scenes:clips")


def test_differing_words() -> None:
    def parts(a: str, b: str) -> tuple[list[str], list[str]]:
        first, second = differing(a, b)
        return [a[i:j] for i, j in first], [b[i:j] for i, j in second]

    assert parts("a red fox", "two red foxes") == (["a", "fox"], ["two", "foxes"])
    assert parts("a cat left of a key", "a cat in front of a key") == (["left"], ["in front"])
    assert parts("it is red.", "it is red, and big.") == ([], [", and big"])
    assert parts("same", "same") == ([], [])


def rows(folder: Path, *given: object) -> str:
    picture(folder / "red.png", (200, 20, 20))
    (folder / "mine.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in given))
    return f"preferences:{folder / 'mine.jsonl'}"


GOOD = {"image": "red.png", "prompt": "what?", "chosen": "a red field", "rejected": "a blue field"}


def test_file_lists_what_is_broken_and_keeps_the_rest(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
    ]
    address = rows(
        tmp_path,
        GOOD,
        {**GOOD, "prompt": messages, "chosen": [{"role": "assistant", "content": "red"}], "spans": [[0, 1]]},
        "{broken",
        {**GOOD, "rejected": "a red field"},
        {**GOOD, "prompt": ""},
        {**GOOD, "spans": [[3, 99]]},
        {**GOOD, "image": "missing.png"},
        {**GOOD, "prompt": "<image> and <image>"},
        {**GOOD, "chosen": [{"role": "user", "content": "x"}]},
        {**GOOD, "facts": ["a field", "red"]},
    )
    source = open_source(address)
    assert len(source) == 3
    first, second, third = (source[i] for i in range(3))
    assert [t.text for t in first.turns] == ["<image>\nwhat?", "a red field"] and len(first.images) == 1
    pair = preference_of(first)
    assert pair and [pair.rejected[a:b] for a, b in pair.spans] == ["blue"]
    assert [t.role for t in second.turns] == ["system", "user", "assistant"] and second.turns[1].text == "<image>\n?"
    assert preference_of(second).spans == ((0, 1),)  # type: ignore[union-attr]
    assert preference_of(third).facts == ("a field", "red")  # type: ignore[union-attr]
    reasons = {p.item: p.reason for p in source.problems}
    expected = {
        "mine.jsonl:3": "broken JSON", "mine.jsonl:4": "same answer", "mine.jsonl:5": "no prompt", "mine.jsonl:6": "not within",
        "mine.jsonl:7": "no file", "mine.jsonl:8": "image count mismatch", "mine.jsonl:9": "chosen: expected",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(words in reasons[item] for item, words in expected.items())


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"mine.jsonl:2: unknown key 'chosne'; did you mean 'chosen'"):
        open_source(rows(tmp_path, GOOD, {**GOOD, "chosne": "x"}))
    with pytest.raises(DiptychError, match="describe is an option for scenes"):
        open_source(rows(tmp_path, GOOD) + "?describe=1")


@pytest.mark.parametrize("template", [None, CHATML, LLAMA3, GEMMA, VICUNA], ids=["plain", "chatml", "llama3", "gemma", "vicuna"])
def test_marked_tokens_spell_the_span(template: str | None) -> None:
    own = chat(template)
    turns = [Turn("user", "<image>\nwhat is it? red?"), Turn("assistant", "no"), Turn("user", "what then?")]
    text = "two red foxes left of a key"
    spans = [(4, 7), (14, 18)]
    document = own.lesson([*turns, Turn("assistant", text)])
    marks = marked(own, document, [*turns, Turn("assistant", text)], spans)
    runs = said(own, [i for i, m in zip(document.ids, marks, strict=True) if m])
    assert runs.replace(" ", "") == "redleft"
    run = last_run(document.learned)
    assert all(i in run for i, m in enumerate(marks) if m)
    assert said(own, [document.ids[i] for i in run]).strip().startswith(text)


def test_facts_stand_behind_the_question() -> None:
    pair = Preference("a", "b", facts=("two foxes", "red"))
    turns = [Turn("user", "<image>\nwhat?"), Turn("assistant", "a")]
    assert asked_with(turns, pair) == turns[:1]
    assert asked_with(turns, pair, "behind")[0].text == "<image>\nwhat?\nfacts: two foxes, red."
