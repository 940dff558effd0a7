"""Regions: of COCO's instances, of tables of boxes with phrases, and of scenes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.fields import Context, build_fields
from diptych.data.fields.regions import RegionsField
from diptych.data.inspect import inspect, print_inspection
from diptych.data.loader import Loader, loader_for
from diptych.data.sheet import contact_sheet
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from sources_fixture import own_cache, picture, problems, put, root  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")  # pictures of the fixture: 12 wide, 8 high
CATEGORIES = [{"id": 7, "name": "fish"}, {"id": 9, "name": "traffic light"}]


def coco(place: str) -> str:
    images = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 8} for i in range(4)]
    for i in range(4):
        put(f"{place}/pictures/{i}.png", picture(i))
    captions = [{"image_id": i, "caption": f"picture {i}"} for i in range(3)]
    boxes = [
        {"id": 1, "image_id": 0, "bbox": [1, 2, 3.5, 4], "category_id": 7},
        {"id": 2, "image_id": 0, "bbox": [6, 0, 9, 8], "category_id": 9},  # beyond the right edge: cut
        {"id": 3, "image_id": 1, "bbox": [0, 0, 12, 8], "category_id": 9},
        {"id": 4, "image_id": 1, "bbox": [0, 0, 12, 8], "category_id": 9, "iscrowd": 1},
        {"id": 5, "image_id": 3, "bbox": [2, 2, 2, 2], "category_id": 7},
        {"id": 6, "image_id": 2, "bbox": [3, 3, 0, 5], "category_id": 7},
        {"id": 7, "image_id": 2, "bbox": [3, 3, 5], "category_id": 7},
        {"id": 8, "image_id": 2, "bbox": [3, 3, 5, 5], "category_id": 1},
        {"id": 9, "image_id": 99, "bbox": [3, 3, 5, 5], "category_id": 7},
    ]
    put(f"{place}/captions.json", json.dumps({"images": images, "annotations": captions}))
    put(f"{place}/instances.json", json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
    return place


BOXES = {
    "0.png": [Region((1, 2, 4.5, 6), "fish"), Region((6, 0, 12, 8), "traffic light")],
    "1.png": [Region((0, 0, 12, 8), "traffic light")],
    "3.png": [Region((2, 2, 4, 4), "fish")],
}


def test_instances_beside_captions(root):  # noqa: F811
    place = coco(root)
    source = open_source(f"coco:{place}/captions.json?images=pictures&instances=instances.json")
    found = {source[i].id: source[i] for i in range(len(source))}
    assert source.fields == ("image", "text", "regions")
    assert list(found) == ["0.png", "1.png", "2.png", "3.png"], "an image with boxes needs no caption"
    assert {i: s.fields.get("regions") for i, s in found.items()} == {**BOXES, "2.png": None}
    assert [s.captions for s in found.values()] == [["picture 0"], ["picture 1"], ["picture 2"], []]
    wrong = problems(source)
    assert set(wrong) == {
        "instances.json: annotation 6",
        "instances.json: annotation 7",
        "instances.json: annotation 8",
        "instances.json: image 99",
    }
    assert "empty box" in wrong["instances.json: annotation 6"] and wrong["instances.json: annotation 8"] == "no phrase"
    kept = sum(len(s.fields.get("regions", [])) for s in found.values())
    assert kept + len(wrong) + 1 == 9, "boxes = regions + problems + the crowd"


def test_instances_alone_and_captions_as_before(root):  # noqa: F811
    place = coco(root)
    alone = open_source(f"coco:{place}/instances.json?images=pictures")
    assert {alone[i].id: alone[i].fields["regions"] for i in range(len(alone))} == BOXES
    assert alone.fields == ("image", "regions") and problems(alone)["2.png"] == "no caption"
    plain = open_source(f"coco:{place}/captions.json?images=pictures")
    assert [list(plain[i].fields) for i in range(3)] == [["image", "text"]] * 3 and len(plain) == 3
    both = open_source(f"coco:{place}/captions.json?images=pictures&instances=instances.json")
    assert len({plain.fingerprint(), both.fingerprint(), alone.fingerprint()}) == 3
    put(f"{place}/odd.json", json.dumps({"images": [], "annotations": [{"score": 1}]}))
    with pytest.raises(DiptychError, match="no 'caption' and no 'bbox'"):
        open_source(f"coco:{place}/odd.json")


def test_annotations_with_a_caption_and_a_box(tmp_path):
    place = coco(str(tmp_path))
    annotations = [
        {"id": 1, "image_id": 0, "caption": "all of it"},
        {"id": 2, "image_id": 0, "caption": "a part", "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 1, "caption": "a fish swims", "bbox": [1, 2, 3, 4], "category_id": 7},
        {"id": 4, "image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 9},
        {"id": 5, "image_id": 3, "caption": "no box"},
        {"id": 6, "image_id": 3},
    ]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    put(f"{place}/both.json", json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    source = open_source(f"coco:{place}/both.json?images=pictures")
    found = {source[i].id: (source[i].captions, source[i].fields.get("regions")) for i in range(len(source))}
    box = (1, 2, 4, 6)
    assert found == {
        "0.png": (["all of it", "a part"], [Region(box, "a part")]),
        "1.png": (["a fish swims"], [Region(box, "fish")]),
        "2.png": ([], [Region(box, "traffic light")]),
        "3.png": (["no box"], None),
    }
    assert set(problems(source)) == {"both.json: annotation 6"}


def test_malformed_entries_of_coco_are_named_and_left_out(tmp_path):
    place = coco(str(tmp_path))
    good = {"id": 0, "file_name": "0.png", "width": 12, "height": 8}
    images = [good, 5, {"file_name": "1.png"}, {"id": [1], "file_name": "1.png"}, {"id": 2, "file_name": 7}]
    annotations = [
        {"id": 0, "image_id": 0, "caption": "good"},
        "text",
        {"id": 2, "caption": "x"},
        {"id": 3, "image_id": {}, "caption": "x"},
        {"id": 4, "image_id": 0, "caption": None},
        {"id": 5, "image_id": 0, "bbox": [0, 0, 10**400, 5], "category_id": 7},
        {"id": 6, "image_id": 0, "bbox": {"x": 1}, "category_id": 7},
        {"id": 7, "image_id": 0, "bbox": [0, 0, 5, 5], "category_id": []},
        {"id": 8, "image_id": 0, "bbox": [0, 0, 5, 5], "category_id": 7},
    ]
    put(f"{place}/odd.json", json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    source = open_source(f"coco:{place}/odd.json?images=pictures")
    assert len(source) == 1 and source[0].captions == ["good"] and source[0].fields["regions"] == [Region((0, 0, 5, 5), "fish")]
    wrong = {item.removeprefix("odd.json: "): reason for item, reason in problems(source).items()}
    assert wrong == {
        "image at place 1": "found int 5; expected {id, …}",
        "image at place 2": "no id",
        "image at place 3": "id: found list [1]; expected a number",
        "image 2": "file_name: found int 7; expected a path",
        "annotation at place 1": "found str 'text'; expected {image_id, …}",
        "annotation 2": "no image_id",
        "annotation 3": "image_id: found dict {}; expected a number",
        "annotation 4": "caption: found NoneType None; expected a text",
        "annotation 5": wrong["annotation 6"],
        "annotation 6": "no box: expected box: [left, top, right, bottom] or bbox: [left, top, width, height]",
        "annotation 7": "no phrase",
    }
    for categories in (7, [7], [{"name": "fish"}]):
        put(f"{place}/odd.json", json.dumps({"images": [good], "annotations": annotations[-1:], "categories": categories}))
        with pytest.raises(DiptychError, match=r"odd\.json: categories.*expected .*{id, name}"):
            open_source(f"coco:{place}/odd.json?images=pictures")


def table(place: str) -> str:
    for name in "abcd":
        put(f"{place}/img/{name}.png", picture(ord(name)))
    rows = [
        {"image": "a.png", "caption": "two things", "regions": [{"box": [0, 0, 6, 8], "phrase": "the left one"}, {"bbox": [6, 0, 6, 8], "phrase": "the right one"}], "by": "x"},
        {"image": "b.png", "bbox": [1, 1, 4, 4], "sentence": "a spot"},
        {"image": "b.png", "bbox": [5, 1, 4, 4], "sentences": ["another  spot", "it"]},
        {"image": "c.png", "regions": [{"box": [4, 4, 4, 8], "phrase": "nothing"}, {"phrase": "no box"}, {"box": [0, 0, 1, 1]}, 7], "caption": "kept"},
        {"image": "d.png", "regions": []},
        {"image": "gone.png", "regions": [{"box": [0, 0, 6, 8], "phrase": "x"}]},
        {"image": "", "regions": []},
    ]  # fmt: skip
    put(f"{place}/r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return f"regions:{place}/r.jsonl?images=img"


def test_tables_of_regions(root):  # noqa: F811
    source = open_source(table(root))
    found = {source[i].id: source[i] for i in range(len(source))}
    assert {i: s.fields.get("regions") for i, s in found.items()} == {
        "a.png": [Region((0, 0, 6, 8), "the left one"), Region((6, 0, 12, 8), "the right one")],
        "b.png": [Region((1, 1, 5, 5), "a spot"), Region((5, 1, 9, 5), "another spot")],
        "c.png": None,
    }
    assert found["a.png"].captions == ["two things"] and found["a.png"].extra == {"by": "x"} and found["b.png"].captions == []
    wrong = problems(source)
    assert set(wrong) == {
        "r.jsonl:4, region 1",
        "r.jsonl:4, region 2",
        "r.jsonl:4, region 3",
        "r.jsonl:4, region 4",
        "d.png",
        "gone.png",
        "r.jsonl:7",
    }
    assert "empty box" in wrong["r.jsonl:4, region 1"] and "expected box" in wrong["r.jsonl:4, region 2"]
    assert len(found) + 3 + 1 == 7, "images = samples + problems, of which one image had two rows"


def test_splits_and_batches(tmp_path):
    source = open_source(table(str(tmp_path)))
    assert sum(len(source.split(name)) for name in ("train", "validation", "test")) == 3
    tokenizer = Tokenizer.train(["the left right one a spot another"], 400, 12)
    batch = loader_for(source, tokenizer, 16, 4, fields=("image", "regions")).rows(0, 0, 4)
    rows = batch["regions"].owner.bincount(minlength=4).tolist()
    assert rows == [2] * 4 and set(batch.ids) <= {"a.png", "b.png"} and batch["regions"].boxes.shape == (8, 4)
    assert float(batch["regions"].boxes.min()) >= 0 and float(batch["regions"].boxes.max()) <= 1


class Turned:
    """An operation of one's own, of which nobody says that pixels stay."""

    def __call__(self, image, rng):
        return image[:, ::-1]


class Boxes(RegionsField):
    """Regions under another name."""


def fields_of(augment, *names):
    tokenizer = Tokenizer.train(["left right"], 300, 8)
    own = {"boxes": f"{__name__}:Boxes"}
    return build_fields(names, Context(tokenizer, 16, augment, views={"preset": "simclr", "views": 2}, own=own))


def test_boxes_are_refused_where_an_operation_of_ones_own_moves_pixels(tmp_path):
    source = open_source(table(str(tmp_path)))
    for name in ("regions", "boxes"):
        with pytest.raises(
            DiptychError, match=r"data\.augment\.also: boxes of regions follow crops and flips, but not an operation"
        ):
            Loader(source, fields_of({"also": [{"kind": f"{__name__}:Turned"}]}, "image", name), 4)


@pytest.mark.parametrize("augment", ["none", {"jitter": {"hue": 0.5}, "grey": 0.5, "blur": {}, "solarize": {}}])
def test_boxes_stay_right_with_views_and_with_what_leaves_pixels_where_they_are(tmp_path, augment):
    source = open_source(table(str(tmp_path)))
    plain, coloured = (
        Loader(source, fields_of(a, "image", *names), 4).rows(0, 0, 4)["regions"].boxes
        for a, names in (("none", ["regions"]), (augment, ["views", "regions"]))
    )
    assert plain.equal(coloured)


def test_regions_of_scenes_are_boxes_of_their_groups():
    source = open_source("scenes:full?size=96")
    assert source.fields == ("image", "text", "negatives", "regions", "label") and source.classes == list(source.world.names)
    labels = 0
    for i in range(120):
        sample = source[i]
        graph, boxes = source.graph(i), sample.extra["boxes"]
        regions = sample.fields["regions"]
        assert len(regions) == len(graph.things)
        for region, things in zip(regions, graph.things, strict=True):
            own = np.array([b["box"] for b in boxes if b["concept"] == things.concept])
            assert len(own) == things.count
            assert region.box == (*own[:, :2].min(0), *own[:, 2:].max(0))
            assert region.phrase.startswith(("a ", "an ")) == (things.count == 1) and things.colour in region.phrase
        label = sample.fields.get("label")
        assert (label is not None) == (len(graph.things) == 1)
        if label is not None:
            assert source.classes[label.index] == label.name == graph.things[0].concept
            labels += 1
    assert labels > 10
    unseen = open_source("scenes:full?split=heldout-concepts")
    names = {s.fields["label"].name for s in map(unseen.__getitem__, range(60)) if "label" in s.fields}
    assert names <= set(unseen.classes) and unseen.classes[: len(source.classes)] == source.classes


def test_inspection_and_sheet_show_regions(tmp_path, capsys):
    source = open_source(table(str(tmp_path / "in")))
    found = inspect(source.address, tmp_path / "out", progress=False)
    assert found.regions_per_item == {2: 2} and found.fields == {"image": 3, "text": 2, "regions": 2}
    print_inspection(found)
    assert "regions an item: 2 × 2" in capsys.readouterr().out
    sample = source[0]
    marked = contact_sheet([sample], tmp_path / "a.png")
    plain = contact_sheet([sample.with_(regions=None)], tmp_path / "b.png")
    with Image.open(marked) as a, Image.open(plain) as b:
        assert a.size == b.size and (np.asarray(a) != np.asarray(b)).any(), "boxes are drawn on the picture"
