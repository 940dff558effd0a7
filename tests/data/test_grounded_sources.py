"""Boxes, masks and phrases from the files of published data sets, and conventions of coordinates."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.regions.conventions import Convention, convention, every
from diptych.data.regions.outlines import ColumnRuns, decompressed, inside, outline_of
from diptych.data.sources import open_source
from sources_fixture import own_cache, picture, problems, put  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("own_cache")  # pictures of the fixture: 12 wide, 8 high
W, H = 12, 8


def found(source):
    return {source[i].id: source[i] for i in range(len(source))}


# --- masks ---


def in_polygon(x, y, corners):
    """The even-odd rule, one pixel at a time."""
    odd = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 <= y < y1 or y1 <= y < y0) and x > x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def test_polygons_cover_the_pixels_with_their_centre_inside():
    rng = np.random.default_rng(0)
    for _ in range(30):
        corners = [tuple(p) for p in rng.uniform(-3, 15, (int(rng.integers(3, 8)), 2)).tolist()]
        wanted = [[in_polygon(c + 0.5, r + 0.5, corners) for c in range(W)] for r in range(H)]
        assert np.array_equal(inside(np.array(corners), H, W), wanted)
    two = outline_of([[0, 0, 4, 0, 4, 4, 0, 4], [6, 2, 9, 2, 9, 5, 6, 5]], (H, W)).draw(H, W)
    assert two.sum() == 16 + 9 and two[:4, :4].all() and two[2:5, 6:9].all()
    thin = outline_of([[2.1, 2.1, 2.3, 2.1, 2.2, 2.3]], (H, W)).draw(H, W)
    assert thin.sum() == 1 and thin[2, 2], "a part without a pixel's centre keeps the pixel in its middle"


def compressed(counts):
    """COCO's text of run lengths, as its toolbox writes it."""
    text = ""
    for i, count in enumerate(counts):
        x = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != -1 if bits & 0x10 else x != 0
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def test_run_lengths_plain_and_compressed():
    rng = np.random.default_rng(1)
    for shape in ((8, 12), (40, 70), (300, 2)):
        mask = rng.random(shape) < 0.4
        flat = mask.T.ravel().tolist()  # column by column
        counts, value = [0], False
        for pixel in flat:
            if pixel != value:
                counts.append(0)
                value = pixel
            counts[-1] += 1
        assert decompressed(compressed(counts)) == counts
        for given in (counts, compressed(counts)):
            outline = outline_of({"counts": given, "size": list(shape)}, shape)
            assert isinstance(outline, ColumnRuns) and np.array_equal(outline.draw(*shape), mask)
        assert outline.draw(5, 5) is None
    for wrong, reason in (
        ({"counts": [3, 4], "size": [2, 2]}, "7 pixels for 2 × 2"),
        ({"counts": [4], "size": [2, 2]}, "the picture has 8 × 12"),
        ({"counts": "0~", "size": [8, 12]}, "character"),
        ({"counts": "o", "size": [8, 12]}, "end within a number"),
        ([[1, 2, 3]], "three corners"),
        ([[1, 2, 3, 4, 5, "x"]], "no numbers"),
    ):
        with pytest.raises(ValueError, match=reason):
            outline_of(wrong, (8, 12))
    assert outline_of(None, (8, 12)) is None is outline_of([], (8, 12))


def test_coco_masks_come_with_instances_if_asked(tmp_path):
    place = str(tmp_path)
    for i in range(2):
        put(f"{place}/{i}.png", picture(i))
    square = [[2, 1, 6, 1, 6, 5, 2, 5]]
    annotations = [
        {"id": 1, "image_id": 0, "bbox": [2, 1, 4, 4], "category_id": 7, "segmentation": square},
        {"id": 2, "image_id": 0, "bbox": [0, 0, 1, 8], "category_id": 7, "segmentation": {"counts": [0, 8, 88], "size": [8, 12]}},
        {"id": 3, "image_id": 0, "bbox": [0, 0, 1, 8], "category_id": 7, "segmentation": {"counts": [0, 8, 87], "size": [8, 12]}},
        {"id": 4, "image_id": 1, "bbox": [0, 0, 3, 3], "category_id": 7},
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": W, "height": H} for i in range(2)]
    put(f"{place}/i.json", json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "fish"}]}))
    plain, masked = open_source(f"coco:{place}/i.json"), open_source(f"coco:{place}/i.json?masks=true")
    assert all(r.mask is None for r in plain[0].fields["regions"]) and len(plain[0].fields["regions"]) == 3
    first, second = masked[0].fields["regions"]
    assert first.mask.sum() == 16 and first.mask[1:5, 2:6].all() and second.mask[:, 0].all() and second.mask.sum() == 8
    assert masked[1].fields["regions"][0].mask is None
    assert list(problems(masked)) == ["i.json: annotation 3"] and not problems(plain)
    assert plain.fingerprint() != masked.fingerprint()
    assert masked.listed(0).fields["regions"][0].mask is None, "no picture, no mask"


def test_lvis_has_addresses_and_underscores_and_objects365_deep_paths(tmp_path):
    place = str(tmp_path)
    put(f"{place}/val2017/000000000001.png", picture(1))
    put(f"{place}/images/v1/patch8/objects365_v1_00000002.png", picture(2))
    lvis = {"images": [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000000000001.png", "neg_category_ids": [5]}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [1, 1, 5, 5]}],
            "categories": [{"id": 4, "name": "aerosol_can", "synset": "aerosol.n.02", "synonyms": ["spray_can"]}]}  # fmt: skip
    put(f"{place}/lvis_v1_val.json", json.dumps(lvis))
    sample = open_source(f"coco:{place}/lvis_v1_val.json")[0]
    assert sample.fields["regions"] == [Region((1, 1, 6, 6), "aerosol can")] and sample.id == "val2017/000000000001.png"
    assert sample.extra["neg_category_ids"] == [5]
    many = {"images": [{"id": 2, "file_name": "images/v1/patch8/objects365_v1_00000002.png", "width": W, "height": H}],
            "annotations": [{"id": 9, "image_id": 2, "category_id": 1, "bbox": [0.5, 1.25, 3, 4], "iscrowd": 0}],
            "categories": [{"id": 1, "name": "Person"}]}  # fmt: skip
    put(f"{place}/zhiyuan_objv2_val.json", json.dumps(many))
    assert open_source(f"coco:{place}/zhiyuan_objv2_val.json")[0].fields["regions"] == [Region((0.5, 1.25, 3.5, 5.25), "Person")]


def test_panoptic_segments_are_regions_with_exact_masks(tmp_path):
    place = str(tmp_path)
    numbers = np.zeros((H, W), int)
    numbers[2:6, 3:9], numbers[6:, :] = 70_000, 300
    put(f"{place}/val2017/a.png", picture(0))
    file = io.BytesIO()
    Image.fromarray(np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)).save(file, "PNG")
    put(f"{place}/panoptic_val2017/a.png", file.getvalue())
    info = [
        {"id": 70_000, "category_id": 1, "bbox": [3, 2, 6, 4], "area": 24, "iscrowd": 0},
        {"id": 300, "category_id": 2, "bbox": [0, 6, 12, 2], "area": 24, "iscrowd": 0},
        {"id": 301, "category_id": 2, "bbox": [0, 6, 12, 2], "iscrowd": 1},
        {"id": 302, "category_id": 2, "bbox": [5, 5, 0, 2], "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": W, "height": H}],
        "annotations": [
            {"image_id": 5, "file_name": "a.png", "segments_info": info},
            {"image_id": 6, "file_name": "b.png", "segments_info": []},
        ],
        "categories": [{"id": 1, "name": "dog", "isthing": 1}, {"id": 2, "name": "grass-merged", "isthing": 0}],
    }
    put(f"{place}/panoptic_val2017.json", json.dumps(content))
    source = open_source(f"panoptic:{place}/panoptic_val2017.json")
    dog, grass = source[0].fields["regions"]
    assert (dog.phrase, dog.box, grass.phrase) == ("dog", (3, 2, 9, 6), "grass-merged")
    assert np.array_equal(dog.mask, numbers == 70_000) and np.array_equal(grass.mask, numbers == 300)
    wrong = problems(source)
    assert len(wrong) == 2 and any("empty box" in r for r in wrong.values()) and any("no image" in r for r in wrong.values())
    assert [r.phrase for r in open_source(f"panoptic:{place}/panoptic_val2017.json?things=true")[0].fields["regions"]] == ["dog"]
    with pytest.raises(DiptychError, match="give panoptic:"):
        open_source(f"coco:{place}/panoptic_val2017.json")


def test_visual_genome_of_each_file(tmp_path):
    place = str(tmp_path)
    put(f"{place}/VG_100K_2/1.jpg", picture(1))
    put(f"{place}/VG_100K/2.jpg", picture(2))
    data = [
        {"image_id": 1, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "width": W, "height": H, "coco_id": None}
    ]
    put(f"{place}/image_data.json", json.dumps(data))
    regions = [
        {"id": 1, "regions": [
            {"region_id": 1, "image_id": 1, "x": 1, "y": 2, "width": 4, "height": 3, "phrase": "the clock is green"},
            {"region_id": 2, "image_id": 1, "x": 9, "y": 2, "width": 40, "height": 3, "phrase": "beyond the edge"},
            {"region_id": 3, "image_id": 1, "x": 1, "y": 2, "width": -4, "height": 3, "phrase": "upside down"}]},
        {"id": 2, "regions": [{"region_id": 4, "x": 0, "y": 0, "width": 2, "height": 2, "phrase": "a corner"}]},
    ]  # fmt: skip
    put(f"{place}/region_descriptions.json", json.dumps(regions))
    source = open_source(f"genome:{place}/region_descriptions.json")
    samples = found(source)
    assert samples["1.jpg"].fields["regions"] == [
        Region((1, 2, 5, 5), "the clock is green"),
        Region((9, 2, 12, 5), "beyond the edge"),
    ]
    assert samples["2.jpg"].fields["regions"] == [Region((0, 0, 2, 2), "a corner")] and samples["2.jpg"].extra == {"image_id": 2}
    assert list(problems(source)) == ["region_descriptions.json: image 1, regions 2"]
    clock = {"object_id": 5, "x": 1, "y": 2, "w": 4, "h": 3, "names": ["clock"], "synsets": ["clock.n.01"]}
    street = {"object_id": 6, "x": 0, "y": 5, "w": 12, "h": 3, "names": ["street"]}
    put(f"{place}/objects.json", json.dumps([{"image_id": 1, "objects": [clock, street]}]))
    assert open_source(f"genome:{place}/objects.json")[0].fields["regions"] == [
        Region((1, 2, 5, 5), "clock"),
        Region((0, 5, 12, 8), "street"),
    ]
    attributes = [{**clock, "attributes": ["green ", "tall"]}, street]
    put(f"{place}/attributes.json", json.dumps([{"image_id": 1, "attributes": attributes}]))
    assert [r.phrase for r in open_source(f"genome:{place}/attributes.json")[0].fields["regions"]] == ["green clock", "street"]
    all_ = open_source(f"genome:{place}/attributes.json?attributes=all")[0].fields["regions"]
    assert [r.phrase for r in all_] == ["green tall clock", "street"]
    relations = [{"predicate": "ON", "subject": {**clock, "name": "clock"}, "object": {**street, "name": "street"}}]
    put(f"{place}/relationships.json", json.dumps([{"image_id": 1, "relationships": relations}]))
    assert open_source(f"genome:{place}/relationships.json")[0].fields["regions"] == [Region((0, 2, 12, 8), "clock on street")]
    put(f"{place}/other.json", json.dumps([{"image_id": 1, "questions": []}]))
    with pytest.raises(DiptychError, match="none of the lists regions, objects"):
        open_source(f"genome:{place}/other.json")


REFS = [
    {"ref_id": 0, "ann_id": 11, "image_id": 1, "split": "train", "category_id": 7,
     "sentences": [{"raw": "The left one", "sent": "the left one", "tokens": ["the"], "sent_id": 0}, {"raw": "red fish", "sent": "red fish"}]},
    {"ref_id": 1, "ann_id": 12, "image_id": 2, "split": "testA", "category_id": 7, "sentences": [{"sent": "a thing"}]},
    {"ref_id": 2, "ann_id": 13, "image_id": 2, "split": "testA", "category_id": 7, "sentences": [{"sent": "no box"}]},
    {"ref_id": 3, "ann_id": 99, "image_id": 2, "split": "testA", "category_id": 7, "sentences": [{"sent": "no object"}]},
    {"ref_id": 4, "ann_id": 11, "image_id": 1, "split": "val", "category_id": 7, "sentences": [{"sent": "another part"}]},
]  # fmt: skip


def refs(place, name, data):
    for i in (1, 2):
        put(f"{place}/train2014/COCO_train2014_{i}.jpg", picture(i))
    annotations = [
        {"id": 11, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {"id": 12, "image_id": 2, "category_id": 7, "bbox": [2, 0, 10, 8]},
        {"id": 13, "image_id": 2, "category_id": 7, "bbox": [2, 0, 0, 8]},
    ]
    images = [{"id": i, "file_name": f"COCO_train2014_{i}.jpg", "width": W, "height": H} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "fish"}]}
    put(f"{place}/refcoco/instances.json", json.dumps(content))
    put(f"{place}/refcoco/{name}", data)
    return f"refcoco:{place}/refcoco/{name}"


@pytest.mark.parametrize("form", ["json", "pickle", "old pickle"])
def test_refcoco_of_each_form(tmp_path, form):
    name = "refs.json" if form == "json" else "refs(unc).p"
    data = json.dumps(REFS) if form == "json" else pickle.dumps(REFS, protocol=2 if form == "old pickle" else 4)
    source = open_source(refs(str(tmp_path), name, data))
    samples = found(source)
    assert set(samples) == {"COCO_train2014_1.jpg#train", "COCO_train2014_1.jpg#val", "COCO_train2014_2.jpg"}
    assert samples["COCO_train2014_1.jpg#train"].fields["regions"] == [
        Region((1, 1, 5, 5), "The left one"),
        Region((1, 1, 5, 5), "red fish"),
    ]
    assert samples["COCO_train2014_2.jpg"].extra == {"coco_id": 2, "part": "testA", "categories": ["fish"]}
    assert set(problems(source)) == {f"{name}: reference 2", f"{name}: reference 3"}
    test_a = open_source(f"{source.address}?split=testA")
    assert len(test_a) == 1 and len(source.split("validation")) == 1 and test_a.split("testA") is test_a
    with pytest.raises(DiptychError, match="no part 'testB'; it has testA, train, val"):
        source.split("testB")
    masked = open_source(f"{source.address}?masks=true")
    assert masked[0].fields["regions"][0].mask.sum() == 16


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/diptych-was-here",)


def test_a_pickle_that_holds_more_than_plain_data_is_refused_without_running_it(tmp_path):
    address = refs(str(tmp_path), "refs(unc).p", pickle.dumps([{"ref_id": 0, "x": Evil()}]))
    with pytest.raises(DiptychError, match=r"refused, since it can run code: .*system.*save the list as JSON"):
        open_source(address)
    assert not os.path.exists("/tmp/diptych-was-here")
    address = refs(str(tmp_path), "refs(unc).p", pickle.dumps([np.zeros(2)]))
    with pytest.raises(DiptychError, match="no plain data"):
        open_source(address)
    with pytest.raises(DiptychError, match="cannot be read"):
        open_source(refs(str(tmp_path), "refs(unc).p", b"\x80\x04}"))
    with pytest.raises(DiptychError, match=r"there is no .*inst\.json; name it"):
        open_source(refs(str(tmp_path), "refs.json", json.dumps(REFS)) + "?instances=inst.json")


XML = """<annotation><filename>{0}.jpg</filename><size><width>12</width><height>8</height><depth>3</depth></size>
<object><name>21</name><name>22</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>8</ymax></bndbox></object>
<object><name>21</name><bndbox><xmin>7</xmin><ymin>3</ymin><xmax>12</xmax><ymax>8</ymax></bndbox></object>
<object><name>23</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>24</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>4</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""


def test_flickr30k_entities(tmp_path):
    place = str(tmp_path)
    for i in ("1", "2", "3"):
        put(f"{place}/flickr30k-images/{i}.jpg", picture(int(i)))
    lines = "[/EN#21/people Two men] near [/EN#22/bodyparts hair] in [/EN#23/scene a yard] .\nAn [/EN#24/other/vehicles odd car] [/EN#0/notvisual it]\n"
    put(f"{place}/entities/Sentences/1.txt", lines)
    put(f"{place}/entities/Annotations/1.xml", XML.format(1))
    put(f"{place}/entities/Sentences/2.txt", "Nothing marked .\n")
    put(f"{place}/entities/Annotations/2.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>")
    put(f"{place}/entities/Sentences/3.txt", "[/EN#21/people Two] .\n")
    put(f"{place}/entities/train.txt", "1\n3\n")
    put(f"{place}/entities/test.txt", "2\n")
    source = open_source(f"entities:{place}/entities?images={place}/flickr30k-images")
    samples = found(source)
    assert samples["1.jpg"].captions == ["Two men near hair in a yard .", "An odd car it"]
    assert samples["1.jpg"].fields["regions"] == [
        Region((0, 0, 4, 8), "Two men"), Region((6, 2, 12, 8), "Two men"), Region((0, 0, 4, 8), "hair"),
    ]  # fmt: skip
    assert samples["1.jpg"].extra == {"kinds": ["people", "people", "bodyparts"], "chains": ["21", "21", "22"], "part": "train"}
    union = open_source(f"entities:{place}/entities?boxes=union")
    assert found(union)["1.jpg"].fields["regions"][0] == Region((0, 0, 12, 8), "Two men")
    assert len(source.split("train")) == 2 and len(source.split("test")) == 1
    wrong = problems(source)
    assert "empty box" in wrong["1, phrase 24"] and "document type or entities" in wrong["2"] and "3" in wrong


# --- tables and conventions ---

BOX = (3.0, 2.0, 9.0, 6.0)  # of a picture of 12 × 8
WRITTEN = {
    "xyxy": [3, 2, 9, 6],
    "xywh": [3, 2, 6, 4],
    "yxyx": [2, 3, 6, 9],
    "center": [6, 4, 6, 4],
    "xyxy/1": [0.25, 0.25, 0.75, 0.75],
    "xywh/100": [25, 25, 50, 50],
    "yxyx/1000": [250, 250, 750, 750],
    "center/1": [0.5, 0.5, 0.5, 0.5],
    "xyxy/1@padded": [3 / 12, 4 / 12, 9 / 12, 8 / 12],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_convention_is_read_by_declaration(tmp_path, name):
    put(f"{tmp_path}/0.png", picture(0))
    rows = [{"image": "0.png", "regions": [{"bbox": WRITTEN[name], "phrase": "it"}, {"bbox": [9, 9, 9], "phrase": "short"}]}]
    put(f"{tmp_path}/r.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    source = open_source(f"regions:{tmp_path}/r.jsonl?convention={name}")
    (region,) = source[0].fields["regions"]
    assert region.phrase == "it" and region.box == pytest.approx(BOX) and list(problems(source)) == ["r.jsonl:1, region 2"]
    np.testing.assert_allclose(convention(name).numbers(BOX, 8, 12), WRITTEN[name], atol=1e-9)


def test_conventions_are_inverses_and_unknown_ones_refused():
    for each in every():
        np.testing.assert_allclose(each.box(each.numbers(BOX, 8, 12), 8, 12), BOX, atol=1e-9)
        assert convention(str(each)) == each
    assert convention("cxcywh/1") == Convention("center", 1) and len(set(map(str, every()))) == 48
    for wrong, reason in (("xyyx", "no order 'xyyx'"), ("xyxy/10", "expected /1, /100")):
        with pytest.raises(DiptychError, match=reason):
            open_source(f"regions:nowhere.jsonl?convention={wrong}")


def test_bad_declared_boxes_are_problems_once_the_picture_is_known(tmp_path):
    put(f"{tmp_path}/0.png", picture(0))
    regions = [
        {"box": [0.1, 0.1, 0.5, 0.5], "phrase": "a"},
        {"box": [2, 2, 3, 3], "phrase": "out"},
        {"box": [0.5, 0.1, 0.2, 0.5], "phrase": "b"},
    ]
    put(f"{tmp_path}/r.json", json.dumps([{"image": "0.png", "regions": regions}]))
    source = open_source(f"regions:{tmp_path}/r.json?convention=xyxy/1")
    assert not problems(source) and [r.phrase for r in source[0].fields["regions"]] == ["a"]
    source[0]
    assert set(problems(source)) == {"0.png, region 2", "0.png, region 3"}


def test_points_alone_and_with_boxes(tmp_path):
    put(f"{tmp_path}/0.png", picture(0))
    rows = [
        {"image": "0.png", "points": [{"x": 50, "y": 25}, {"x": 101, "y": 5}], "label": "the wheel"},
        {
            "image": "0.png",
            "regions": [{"box": [0, 0, 50, 50], "point": [25, 50], "phrase": "both", "negatives": ["neither", "one"]}],
        },
    ]
    put(f"{tmp_path}/p.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    source = open_source(f"regions:{tmp_path}/p.jsonl?convention=xyxy/100")
    wheel, both = source[0].fields["regions"]
    assert wheel == Region((6, 2, 7, 3), "the wheel", None, (), (6.0, 2.0))
    assert both == Region((0, 0, 6, 4), "both", None, ("neither", "one"), (3.0, 4.0))
    assert len(problems(source)) == 1


def test_grit_rows_and_parquet_with_one_box_a_row(tmp_path):
    put(f"{tmp_path}/0.png", picture(0))
    caption = "a dog on the grass"
    row = {"image": "0.png", "caption": caption, "ref_exps": [[0, 5, 0.25, 0.25, 0.75, 0.75, 0.9]], "noun_chunks": [[0, 5, 0.25, 0.25, 0.75, 0.75, 0.9], [9, 18, 0, 0.5, 1, 1, 0.8]]}  # fmt: skip
    put(f"{tmp_path}/g.jsonl", json.dumps(row))
    sample = open_source(f"regions:{tmp_path}/g.jsonl")[0]
    assert sample.fields["regions"] == [Region(BOX, "a dog"), Region((0, 4, 12, 8), "the grass")] and sample.captions == [caption]
    keys = ("caption", "ref_exps", "noun_chunks")
    pq.write_table(
        pa.table({"image": [{"bytes": picture(0), "path": "a"}], **{k: [row[k]] for k in keys}}), f"{tmp_path}/g.parquet"
    )
    same = open_source(f"regions:{tmp_path}/g.parquet")[0]
    assert same.fields["regions"] == sample.fields["regions"] and same.captions == [caption]
    table = pa.table({
        "question_id": ["1", "2"], "image": [{"bytes": picture(0), "path": "a"}, {"bytes": picture(1), "path": "b"}],
        "answer": [["the red one", "left one"], ["it"]], "bbox": [[3.0, 2.0, 6.0, 4.0], [3.0, 2.0, 0.0, 4.0]],
        "segmentation": [[3.0, 2.0, 9.0, 2.0, 9.0, 6.0, 3.0, 6.0], None],
    })  # fmt: skip
    pq.write_table(table, f"{tmp_path}/refcoco.parquet")
    source = open_source(f"regions:{tmp_path}/refcoco.parquet?masks=true")
    one, two = source[0].fields["regions"]
    assert (one.box, one.phrase, two.phrase) == (BOX, "the red one", "left one") and one.mask.sum() == 24
    assert len(source) == 1 and list(problems(source)) == ["refcoco.parquet:1, region 1"]
    corners = open_source(f"regions:{tmp_path}/refcoco.parquet?convention=xyxy&box=bbox&phrase=answer")
    assert corners[0].fields["regions"][0].box == (3, 2, 6, 4)
