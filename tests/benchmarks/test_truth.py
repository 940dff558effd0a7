"""Captions against what is there: CHAIR, exact facts of scenes, VQAScore."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_asking import grey, save_pictures, values

from diptych.benchmarks.answers.vqascore import VqaScore
from diptych.benchmarks.labels import instances
from diptych.benchmarks.records import Result
from diptych.benchmarks.run import evaluate
from diptych.benchmarks.texts.chair import Chair
from diptych.benchmarks.texts.facts import Facts, claim_credits, parse_caption, statements
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.sources import open_source
from evaluation_fixture import Plain

PLACES = [["dog", "cup"], ["cat"], ["dog", "cat", "couch"], ["cup"]]


class Labelled(Plain):
    """Pictures of greys 10, 20 … with objects, four of them."""

    def __init__(self, labels: list[list[str]] = PLACES, size: int = 0):
        super().__init__(size or len(labels))
        self.labels = labels

    def __getitem__(self, index: int) -> Sample:
        labels = self.labels[index % len(self.labels)]
        image = np.full((6, 6, 3), 10 * (index + 1) % 256, np.uint8)
        return Sample(f"i{index}", {"labels": labels}, image=image, text=captioned([f"number {index}"]))


def teller(said: dict[int, str], otherwise: str = "nothing at all") -> FunctionModel:
    return FunctionModel("teller", generate=lambda images, prompts, n: [said.get(grey(i), otherwise) for i in images])


def test_chair_counts_what_is_made_up() -> None:
    """Mentions: dog, cup | cat, dogs (made up) | couch | cup: 1 of 6; captions with one: 1 of 4; recalled 5 of 7."""
    said = {10: "A dog with a cup.", 20: "a cat and two dogs", 30: "a sofa", 40: "one mug"}
    found = evaluate(teller(said), Labelled(), [Chair()])
    got = values(found, "chair")
    assert got["chair_i"] == pytest.approx(1 / 6) and got["chair_s"] == 0.25
    assert got["recall"] == pytest.approx(5 / 7) and got["length"] == pytest.approx((5 + 5 + 2 + 2) / 4)
    chair_i = next(r for r in found.results if r.metric == "chair_i")
    assert not chair_i.higher_is_better and chair_i.controls["blind"] == 0  # silence makes nothing up: hence recall
    assert next(r for r in found.results if r.metric == "recall").controls["blind"] == 0
    assert chair_i.controls["shuffled"] > chair_i.value


def test_chair_takes_labels_from_coco_instances(tmp_path: Path) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
    captions = [{"id": i, "image_id": n, "caption": c} for i, (n, c) in enumerate([(7, "a pet"), (8, "a man")])]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    boxes = [
        {"id": 1, "image_id": 7, "category_id": 3},
        {"id": 2, "image_id": 8, "category_id": 3},
        {"id": 3, "image_id": 8, "category_id": 3},
    ]
    known = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(known))
    assert instances(f"{tmp_path}/instances.json")["8"] == ["dog", "dog"]
    model = teller({10: "a dog and a person", 20: "a person"})
    found = evaluate(model, open_source(f"coco:{tmp_path}/captions.json"), [Chair(labels=f"{tmp_path}/instances.json")])
    assert values(found, "chair")["chair_i"] == pytest.approx(1 / 3)  # the man of the second caption is a person
    boxes[0]["category_id"] = 4
    (tmp_path / "broken.json").write_text(json.dumps(known))
    with pytest.raises(DiptychError, match=r"broken.json, annotations\[0\]: there is no category 4"):
        instances(f"{tmp_path}/broken.json")


GRAPH = {
    "things": [
        {"count": 2, "concept": "fish", "colour": "red", "size": ""},
        {"count": 1, "concept": "star", "colour": "blue", "size": ""},
    ],
    "relation": "left",
    "position": "",
}


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("two red fish left of a blue star", {"objects": 1, "count": 1, "colour": 1, "relation": 1, "all_true": 1, "told": 1}),
        (
            "a blue star to the right of two red fish",
            {"objects": 1, "count": 1, "colour": 1, "relation": 1, "all_true": 1, "told": 1},
        ),
        (
            "a picture of a blue star left of two red fish",
            {"objects": 1, "count": 1, "colour": 1, "relation": 0, "all_true": 0, "told": 1},
        ),
        ("two red fish above a blue star", {"objects": 1, "count": 1, "colour": 1, "relation": 0, "all_true": 0, "told": 1}),
        ("there are three fish and a star", {"objects": 1, "count": 0.5, "all_true": 0, "told": 0.5}),
        ("a blue fish", {"objects": 1, "count": 0, "colour": 0, "all_true": 0, "told": 0}),
        ("a red heart", {"objects": 0, "all_true": 0, "told": 0}),
        ("two fish but no heart", {"objects": 1, "count": 1, "all_true": 1, "told": 0.5}),
        ("two fish but no star", {"objects": 1, "count": 1, "all_true": 0, "told": 0.5}),
        ("a star in the top left", {"objects": 1, "count": 1, "position": 0, "all_true": 0, "told": 0.5}),
        ("what a day", {"all_true": 0, "told": 0}),
    ],
)
def test_facts_are_read_and_judged(caption: str, wanted: dict[str, float]) -> None:
    assert claim_credits(parse_caption(caption), GRAPH) == pytest.approx(wanted)


@pytest.mark.parametrize("address", ["scenes:small?split=test", "scenes:full?split=test"])
def test_every_caption_of_a_scene_is_true_of_it_and_its_negative_is_not(address: str) -> None:
    source = open_source(address)
    for i in range(150):
        sample = source[i]
        for caption, negative in zip(sample.captions, sample.negatives, strict=True):
            assert claim_credits(parse_caption(caption), sample.extra["graph"])["all_true"] == 1, (caption, sample.extra["graph"])
            assert not parse_caption(caption).unread, caption
            assert all(true for _, true in statements(parse_caption(caption), sample.extra["graph"])), caption
            if negative:
                assert claim_credits(parse_caption(negative), sample.extra["graph"])["all_true"] == 0, (
                    negative,
                    sample.extra["graph"],
                )


TRIO = {
    "things": [
        {"count": 2, "concept": "fish", "colour": "red", "size": "big"},
        {"count": 1, "concept": "star", "colour": "blue", "size": ""},
        {"count": 1, "concept": "key", "colour": "green", "size": "small"},
    ],
    "relation": "left",
    "side": "above",
    "position": "",
    "background": "wood",
}


@pytest.mark.parametrize(
    ("caption", "true", "false", "undecided"),
    [
        ("two big red fish left of a blue star, with a small green key above them", 13, 0, 0),
        ("two big red fish left of a blue star, with a small green key below them", 12, 1, 0),
        ("a blue star right of two red fish, with a key above them, on wood", 11, 0, 0),
        ("a star behind two fish, on sand", 4, 2, 0),  # relation and background are false
        ("a small blue star", 3, 0, 1),  # of the star's size the scene says nothing
        ("two small fish", 2, 1, 0),
        ("a red heart", 0, 3, 0),  # it is not there: so neither is one, nor is it red
        ("two fish and no heart", 3, 0, 0),
        ("two fish and no star", 2, 1, 0),
        ("two fish left of a star above a key", 7, 0, 1),  # the second relation is not understood
        ("two fish and a flying gizmo", 2, 0, 1),
        ("a gizmo left of two fish", 2, 0, 2),  # what stands there, and that it does
        ("two fish, two fish, two fish", 6, 0, 0),
        ("gibberish", 0, 0, 1),
        ("", 0, 0, 1),
    ],
)
def test_statements_are_counted_one_by_one(caption: str, true: int, false: int, undecided: int) -> None:
    found = [holds for _, holds in statements(parse_caption(caption), TRIO)]
    assert (found.count(True), found.count(False), found.count(None)) == (true, false, undecided), statements(
        parse_caption(caption), TRIO
    )


def of_facts(captions: list[str], graph: dict = GRAPH) -> dict[str, Result]:
    records = [
        {"item": i, "cluster": i, "generated": c, "generated_blind": "", "references": [], "graph": graph}
        for i, c in enumerate(captions)
    ]
    return {r.metric: r for r in Facts().summarise(records)}


def test_precision_is_of_statements_and_its_band_of_what_was_not_read() -> None:
    told = ["two red fish left of a blue star", "a red heart", "two fish and a flying gizmo", "what a day"]
    found = of_facts(told)
    assert found["precision"].value == pytest.approx(9 / 12)  # 7 of 7, 0 of 3, 2 of 2
    assert found["precision"].unparsed == 2 and found["precision"].band == pytest.approx((9 / 14, 11 / 14))
    assert found["unread"].value == pytest.approx(2 / 14) and not found["unread"].higher_is_better
    assert found["all_true"].value == 1 / 4 and found["all_true"].band == (1 / 4, 3 / 4) and found["all_true"].unparsed == 2
    assert found["objects"].band is None and found["objects"].unparsed == 0
    clear = of_facts(told[:2])
    assert clear["precision"].band is None and clear["unread"].value == 0
    mute = of_facts(["", "hm"])
    assert "precision" not in mute and mute["unread"].value == 1 and mute["all_true"].band == (0, 1)


def test_precision_has_the_interval_of_a_bootstrap_over_captions() -> None:
    """Against the plain one: draw captions, divide the sums."""
    captions = ["two red fish left of a blue star", "a red heart", "two fish", "a blue fish", "three fish"] * 12
    found = of_facts(captions)["precision"]
    sums = np.array([(7, 7), (0, 3), (2, 2), (1, 3), (1, 2)] * 12)
    rng = np.random.default_rng(0)
    drawn = sums[rng.integers(len(sums), size=(4000, len(sums)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    assert found.value == pytest.approx(11 / 17)
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)


def test_facts_of_a_model_that_knows_the_captions() -> None:
    source = open_source("scenes:small?split=test")
    of = {s.image.tobytes(): s.captions[0] for s in source.retrieval(30)}
    model = FunctionModel("knows", generate=lambda images, p, n: [of.get(i.tobytes(), "a car") for i in images])
    found = {r.metric: r for r in evaluate(model, source, [Facts(n=30)]).results}
    assert found["all_true"].value == found["count"].value == found["relation"].value == found["told"].value == 1
    assert found["precision"].value == 1 and found["unread"].value == 0
    assert found["precision"].controls["shuffled"] < 0.5 and found["precision"].controls["blind"] < 0.5
    assert found["all_true"].controls["shuffled"] < 0.2 and found["objects"].controls["blind"] < 0.5
    assert "scenes" in evaluate(model, Plain(), [Facts()]).skipped[0]["reason"]


def test_vqascore_is_the_probability_of_yes() -> None:
    def loglikelihood(images, texts, prompts):
        assert set(texts) == {"Yes"}
        return [np.log(0.9 if f'"number {grey(i) // 10 - 1}"' in p else 0.3) for i, p in zip(images, prompts, strict=True)]

    model = FunctionModel("l", loglikelihood=loglikelihood, follows_prompts=True)
    found = {r.metric: r for r in evaluate(model, Labelled(size=5), [VqaScore()]).results}
    assert found["vqascore"].value == pytest.approx(0.9) and found["vqascore"].controls["shuffled"] == pytest.approx(0.3)
    assert found["accuracy"].value == 1 and found["vqascore"].controls["blind"] == pytest.approx(0.3)
    even = FunctionModel("c", loglikelihood=lambda i, t, p: [-1.0] * len(t), follows_prompts=True)
    assert values(evaluate(even, Labelled(size=5), [VqaScore()]), "vqascore")["accuracy"] == 0.5
