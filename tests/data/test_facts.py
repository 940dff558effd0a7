"""``facts:``: what stands before the colon is the scene's facts, some times over, and nothing else; then comes one of its
captions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from diptych.core.errors import DiptychError
from diptych.data.scenes import language
from diptych.data.scenes.facts import Facts, facts
from diptych.data.scenes.graph import Graph
from diptych.data.sources import open_source

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


def facts_in_words(graph: dict[str, Any]) -> list[str]:
    """The same facts, written anew from the plain data of a scene (nouns by the language of scenes)."""
    told = []
    for things in graph["things"]:
        words = [w for w in (things["size"], things["colour"]) if w]
        noun = language.by_name()[things["concept"]]
        if things["count"] == 1:
            name = " ".join([*words, noun.name])
            told.append(f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
        else:
            told.append(" ".join([NUMBERS[things["count"]], *words, noun.plural]))
    if graph["relation"]:
        told.append(f"{graph['things'][0]['concept']} {graph['relation']} {graph['things'][1]['concept']}")
    if graph["position"]:
        told.append(graph["position"])
    return told


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_facts_and_then_a_caption(repeat: int) -> None:
    source = open_source(f"facts:scenes:small?repeat={repeat}").split("train")
    orders, rounds = set(), Counter()
    for i in range(200):
        sample = source[i]
        assert set(sample.fields) == {"text"} and sample.image is None
        told = facts_in_words(sample.extra["graph"])
        captions = language.captions(Graph.from_dict(sample.extra["graph"]), source.base.world)[0]
        for text in sample.captions:
            before, _, caption = text.partition(" : ")
            said = Counter(before.split(" , "))
            times = set(said.values())
            assert set(said) == set(told) and len(times) == 1 and 1 <= min(times) <= repeat
            assert caption in captions and caption in sample.extra["answers"]
            rounds[min(times)] += 1
            orders.add((sample.id, tuple(before.split(" , ")[: len(told)])))
        assert sample.captions[0].startswith(sample.extra["prompt"] + " ")
    assert set(rounds) == set(range(1, repeat + 1))
    assert len(orders) > 250, "two texts of a scene mostly tell its facts in different orders"


def test_every_answer_is_true_of_the_scene_and_of_no_edited_one() -> None:
    source = open_source("facts:scenes:small").split("test")
    for i in range(50):
        graph = Graph.from_dict(source[i].extra["graph"])
        full = {language.describe(graph, style) for style in language.styles(graph)}
        assert full <= set(source[i].extra["answers"])
        wrong = set(language.captions(graph, source.base.world)[2]) - {""}
        assert not wrong & set(source[i].extra["answers"])


def test_splits_addresses_and_fingerprints() -> None:
    source = open_source("facts:scenes:small?repeat=2")
    train, test = source.split("train"), source.split("test")
    assert train[0].id != test[0].id and train[0] == open_source(train.address)[0]
    assert open_source(facts("scenes:small?size=64", 1)).base.world.size == 64
    prints = {open_source(a).fingerprint() for a in ("facts:scenes:small", "facts:scenes:small?repeat=1", "facts:scenes:medium")}
    assert len(prints) == 3
    assert open_source("facts:scenes:small").fingerprint() == source.fingerprint()
    with pytest.raises(IndexError):
        test[len(test)]
    with pytest.raises(DiptychError, match="repeat must be at least 1"):
        open_source("facts:scenes:small?repeat=0")
    with pytest.raises(DiptychError, match="repaet"):
        open_source("facts:scenes:small?repaet=2")


def test_what_has_no_known_facts_has_its_captions_alone() -> None:
    source = open_source("facts:openmoji:all")
    assert isinstance(source, Facts) and source[3].captions == source.base[3].captions and not source[3].extra


def test_backgrounds_are_told_where_captions_name_them() -> None:
    assert any(" on " in f" {open_source('facts:scenes:full')[i].extra['prompt']}" for i in range(5))
