"""``scenes:regions``: each phrase fits exactly one object, and its box and mask are where that object is seen.

What phrases mean is derived anew here, from the English words and the list of objects alone; masks are painted anew from the
sprites' alpha.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.data.scenes import world as world_module
from diptych.data.scenes.concepts import all_concepts
from diptych.data.scenes.sprites import PALETTE, masters, sprite
from diptych.data.sources import open_source

WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
NOUNS = {noun: c.name for c in all_concepts() for noun in (c.plural, c.name)}
SIDE = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
EXTREME = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}

ADDRESSES = [
    "scenes:regions",
    "scenes:regions?things=12&crowded=0.5&size=96&distractors=4&concepts=40&colours=10",
    "scenes:regions?tiny=0.6&size=80&split=test&wrong=12",
]


def thing(words: str) -> tuple[int, str | None, str]:
    """How many, which colour and which concept some words name."""
    parts = words.split()
    count = WORDS.get(parts[0], 1)
    parts = parts[1:] if parts[0] in WORDS else parts
    colour = parts[0] if parts[0] in PALETTE else None
    return count, colour, NOUNS[" ".join(parts[1:] if colour else parts)]


def of(objects, colour, concept):
    return [i for i, o in enumerate(objects) if o["concept"] == concept and colour in (None, o["colour"])]


def middle(o, axis):
    return (o["box"][axis] + o["box"][axis + 2]) / 2


def meant(text: str, objects: list[dict], sides: list[int]) -> list[int]:
    """The numbers of the objects that a phrase is true of."""
    text = text.removeprefix("the ")
    if match := re.fullmatch(r"(smaller|bigger) of the two (.+)", text):
        own = of(objects, *thing(match[2])[1:])
        if len(own) != 2:
            return []
        return [(min if match[1] == "smaller" else max)(own, key=lambda i: sides[i])]
    if match := re.fullmatch(r"(leftmost|rightmost|topmost|bottommost) (.+)", text):
        own, (axis, sign) = of(objects, *thing(match[2])[1:]), EXTREME[match[1]]
        best = max(own, key=lambda i: sign * middle(objects[i], axis), default=None)
        return [] if len(own) < 2 else [best]
    if match := re.fullmatch(r"(.+?) (left of|right of|above|below) the (.+)", text):
        count, colour, concept = thing(match[3])
        there, (axis, sign) = of(objects, colour, concept), SIDE[match[2].split()[0]]
        if len(there) != count:
            return []
        limit = max(sign * middle(objects[i], axis) for i in there)
        return [i for i in of(objects, *thing(match[1])[1:]) if sign * middle(objects[i], axis) > limit and i not in there]
    return of(objects, *thing(text)[1:])


@pytest.mark.parametrize("address", ADDRESSES)
def test_each_phrase_fits_exactly_one_object_and_its_wrong_versions_do_not_fit_it(address):
    source = open_source(address)
    kinds, wrongs = Counter(), Counter()
    for i in range(60):
        sample, sides = source[i], [t.side for t in source.crowd(i).things]
        objects = sample.extra["boxes"]
        assert any(fact["target"] for fact in sample.extra["refer"])
        for region, fact in zip(sample.fields["regions"], sample.extra["refer"], strict=True):
            assert meant(region.phrase, objects, sides) == [fact["object"]], region.phrase
            own = objects[fact["object"]]
            assert region.box == tuple(own["box"])
            assert fact["distractors"] == sum(o["concept"] == own["concept"] for o in objects) - 1
            for wrong in region.negatives:
                assert fact["object"] not in meant(wrong, objects, sides), (region.phrase, wrong)
            assert region.phrase not in region.negatives and len(set(region.negatives)) == len(region.negatives)
            kinds[fact["kind"]] += 1
            wrongs[len(region.negatives)] += 1
    assert set(kinds) == {"name", "colour", "size", "extreme", "relation"} and max(wrongs) == source.world.wrong


def nearest(thing, size):
    """A sprite's opaque pixels, from the drawing itself: more than half covered after scaling."""
    mask = sprite(thing.concept, thing.colour, thing.side).mask
    assert max(mask.shape) == thing.side
    master = masters()[thing.concept][..., 3]
    share = master.mean() / 255  # the same share of the rectangle is covered in the drawing
    assert abs(mask.mean() - share) < 0.2
    return mask[:, ::-1] if thing.flip else mask


@pytest.mark.parametrize("address", ADDRESSES)
def test_boxes_and_masks_are_the_visible_parts_of_the_sprites(address):
    source, hidden = open_source(address), 0
    size = source.world.size
    for i in range(25):
        sample, crowd = source[i], source.crowd(i)
        assert sample.image.shape == (size, size, 3)
        whole = []
        for t in crowd.things:
            layer = np.zeros((size, size), bool)
            mask = nearest(t, size)
            layer[t.y : t.y + mask.shape[0], t.x : t.x + mask.shape[1]] = mask
            whole.append(layer)
        for region, fact in zip(sample.fields["regions"], sample.extra["refer"], strict=True):
            k = fact["object"]
            over = np.zeros((size, size), bool)
            for later in whole[k + 1 :]:
                over |= later
            seen = whole[k] & ~over
            assert np.array_equal(region.mask, seen)
            assert sample.extra["boxes"][k]["visible"] == pytest.approx(seen.sum() / whole[k].sum(), abs=1e-4)
            assert seen.sum() >= (1 - source.world.crowded) * whole[k].sum() - 1e-9
            hidden += int(seen.sum() < whole[k].sum())
            rows, columns = np.nonzero(seen)
            assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            if region.point is not None:
                assert region.mask[int(region.point[1]), int(region.point[0])]
            colour = np.array(PALETTE[sample.extra["boxes"][k]["colour"]], float)
            inside = np.median(sample.image[seen].astype(float), axis=0)
            others = min((np.abs(inside - np.array(p, float)).sum(), name) for name, p in PALETTE.items())
            if sample.extra["boxes"][k]["colour"] in ("red", "green", "blue", "purple") and seen.sum() > 60:
                assert np.abs(inside - colour).sum() <= others[0] + 130, "the pixels of the mask have the colour of the object"
    assert bool(hidden) == bool(source.world.crowded)


def test_options_say_how_many_how_small_and_how_crowded():
    few, many = open_source("scenes:regions?things=3&distractors=0"), open_source("scenes:regions?things=10&distractors=5&size=96")
    for i in range(25):
        assert len(few[i].extra["boxes"]) == 3 and len(many[i].extra["boxes"]) in range(3, 11)
        objects = many[i].extra["boxes"]
        target = next(f for f in many[i].extra["refer"] if f["target"])
        assert target["distractors"] == min(5, len(objects) - 1)
        assert next(f for f in few[i].extra["refer"] if f["target"])["distractors"] == 0
    tiny = open_source("scenes:regions?tiny=1&size=96")
    assert all(max(b["box"][2] - b["box"][0], b["box"][3] - b["box"][1]) <= 12 for i in range(10) for b in tiny[i].extra["boxes"])
    bare = open_source("scenes:regions?masks=0&wrong=0")[0].fields["regions"]
    assert all(r.mask is None and r.negatives == () and r.point is None for r in bare)
    with pytest.raises(DiptychError, match="no option 'trios'"):
        open_source("scenes:regions?trios=1")
    with pytest.raises(DiptychError, match="no option 'things'"):
        open_source("scenes:small?things=3")


def test_what_is_held_out_stays_held_out():
    train, held, new = (open_source(f"scenes:regions?split={s}") for s in ("train", "heldout-combinations", "heldout-concepts"))
    pairs = train.world.held_out_colours
    assert pairs
    for i in range(40):
        named = [(b["concept"], b["colour"]) for b in train[i].extra["boxes"]]
        assert pairs.isdisjoint(named)
        texts = [t for r in train[i].fields["regions"] for t in (r.phrase, *r.negatives)] + train[i].negatives
        assert not any(re.search(rf"\b{colour} {concept}\b", text) for text in texts for concept, colour in pairs)
        target = next(f for f in held[i].extra["refer"] if f["target"])
        own = held[i].extra["boxes"][target["object"]]
        assert (own["concept"], own["colour"]) in pairs
        assert set(new[i].extra["labels"]) & set(new.world.unseen)


def test_captions_list_what_is_there_and_their_wrong_versions_do_not():
    source = open_source("scenes:regions?things=9&size=96")
    for i in range(40):
        sample = source[i]
        there = Counter((b["concept"], b["colour"]) for b in sample.extra["boxes"])

        def named(text):
            text = text.removeprefix("a picture of ")
            found = {}
            for part in re.split(r", | and ", text):
                part = re.sub(r"^an? ", "", part)
                count, colour, concept = thing(part)
                found[concept, colour] = count
            return found

        told = named(sample.captions[0])
        assert all(there[key] == n for key, n in told.items()) and len(told) == min(6, len(there))
        if sample.negatives[0]:
            assert any(there[key] != n for key, n in named(sample.negatives[0]).items())


def test_scenes_are_the_same_for_the_same_address_and_number_and_their_fingerprint_changes_with_options():
    a, b = open_source("scenes:regions"), open_source("scenes:regions?seed=1")
    assert a[3] == open_source("scenes:regions")[3] and a[3] != b[3]
    prints = {
        open_source(f"scenes:regions?{o}").fingerprint()
        for o in ("", "seed=1", "things=5", "crowded=0.2", "tiny=0.1", "wrong=4", "masks=0")
    }
    assert len(prints) == 7
    world = open_source("scenes:small").world
    before = {k: v for k, v in asdict(world).items() if v or k not in world_module._LATER}
    assert not {"things", "distractors", "tiny", "crowded", "wrong", "masks"} & set(before), (
        "worlds without them keep their fingerprint"
    )


def test_groups_of_other_scenes_have_masks_if_asked():
    plain, masked = open_source("scenes:full?size=96"), open_source("scenes:full?size=96&masks=1")
    covered = 0
    for i in range(30):
        without, sample = plain[i], masked[i]
        assert np.array_equal(without.image, sample.image)
        for old, region in zip(without.fields["regions"], sample.fields["regions"], strict=True):
            assert old.box == region.box and old.phrase == region.phrase and old.mask is None
            rows, columns = np.nonzero(region.mask)
            left, top, right, bottom = region.box
            assert left <= columns.min() and columns.max() < right and top <= rows.min() and rows.max() < bottom
            if plain.graph(i).relation != "front":
                assert columns.max() + 1 >= right - 3 and rows.min() <= top + 3
            else:
                covered += 1
        total = sum(r.mask.astype(int) for r in sample.fields["regions"])
        assert total.max() <= 1, "a pixel shows one group"
    assert covered
