"""The truth of a picture with print, and the picture of it.

A picture shows signs (coloured boards), things with a label, and perhaps small print on a strip at its bottom. Signs have different
colours and things are of different kinds, so each can be named. Texts and heights of print are drawn independently, and every text
fits at every height, so that neither tells the other.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import numpy as np

from diptych.data.scenes.backgrounds import KINDS
from diptych.data.scenes.layout import blit, ground
from diptych.data.scenes.sprites import PALETTE, sprite
from diptych.data.scenes.texts.font import ink, width_of
from diptych.data.scenes.texts.words import ALL, LONGEST
from diptych.data.scenes.world import World

CARRIERS = ("sign", "label", "note")
_BLACK, _WHITE, _PAPER, _EDGE = (24, 24, 28), (250, 250, 250), (252, 250, 242), (70, 66, 62)
_NOTE_WORDS = 2
_NOTE_PART = 13  # small print is at most this part of the picture's height, so that two words fit side by side
_NUMBER = {word: number for number, word in enumerate(ALL)}
_PRINT_PART = 7  # all other print, so that a word of six letters fits next to a thing


class Text(NamedTuple):
    """What one carrier says. on: one of CARRIERS; name: the colour of a sign, the concept of a labelled thing; height: of the
    print, in pixels.
    """

    text: str
    on: str
    name: str
    height: int

    @property
    def is_number(self) -> bool:
        """Whether it is a number."""
        return self.text.isdigit()


class Sheet(NamedTuple):
    """The texts of a picture from top to bottom, what is behind them, and the seed of what they leave open."""

    texts: tuple[Text, ...]
    background: str
    seed: int


def vocabulary(world: World) -> tuple[list[str], list[str]]:
    """The words that training reads, and those that only the split ``heldout-concepts`` shows, a tenth as many."""
    n = world.vocabulary
    return list(ALL[:n]), list(ALL[n : n + max(2, n // 10)])


def words_of(world: World) -> list[str]:
    """The words of the world's split; ``heldout-concepts`` has only words that training never shows."""
    seen, unseen = vocabulary(world)
    return unseen if world.split == "heldout-concepts" else seen


def is_held_out(world: World, text: str, colour: str) -> bool:
    """Whether training never shows this word on a sign of this colour: one of the world's colours for each word."""
    return text in _NUMBER and world.palette.index(colour) == _NUMBER[text] % len(world.palette)


def heights(world: World) -> tuple[int, int]:
    """The least and greatest height of print in pixels."""
    least = world.smallest or max(4, world.size // 20)
    return least, world.largest or max(least, world.size // _PRINT_PART)


def draw_sheet(world: World, seed: int) -> Sheet:
    """A random picture that belongs to the world's split: ``heldout-combinations`` shows a held-out pair of word and colour, other
    splits none.
    """
    random = Random(seed)
    wanted = world.split == "heldout-combinations"
    while True:
        sheet = _draw(world, random, seed)
        if any(t.on == "sign" and is_held_out(world, t.text, t.name) for t in sheet.texts) == wanted:
            return sheet


def _draw(world: World, random: Random, seed: int) -> Sheet:
    words, (least, most) = words_of(world), heights(world)
    n = 1 + random.randrange(world.signs)
    labels = sum(random.random() < 0.4 for _ in range(n))
    kinds = ["label"] * labels + ["sign"] * (n - labels)
    random.shuffle(kinds)
    note = random.random() < world.notes
    chosen = random.sample(words, min(len(words), n + _NOTE_WORDS))
    names = {"sign": random.sample(world.palette, n), "label": random.sample(world.names, n)}
    texts = []
    for k, kind in enumerate(kinds):
        text = number(random) if random.random() < world.numbers else chosen[k % len(chosen)]
        texts.append(Text(text, kind, names[kind][k], least + random.randrange(most - least + 1)))
    if note:
        small = max(least, world.size // _NOTE_PART)
        count = 1 + random.randrange(_NOTE_WORDS)
        text = " ".join(chosen[(n + k) % len(chosen)] for k in range(count))
        texts.append(Text(text, "note", "", least + random.randrange(small - least + 1)))
    return Sheet(tuple(texts), KINDS[random.randrange(len(KINDS))], seed)


def number(random: Random) -> str:
    """A number of one to three digits, each length equally often."""
    digits = 1 + random.randrange(3)
    return str(random.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


# --- the picture ---


def paint(sheet: Sheet, size: int) -> tuple[np.ndarray, list[dict[str, Any]], list[dict[str, Any]]]:
    """The picture, uint8 [size, size, 3]; the boxes of the labelled things as ``scenes:`` has them; and every word with its box.

    A word is {"text", "box": [x0, y0, x1, y1] in pixels, around its letters, "height" of the print in pixels, "on": sign, label or
    note, "name": colour or concept, "line": the number of its carrier from the top}.
    """
    random = Random(sheet.seed + 2)
    canvas = ground(sheet.background, random, size).copy()
    carried = [t for t in sheet.texts if t.on != "note"]
    note = next((t for t in sheet.texts if t.on == "note"), None)
    bottom = size if note is None else size - note.height - 4
    boxes: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    side = max(12, size // 6)
    high = [max(t.height + 2 * _margin(t.height), side if t.on == "label" else 0) for t in carried]
    free = max(0, bottom - sum(high) - len(high) - 1)
    gaps = sorted(random.randrange(free + 1) for _ in carried)
    y = 1
    for line, (text, height) in enumerate(zip(carried, high, strict=True)):
        top = y + gaps[line]
        y += height + 1
        if text.on == "sign":
            box = _sign(canvas, text, top, size, random)
        else:
            thing, box = _label(canvas, text, top, height, side, random)
            boxes.append({"box": thing, "concept": text.name, "colour": ""})
        words.append(_word(text, text.text, box, line))
    if note is not None:
        words += _note(canvas, note, bottom, random, len(carried))
    return canvas.astype(np.uint8), boxes, words


def _margin(height: int) -> int:
    """Pixels between the print and the edge of its board."""
    return 2 + height // 8


def _word(text: Text, word: str, box: tuple[int, int, int, int], line: int) -> dict[str, Any]:
    return {"text": word, "box": list(box), "height": text.height, "on": text.on, "name": text.name, "line": line}


def _fill(canvas: np.ndarray, x: int, y: int, wide: int, high: int, colour: tuple[int, int, int]) -> None:
    """A board with a dark edge one pixel wide."""
    canvas[y : y + high, x : x + wide] = _EDGE
    canvas[y + 1 : y + high - 1, x + 1 : x + wide - 1] = colour


def _sign(canvas: np.ndarray, text: Text, top: int, size: int, random: Random) -> tuple[int, int, int, int]:
    margin = _margin(text.height)
    wide, high = width_of(len(text.text), text.height) + 2 * margin, text.height + 2 * margin
    x = random.randrange(size - wide + 1)
    colour = PALETTE[text.name]
    bright = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 140_000
    _fill(canvas, x, top, wide, high, colour)
    return ink(canvas, text.text, x + margin, top + margin, text.height, _BLACK if bright else _WHITE)


def _label(
    canvas: np.ndarray, text: Text, top: int, high: int, side: int, random: Random
) -> tuple[list[int], tuple[int, int, int, int]]:
    """A thing, and to its right a strip of paper with the text. Returns the boxes of both."""
    size, margin = canvas.shape[0], _margin(text.height)
    drawn = sprite(text.name, "", side)
    tall, broad = drawn.mask.shape
    wide = width_of(len(text.text), text.height) + 2 * margin
    x = random.randrange(size - side - 1 - wide + 1)
    left, upper = x + (side - broad) // 2, top + (high - tall) // 2
    blit(canvas, drawn, left, upper, False)
    strip = top + (high - text.height - 2 * margin) // 2
    _fill(canvas, x + side + 1, strip, wide, text.height + 2 * margin, _PAPER)
    box = ink(canvas, text.text, x + side + 1 + margin, strip + margin, text.height, _BLACK)
    return [left, upper, left + broad, upper + tall], box


def _note(canvas: np.ndarray, note: Text, top: int, random: Random, line: int) -> list[dict[str, Any]]:
    """The strip at the bottom with small print: a box for each of its words."""
    size = canvas.shape[0]
    canvas[top:size] = _WHITE
    wide = width_of(len(note.text), note.height)
    x, y = 1 + random.randrange(size - wide - 1), top + 2
    ink(canvas, note.text, x, y, note.height, _BLACK)
    result, at = [], 0
    for word in note.text.split():
        left = x + round(6 * at * note.height / 7)
        result.append(_word(note, word, (left, y, min(x + wide, left + width_of(len(word), note.height)), y + note.height), line))
        at += len(word) + 1
    return result


def check(world: World) -> str:
    """What is wrong with the world's options; empty if every picture can be drawn."""
    least, most = heights(world)
    fits = max(1, world.size // _PRINT_PART)
    if not least <= most <= fits:
        return f"print of {least} to {most} pixels: with size={world.size}, words of {LONGEST} letters fit up to largest={fits}"
    if least > world.size // _NOTE_PART and world.notes:
        return f"smallest={least}: small print of {_NOTE_WORDS} words fits up to {world.size // _NOTE_PART} pixels; set notes=0"
    n = world.signs
    if n * (max(most + 2 * _margin(most), max(12, world.size // 6)) + 1) + world.size // _NOTE_PART + 6 > world.size:
        return f"signs={n}: so many do not fit into {world.size} pixels at this size of print"
    if n >= len(world.palette):
        return f"signs={n}: needs more colours than {len(world.palette)}, so that a sign of some colour is missing"
    if not 2 <= world.vocabulary <= len(ALL) * 10 // 11:
        return f"vocabulary must be from 2 to {len(ALL) * 10 // 11}, not {world.vocabulary}"
    return ""
