"""Choosing among texts and images by score: pairs in every published form, Winoground, SPEC, and the built-in world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_asking import grey, save_pictures, values

from diptych.benchmarks import pictures
from diptych.benchmarks.controls import constant
from diptych.benchmarks.matching import blocks
from diptych.benchmarks.matching.pairs import Pairs
from diptych.benchmarks.matching.spec import Spec
from diptych.benchmarks.matching.winoground import Winoground
from diptych.benchmarks.records import plain
from diptych.benchmarks.run import evaluate, recompute
from diptych.benchmarks.tasks import task
from diptych.core.capabilities import FunctionModel
from diptych.core.errors import DiptychError
from diptych.data.sources import open_source
from evaluation_fixture import Plain


def knows(true: dict[int, set[str]]) -> FunctionModel:
    """1 for what is true of a picture, told by its grey."""
    return FunctionModel("knows", score=lambda images, texts: [[float(t in true.get(grey(i), ())) for t in texts] for i in images])


def length() -> FunctionModel:
    return FunctionModel("short", score=lambda images, texts: [[-len(t.split()) for t in texts]] * len(images))


FORMS = {
    "sugarcrepe.json": json.dumps(
        {
            "0": {"filename": "a.png", "caption": "a red cat", "negative_caption": "a red dog"},
            "1": {"filename": "b.png", "caption": "two cups", "negative_caption": "two cups on a table"},
        }
    ),
    "aro.json": json.dumps(
        [
            {"image_path": "a.png", "true_caption": "a red cat", "false_caption": "a red dog", "relation_name": "on"},
            {"image_path": "b.png", "true_caption": "two cups", "false_caption": "two cups on a table", "relation_name": "near"},
        ]
    ),
    "crepe.csv": "image_id,x,y,width,height,caption,hard_negs\n"
    + "a.png,0,0,5,5,a red cat,\"['a red dog', 'a blue cat']\"\n"
    + "b.png,0,0,5,5,two cups,\"['two cups on a table']\"\n",
    "vlchecklist.json": json.dumps(
        [["a.png", {"POS": ["a red cat"], "NEG": ["a red dog"]}], ["b.png", {"POS": ["two cups"], "NEG": ["two cups on a table"]}]]
    ),
    "mine.tsv": "image\tcaption\tnegative\na.png\ta red cat\ta red dog\nb.png\ttwo cups\ttwo cups on a table\n",
}


def test_a_picture_of_several_pairs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    rows = [{"id": i, "image": f"{'ab'[i % 2]}.png", "caption": f"{i} cats", "negative": f"{i} dogs"} for i in range(6)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read: list[str] = []

    def load_image(image: str, item: str) -> np.ndarray:
        read.append(Path(image).name)
        return pictures.load_image(image, item)

    monkeypatch.setattr(blocks, "load_image", load_image)
    assert values(evaluate(constant(), None, [Pairs(file=f"{tmp_path}/p.jsonl")]), "pairs") == {"accuracy": 0.5}
    assert sorted(read) == ["a.png", "b.png"]


@pytest.mark.parametrize("name", list(FORMS))
def test_pairs_in_every_published_form(tmp_path: Path, name: str) -> None:
    save_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / name).write_text(FORMS[name])
    asked = Pairs(file=f"{tmp_path}/{name}")
    half = evaluate(knows({10: {"a red cat"}, 20: {"two cups on a table"}}), None, [asked]).results[0]
    assert (half.value, half.n, half.clusters) == (0.5, 2, 2)
    choice = 1 / 3 if name.startswith("crepe") else 0.5
    assert half.chance == pytest.approx((choice + 0.5) / 2)
    assert half.controls["shortest"] == pytest.approx((choice + 1) / 2)  # "two cups" is the shorter one; the first pair ties
    assert half.controls["longest"] == pytest.approx(choice / 2)
    assert half.controls["blind"] == half.chance and half.controls["shuffled"] == half.chance
    even = evaluate(constant(), None, [asked]).results[0]
    assert even.value == pytest.approx(even.chance) and even.ties == 2


def test_aro_shows_the_part_that_the_caption_is_about(tmp_path: Path) -> None:
    picture = np.full((20, 20, 3), 10, np.uint8)
    picture[5:9, 12:18] = 20
    Image.fromarray(picture).save(tmp_path / "a.png")
    row = {"image_path": "a.png", "true_caption": "t", "false_caption": "f", "bbox_x": 12, "bbox_y": 5, "bbox_w": 6, "bbox_h": 4}
    (tmp_path / "aro.json").write_text(json.dumps([row, {**row, "true_caption": "u"}]))
    seen = []

    def score(images, texts):
        seen.extend(images)
        return np.zeros((len(images), len(texts)))

    evaluate(FunctionModel("m", score=score), None, [Pairs(file=f"{tmp_path}/aro.json")])
    assert {(i.shape, int(i.min())) for i in seen} == {((4, 6, 3), 20), ((4, 6, 3), 128)}  # the part, and grey of its size
    (tmp_path / "aro.json").write_text(json.dumps([{**row, "bbox_x": 30}]))
    with pytest.raises(DiptychError, match="lies outside the picture"):
        evaluate(constant(), None, [Pairs(file=f"{tmp_path}/aro.json")])


def test_macro_gives_rare_relations_their_share(tmp_path: Path) -> None:
    """Three of "on", all right, one of "near", wrong: 3/4 of the pairs, 1/2 over the relations."""
    save_pictures(tmp_path, ["a.png"])
    rows = [
        {"image_path": "a.png", "true_caption": f"t{i}", "false_caption": f"f{i}", "relation_name": "near" if i == 3 else "on"}
        for i in range(4)
    ]
    (tmp_path / "aro.json").write_text(json.dumps(rows))
    found = evaluate(knows({10: {"t0", "t1", "t2", "f3"}}), None, [Pairs(file=f"{tmp_path}/aro.json")])
    assert values(found, "pairs") == {"accuracy": 0.75, "macro": 0.5}
    assert {s["slice"]: s["value"] for s in found.results[0].slices} == {"relation_name=on": 1, "relation_name=near": 0}


def test_pairs_of_any_captions_have_two_words_swapped() -> None:
    found = evaluate(length(), Plain(), ["pairs"]).results[0]
    assert (
        found.n == 23 and found.value == found.chance == 0.5 == found.controls["shortest"]
    )  # same words, same length; the first has one word thrice


def test_winoground_from_its_file(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", ["x0.png", "x1.png", "y0.png", "y1.png"])
    rows = [
        {"id": i, "image_0": f"{n}0", "image_1": f"{n}1", "caption_0": f"{n} first", "caption_1": f"{n} second", "collapsed_tag": t}
        for i, (n, t) in enumerate([("x", "Object"), ("y", "Relation")])
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = Winoground(file=f"{tmp_path}/examples.jsonl")
    scores = {
        (10, "x first"): 3,
        (10, "x second"): 1,
        (20, "x second"): 2,
        (20, "x first"): 0,  # all right
        (30, "y first"): 9,
        (30, "y second"): 8,
        (40, "y second"): 2,
        (40, "y first"): 1,
    }  # texts right, images not
    model = FunctionModel("w", score=lambda images, texts: [[scores.get((grey(i), t), 0) for t in texts] for i in images])  # fmt: skip
    assert values(evaluate(model, None, [asked]), "winoground") == {"text": 1, "image": 0.5, "group": 0.5}


def test_spec_from_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "count"
    save_pictures(folder, ["a.png", "b.png", "c.png"])
    (folder / "image2text.json").write_text(json.dumps([{"query": "b.png", "keys": ["one", "two", "three"], "label": 1}]))
    (folder / "text2image.json").write_text(json.dumps([{"query": "two", "keys": ["a.png", "b.png", "c.png"], "label": 1}]))
    model = knows({20: {"two"}})
    to_text = evaluate(model, None, [Spec(file=f"{folder}/image2text.json")])
    assert values(to_text, "spec") == {"image-to-text": 1, "count/image-to-text": 1}
    to_image = evaluate(model, None, [Spec(file=f"{folder}/text2image.json")])
    assert values(to_image, "spec") == {"text-to-image": 1, "count/text-to-image": 1}
    assert to_image.results[0].chance == pytest.approx(1 / 3)


def test_sets_of_scenes_differ_in_one_thing_and_their_captions_hold_alone() -> None:
    from scene_reader import holds

    source = open_source("scenes:medium?split=test")
    checked = set()
    for kind in source.set_kinds:
        for group in source.sets(kind, 6):
            if kind in ("absolute size", "relative size"):
                assert [g["things"][0]["size"] for g in group.extra["graphs"]] == ["big", "small"]
                continue
            true = [[holds(c, boxes, source.world.size) for c in group.captions] for boxes in group.extra["boxes"]]
            assert (np.array(true) == np.eye(len(true), dtype=bool)).all(), (kind, group.captions)
            checked.add(kind)
    assert checked == {"existence", "count", "absolute position", "relative position", "colour"}
    assert [len(source.sets(kind, 1)[0].images) for kind in source.set_kinds[:-1]] == [2, 4, 5, 4, 2, 2]


@pytest.mark.parametrize("name", ["winoground?n=60", "pairs?n=60", "spec?n=8"])
def test_no_opinion_and_no_look_are_exactly_chance_on_scenes(name: str) -> None:
    source = open_source("scenes:small?split=test")
    for r in evaluate(constant(), source, [task(name)]).results:
        assert r.value == pytest.approx(r.chance, abs=1e-12), r.metric
    if name.startswith("spec"):  # who prefers some texts whatever the image shows has one right of k
        hashed = FunctionModel("t", score=lambda images, texts: [[sum(map(ord, t)) % 97 for t in texts]] * len(images))
        for r in evaluate(hashed, source, [task(name)]).results:
            assert r.value == pytest.approx(r.chance, abs=1e-12), r.metric


def test_interrupted_blocks_go_on(tmp_path: Path) -> None:
    source, seen = open_source("scenes:small?split=test"), []

    def score(images, texts):
        seen.append(len(images))
        if len(seen) == 2:
            raise RuntimeError("the power is gone")
        return np.zeros((len(images), len(texts)))

    asked = Pairs(n=30, batch=10)
    with pytest.raises(RuntimeError):
        evaluate(FunctionModel("m", score=score), source, [asked], tmp_path, key="k")
    found = evaluate(FunctionModel("m", score=score), source, [asked], tmp_path, key="k")
    assert found.results[0].n == 30 and len(seen) == 4  # ten blocks were kept
    assert plain(recompute(tmp_path).results) == plain(found.results)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "pairs",
            "f.json",
            '[{"image_path": "a.png", "true_caption": "x"}]',
            r"f.json, \[0\]: no field 'false_caption or negative_caption",
        ),
        ("pairs", "f.json", '[["a.png", {"POS": ["x"]}]]', r"f.json, \[0\]: expected .image, .*NEG"),
        ("pairs", "f.json", '{"a": 3}', "f.json: expected a list of rows"),
        ("pairs", "f.json", "{", "line 1.*not JSON"),
        ("winoground", "f.jsonl", '{"id": 1, "image_0": "a.png", "caption_0": "x"}', "line 1: no field 'image_1'"),
        ("spec", "f.json", '[{"query": "a.png", "keys": ["x", "y"], "label": 2}]', "field 'label': 2 is not one of the 2 keys"),
        ("spec", "f.json", '[{"query": "a.png", "keys": "x", "label": 0}]', "field 'keys': expected list, found str"),
    ],
)
def test_wrong_files_are_named_with_place_and_field(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    save_pictures(tmp_path, ["a.png"])
    (tmp_path / file).write_text(text)
    with pytest.raises(DiptychError, match=message):
        evaluate(constant(), None, [task(f"{name}?file={tmp_path}/{file}")])
