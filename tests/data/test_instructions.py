"""Instructions about scenes: every answer is checked against the boxes of the picture by a reader that shares no code with them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from importlib.metadata import version

import numpy as np
import pytest
from test_scenes import DRAWN_WITH

from diptych.core.errors import DiptychError
from diptych.core.sample import IMAGE
from diptych.data.conversations.turns import check_images
from diptych.data.scenes.graph import Graph, is_held_out
from diptych.data.scenes.instruct.several import KINDS
from diptych.data.scenes.instruct.source import Instructions, instruct, instructions_in
from diptych.data.scenes.layout import picture
from diptych.data.sources import open_source
from scene_reader import NOUNS

TEST = "instruct:scenes:small?split=test"
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


@pytest.fixture(scope="module")
def source():
    return open_source("instruct:scenes:small")


@pytest.fixture(scope="module")
def asked(source):
    return {kind: source.asked(kind, 120) for kind in KINDS}


# --- published, balanced ---

PUBLISHED = ("74f77d274ee76ff1", "4862425ebb5b263e")


def test_the_conversations_are_the_published_ones():
    words, pixels = hashlib.sha256(), hashlib.sha256()
    source = open_source(TEST)
    for i in range(60):
        sample = source[i]
        words.update("\n".join(f"{turn.role}: {turn.text}" for turn in sample.turns).encode())
        for image in sample.images:
            pixels.update(image.tobytes())
    assert words.hexdigest()[:16] == PUBLISHED[0]
    if {package: version(package) for package in DRAWN_WITH} == DRAWN_WITH:
        assert pixels.hexdigest()[:16] == PUBLISHED[1]


def test_each_question_has_a_twin_with_another_answer(source, asked):
    for kind, items in asked.items():
        for a, b in zip(items[::2], items[1::2], strict=True):
            assert a.pair == b.pair and a.exchange.question == b.exchange.question, kind
            assert a.exchange.answer != b.exchange.answer == a.other
            assert all(np.array_equal(x, y) for x, y in zip(a.wrong, b.images, strict=True))
            assert not all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    for i in range(0, 200, 2):
        first, second = source.talk(i).exchanges, source.talk(i + 1).exchanges
        for a, b in zip(first, second, strict=True):
            assert a.question == b.question and a.kind == b.kind and a.answer != b.answer


def test_of_any_yes_no_question_half_of_the_answers_are_yes(source):
    answers = defaultdict(Counter)
    for i in range(800):
        for e in source.talk(i).exchanges:
            if e.kind == "yes-no":
                answers[e.question][e.answer] += 1
    assert len(answers) > 100 and all(count["yes"] == count["no"] for count in answers.values())


def test_refusals_and_corrections_are_half_of_the_answers_of_any_question(source, asked):
    for kind, fact in (("refuse", "absent"), ("correct", "false")):
        found = defaultdict(Counter)
        for item in asked[kind]:
            found[item.exchange.question][item.exchange.truth[fact]] += 1
        assert all(count[True] == count[False] for count in found.values())


def test_conversations_begin_with_each_kind_equally_often(source):
    first = Counter(source.talk(i).exchanges[0].kind for i in range(0, 1600, 2))
    assert set(first) == set(KINDS) and min(first.values()) > 60  # of 100 expected


# --- true ---


def seen(graph, size):
    boxes = picture(graph, size)[1]
    objects = defaultdict(list)
    for b in boxes:
        left, top, right, bottom = b["box"]
        objects[b["concept"]].append(((left + right) / 2 / size, (top + bottom) / 2 / size, b["colour"], b["box"]))
    order = [b["concept"] for b in boxes]
    return objects, order


def concept_of(words):
    return NOUNS[words] if words in NOUNS else NOUNS[words.removeprefix("a ").removeprefix("an ")]


def true_of(question, objects, order):
    """Whether a yes/no question is answered by yes, from the boxes."""
    text = question.rstrip("?")
    if found := re.fullmatch(r"(?:is|are) there exactly (\w+) (.+)", text):
        return len(objects.get(concept_of(found[2]), [])) == WORDS[found[1]]
    if found := re.fullmatch(r"(?:is|are) there (.+)", text):
        return concept_of(found[1]) in objects
    if found := re.fullmatch(r"(?:is|are) the (.+?) (left of|above|in front of) the (.+)", text):
        a, b = objects[concept_of(found[1])], objects[concept_of(found[3])]
        if found[2] == "in front of":
            return order.index(concept_of(found[1])) > order.index(concept_of(found[3]))
        axis = 0 if found[2] == "left of" else 1
        return max(x[axis] for x in a) < min(x[axis] for x in b)
    if found := re.fullmatch(r"is the (.+?) in the (top left|top right|bottom left|bottom right|centre)", text):
        ((x, y, _, _),) = objects[concept_of(found[1])]
        return place_of(x, y) == found[2]
    found = re.fullmatch(r"(?:is|are) the (.+) (\w+)", text)
    return {o[2] for o in objects[concept_of(found[1])]} == {found[2]}


def place_of(x, y):
    if abs(x - 0.5) < 0.13 and abs(y - 0.5) < 0.13:
        return "centre"
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def check(e, objects, order, size):
    """Checks one answer about one picture."""
    if e.kind == "yes-no":
        assert e.answer == ("yes" if true_of(e.question, objects, order) else "no"), e
    elif e.kind == "count":
        total = int(e.answer.rpartition("= ")[2])
        parts = [(int(n), words) for n, words in re.findall(r"(\d+) (\w[\w ]*?)(?= \+| =)", e.answer)]
        assert sum(n for n, _ in parts) == total
        if "each kind" in e.question:
            assert {concept_of(words): n for n, words in parts} == {c: len(o) for c, o in objects.items()}
        else:
            of = objects[concept_of(re.match(r"how many (.+?) are", e.question)[1])]
            side = {
                "left": lambda o: o[0] < 0.5,
                "right": lambda o: o[0] > 0.5,
                "top": lambda o: o[1] < 0.5,
                "bottom": lambda o: o[1] > 0.5,
            }
            assert all(n == sum(map(side[words], of)) for n, words in parts) and total == len(of)
    elif e.kind == "refuse":
        named = concept_of(re.match(r"(?:how many|what colour (?:is|are) the|where is the) (.+?)(?: are there)?\?$", e.question)[1])
        assert (named not in objects) == e.answer.startswith("there ") == e.truth["absent"]
        if named in objects and "colour" in e.question:
            assert {o[2] for o in objects[named]} == {e.answer}
        elif named in objects and "many" in e.question:
            assert len(objects[named]) == WORDS[e.answer]
        elif named in objects:
            assert f"in the {place_of(*objects[named][0][:2])}" == e.answer
    elif e.kind == "correct":
        stated = e.question.partition(". ")[0]
        verb = re.search(r" (is|are) ", f" {stated} ")[1]
        if stated.startswith("there "):
            number, _, noun = stated.removeprefix(f"there {verb} ").partition(" ")
            true = len(objects[concept_of(noun)]) == {**WORDS, "a": 1, "an": 1}[number]
        else:
            subject, _, rest = stated.partition(f" {verb} ")
            true = true_of(f"{verb} {subject} {rest}", objects, order)
        assert true == e.answer.startswith("right; ") != e.answer.startswith("no, ")
    elif e.kind == "box":
        box = [int(n) * size / 100 for n in re.findall(r"\d+", e.answer)]
        right = [o[3] for many in objects.values() for o in many]
        near = [b for b in right if max(abs(x - y) for x, y in zip(box, b, strict=True)) <= 0.005 * size + 1e-9]
        assert len(near) == 1
        named = re.match(r"where is the (.+)\? ", e.question)
        if named:
            assert near[0] in [o[3] for o in objects[concept_of(named[1])]]
    elif e.kind == "follow":
        (a, where_a), (b, where_b) = ((c, o[0]) for c, o in objects.items())
        axis = 0 if "left" in (e.before[0][0] if e.before else e.question) else 1
        near, far = (a, b) if where_a[axis] < where_b[axis] else (b, a)
        right = (f"the {near}", objects[near][0][2], objects[far][0][2])
        assert [*(answer for _, answer in e.before), e.answer] == list(right[: len(e.before) + 1])


@pytest.mark.parametrize(
    "address", ["instruct:scenes:small", "instruct:scenes:medium", "instruct:scenes:small%3Fsplit%3Dheldout-combinations"]
)
def test_answers_are_true_of_the_pictures(address):
    source = open_source(address)
    seen_kinds = Counter()
    for i in range(240):
        talk = source.talk(i)
        if len(talk.graphs) == 1:
            objects, order = seen(talk.graphs[0], source.image_size)
            for e in talk.exchanges:
                check(e, objects, order, source.image_size)
                seen_kinds[e.kind] += 1
    assert min(seen_kinds[kind] for kind in ("yes-no", "count", "refuse", "correct", "box", "follow")) >= 10


def test_one_picture_alone_is_described(asked):
    from diptych.data.scenes.language import describe

    source = open_source("instruct:scenes:small?kinds=which")
    for i in range(40):
        talk = source.talk(i)
        described = re.match(r"which picture shows (.+)\?", talk.exchanges[0].question)[1]
        fits = [k for k, graph in enumerate(talk.graphs) if describe(graph, 0) == described]
        assert [f"the {('first', 'second', 'third', 'fourth')[k]} picture" for k in fits] == [talk.exchanges[0].answer]


# --- form ---


def test_a_conversation_is_whole(source):
    for i in range(60):
        sample = source[i]
        check_images(sample.turns, len(sample.images))
        assert sample.turns[0].text.startswith(IMAGE) and [t.role for t in sample.turns] == ["user", "assistant"] * (
            len(sample.turns) // 2
        )
        assert len(sample.turns) <= 2 * 3 and np.array_equal(sample.image, sample.images[0]) and sample.captions
        assert source.captions(i)[: len(sample.captions)] == sample.captions
    again = open_source("instruct:scenes:small")
    assert again[7] == source[7] and again[-1].id == f"train/{len(again) - 1}"


def test_kinds_turns_boxes_and_splits_stand_in_the_address():
    source = open_source("instruct:scenes:small?kinds=box,yes-no&turns=1&boxes=kosmos-2/16")
    talks = [source.talk(i) for i in range(80)]
    assert {e.kind for talk in talks for e in talk.exchanges} == {"box", "yes-no"} and all(
        len(talk.exchanges) == 1 for talk in talks
    )
    boxes = [e.answer for talk in talks for e in talk.exchanges if e.kind == "box"]
    assert boxes and all(re.search(r"<patch_index_\d{4}><patch_index_\d{4}>$", box) for box in boxes)
    part = source.split("test")
    assert open_source(part.address).fingerprint() == part.fingerprint() != source.fingerprint()
    assert open_source(part.address)[3] == part[3]
    assert source.fingerprint() != open_source("instruct:scenes:small").fingerprint()
    assert instruct("scenes:small?size=64", kinds="count") == "instruct:scenes:small%3Fsize%3D64?kinds=count"
    held = open_source("instruct:scenes:small").split("heldout-combinations")
    assert all(
        any(is_held_out(Graph(*g), held.base.world) for g in held.talk(i).graphs + held.talk(i ^ 1).graphs) for i in range(30)
    )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("instruct:scenes:small?kinds=count,refus", "no kind 'refus'"),
        ("instruct:scenes:small?turns=0", "turns must be from 1 to 8"),
        ("instruct:scenes:small?boxes=xyxz", "no order 'xyxz'"),
        ("instruct:scenes:small?boxes=kosmos-2/x", "kosmos-2/16, with 2 to 64 tokens"),
        ("instruct:scenes:albums", "single pictures"),
    ],
)
def test_what_cannot_be_asked_is_refused(address, said):
    with pytest.raises(DiptychError, match=re.escape(said)):
        open_source(address)


def test_the_scenes_of_a_mixture_can_be_asked_about():
    found = instructions_in(open_source("mix:1*scenes:albums+1*scenes:small"))
    assert isinstance(found, Instructions) and found.base.address == "scenes:small"
    assert instructions_in(open_source("scenes:albums")) is None
