"""``control:``: every field kind blank and shuffled, in the samples and in batches."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import sources_fixture
from diptych.core.errors import DiptychError
from diptych.core.sample import Label, Region, Sample
from diptych.data.control import BLOCK, Control, control
from diptych.data.fields import FIELDS
from diptych.data.loader import loader_for
from diptych.data.order import ENDLESS
from diptych.data.source import BrokenItem
from diptych.data.sources import open_source
from diptych.data.text import Tokenizer
from sources_fixture import make_csv, picture, put

own_cache = sources_fixture.own_cache  # pytest finds it here
pytestmark = pytest.mark.usefixtures("own_cache")
SOURCES = {
    "image": "scenes:small?length=30",
    "text": "scenes:small?length=30",
    "label": "scenes:full?length=60",
    "regions": "scenes:full?length=30",
    "turns": "scenes:small?length=30&ask=2",
    "video": "scenes:clips?length=12",
    "document": "scenes:albums?length=12",
}


def samples(source: Any) -> list[Sample]:
    return [source[i] for i in range(len(source))]


def but(sample: Sample, *names: str) -> Sample:
    return sample.with_(**dict.fromkeys(names))


@pytest.mark.parametrize("name", SOURCES)
def test_a_shuffled_field_is_anothers_and_the_rest_is_the_samples_own(name: str) -> None:
    base, found = open_source(SOURCES[name]), open_source(control(SOURCES[name], shuffle=name))
    gone = ("text", "negatives") if name == "text" else (name, "regions") if name == "image" else (name,)
    plain = samples(base)
    for i, (sample, own) in enumerate(zip(samples(found), plain, strict=True)):
        giver = plain[found.giver(i)]
        assert found.giver(i) != i and but(sample, *gone) == but(own, *gone)
        for field in {name, *gone} - {"regions"}:
            assert Sample("", v=sample.fields.get(field)) == Sample("", v=giver.fields.get(field))
        assert found.captions(i) == sample.captions + [turn.text for turn in sample.turns]
    assert sorted(map(found.giver, range(len(found)))) == list(range(len(found))), "all are dealt out"
    other = open_source(control(SOURCES[name], shuffle=name, seed=1))
    assert [other.giver(i) for i in range(12)] != [found.giver(i) for i in range(12)]
    assert pickle.loads(pickle.dumps(found)).giver(3) == found.giver(3)


@pytest.mark.parametrize("name", SOURCES)
def test_a_blank_field_says_nothing_and_the_rest_is_the_samples_own(name: str) -> None:
    base, found = open_source(SOURCES[name]), open_source(control(SOURCES[name], blank=name))
    gone = ("text", "negatives") if name == "text" else (name,)
    for sample, own in zip(samples(found), samples(base), strict=True):
        assert (but(sample, *gone) == but(own, *gone) and "negatives" not in sample.fields) or name != "text"
        if name in own.fields:
            assert Sample("", v=sample.fields[name]) == Sample("", v=FIELDS[name].blank(own.fields[name]))
    assert {s.fields["label"] for s in samples(found) if name == "label" and "label" in s.fields} <= {Label(0, "")}
    assert all((s.image == 128).all() for s in samples(found) if name == "image")


def test_boxes_are_scaled_to_the_image_that_they_are_then_on(tmp_path: Any) -> None:
    for name, size in (("a", (80, 60)), ("b", (40, 20))):
        put(f"{tmp_path}/{name}.png", large(size))
    rows = ['{"image": "a.png", "box": [8, 6, 40, 60], "phrase": "a"}', '{"image": "b.png", "box": [4, 2, 20, 20], "phrase": "b"}']
    place = put(f"{tmp_path}/r.jsonl", "\n".join(rows))
    for name, boxes in (("regions", [(8, 6, 40, 60), (4, 2, 20, 20)]), ("image", [(4, 2, 20, 20), (8, 6, 40, 60)])):
        found = open_source(f"control:regions:{place}?shuffle={name}")
        phrases = "ba" if name == "regions" else "ab"
        assert [s.fields["regions"] for s in samples(found)] == [[Region(b, p)] for b, p in zip(boxes, phrases, strict=True)]


def large(size: tuple[int, int]) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def test_batches_parts_and_fingerprints(tmp_path: Any) -> None:
    source = open_source("control:scenes:small?shuffle=text&split=train")
    assert isinstance(source, Control) and source.base.address == "scenes:small?split=train" and source.image_size == 48
    tokenizer = Tokenizer.train(["a red fish"], 300, 12)
    found, plain = (loader_for(s, tokenizer, 32, 16).batch(2) for s in (source, source.base))
    assert found.ids == plain.ids and found["image"].pixels.equal(plain["image"].pixels)
    assert sum(a != b for a, b in zip(found["text"].strings, plain["text"].strings, strict=True)) > 12
    csv = make_csv(f"{tmp_path}/in")
    all_of = [open_source(a) for a in (csv, control(csv, blank="image"), control(csv, shuffle="image"), control(csv, blank="text"))]
    assert len({s.fingerprint() for s in all_of}) == 4
    assert open_source(all_of[2].address).fingerprint() == all_of[2].fingerprint()
    with_options = control("scenes:full?size=48&length=9", blank="image")
    assert open_source(with_options)[3].image.shape == (48, 48, 3) and open_source(with_options).address == with_options


def test_of_endless_data_values_are_dealt_out_within_blocks() -> None:
    source = open_source("control:scenes:small?shuffle=text")
    n = len(source)
    assert n > ENDLESS
    for index in (0, BLOCK - 1, BLOCK, n - 1, -1):
        giver = source.giver(index)
        assert giver != index % n and 0 <= giver < n and abs(giver - index % n) < 2 * BLOCK


def test_a_broken_giver_is_a_broken_item(tmp_path: Any) -> None:
    for name in "ab":
        put(f"{tmp_path}/{name}.png", picture(1) if name == "a" else b"none")
        put(f"{tmp_path}/{name}.txt", name)
    source = open_source(f"control:folder:{tmp_path}?shuffle=image")
    with pytest.raises(BrokenItem, match=r"a\.png: its image would be that of b\.png: "):
        source[0]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("control:scenes:small", "name one field, by blank= or by shuffle="),
        ("control:scenes:small?blank=text&shuffle=text", "name one field"),
        ("control:scenes:small?blank=imgae", "no field 'imgae'; did you mean 'image'"),
        ("control:scenes:small?blank=negatives", "negatives go with text; name that"),
        ("control:scenes:small?blank=views", "'views' is made of other fields"),
        ("control:scenes:small?shuffle=video", r"has no field 'video' \(it has: image, text"),
        ("control:mix:1*scenes:small+1*scenes:full?blank=text", "mix controls of its sources instead"),
    ],
)
def test_what_cannot_be_controlled_is_refused_with_the_remedy(address: str, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        open_source(address)


def test_controls_of_sources_can_be_mixed(tmp_path: Any) -> None:
    mixture = open_source(f"mix:1*control:{make_csv(f'{tmp_path}/in')}?blank=image+1*scenes:small?length=5")
    assert mixture.lengths == [3, 5] and (mixture[0].image == 128).all() and np.ptp(mixture[3].image) > 0
