"""Trees of little pages, laid out from top to bottom, and their pictures.

A page has a heading and two to five blocks: paragraphs, lists, tables, buttons, links, pictures, and rows of two of these side by
side. Words are drawn without replacement, so a word stands for one element; numbers stand in tables alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from diptych.data.scenes.layout import blit
from diptych.data.scenes.sprites import PALETTE, sprite
from diptych.data.scenes.texts.font import ink, width_of

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
BLOCKS = ("p", "ul", "table", "button", "a", "img", "row")
BUTTONS = ("red", "green", "blue", "purple")  # dark enough for white print
_BLACK, _BLUE, _GREY, _WHITE, _PAGE = (28, 28, 32), (30, 60, 200), (120, 120, 124), (250, 250, 250), (252, 252, 250)


@dataclass
class Node:
    """An element. text: what is printed in it; name: the concept of a picture or the colour of a button; height: of its print."""

    tag: str
    box: Box = (0, 0, 0, 0)
    text: str = ""
    name: str = ""
    height: int = 0
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """The element and all below it, in the order of the page."""
        yield self
        for child in self.children:
            yield from child.walk()

    def as_dict(self) -> dict[str, Any]:
        """The tree as plain data."""
        plain = {"tag": self.tag, "box": list(self.box), "text": self.text, "name": self.name, "height": self.height}
        return {**plain, "children": [child.as_dict() for child in self.children]}


class _Words:
    """Words that have not been used on this page."""

    def __init__(self, random: Random, words: list[str]):
        self.left = random.sample(words, len(words))

    def __call__(self) -> str:
        return self.left.pop()


def heights(size: int) -> tuple[int, int]:
    """Height of the print of headings and of all else, in pixels."""
    body = max(5, size // 21)
    return max(body + 2, size // 14), body


def draw_tree(random: Random, size: int, words: list[str], concepts: list[str]) -> Node:
    """A page of ``size`` × ``size`` pixels. words: at least 40 of up to six letters."""
    top, body = heights(size)
    word = _Words(random, words)
    page = Node("page", (0, 0, size, size))
    heading = f"{word()} {word()}"
    page.children.append(_print("h1", heading, 3, 3, top))
    y = top + 8
    for _ in range(2 + random.randrange(4)):
        block = _block(random, BLOCKS[random.randrange(len(BLOCKS))], 3, y, size, body, word, concepts)
        if block.box[3] > size - 2:
            break
        page.children.append(block)
        y = block.box[3] + 4
    return page


def _print(tag: str, text: str, x: int, y: int, height: int, name: str = "") -> Node:
    """An element that is a line of print."""
    return Node(tag, (x, y, x + width_of(len(text), height), y + height), text, name, height)


def _around(tag: str, children: list[Node], margin: int = 0) -> Node:
    """An element around its children."""
    left, top, right, bottom = zip(*(child.box for child in children), strict=True)
    return Node(
        tag, (min(left) - margin, min(top) - margin, max(right) + margin, max(bottom) + margin), children=children
    )  # fmt: skip


def _block(random: Random, kind: str, x: int, y: int, size: int, body: int, word: _Words, concepts: list[str]) -> Node:
    pitch = body + 3
    if kind == "p":
        lines = [" ".join(word() for _ in range(2)) for _ in range(1 + random.randrange(2))]
        return _around("p", [_print("line", line, x, y + k * pitch, body) for k, line in enumerate(lines)])
    if kind == "ul":
        items = [_print("li", word(), x + body, y + k * pitch, body) for k in range(2 + random.randrange(2))]
        return _around("ul", items)
    if kind == "table":
        return _table(random, x, y, size, body, word)
    if kind == "img":
        concept, side = concepts[random.randrange(len(concepts))], max(12, size // 6)
        high, wide = sprite(concept, "", side).mask.shape
        return Node("img", (x, y, x + wide, y + high), name=concept)
    if kind == "row":
        first, second = (("img", "a"), ("button", "button"), ("a", "button"), ("img", "button"))[random.randrange(4)]
        children = [_block(random, first, x, y, size, body, word, concepts)]
        children.append(_block(random, second, size // 2 + 3, y, size, body, word, concepts))
        return _around("row", children)
    if kind == "button":
        text = word()
        box = (x, y, x + width_of(len(text), body) + 8, y + body + 6)
        return Node("button", box, text, BUTTONS[random.randrange(len(BUTTONS))], body)
    return _print("a", word(), x, y, body)


def _table(random: Random, x: int, y: int, size: int, body: int, word: _Words) -> Node:
    """Words in the first column, numbers in the others."""
    rows, columns = 2 + random.randrange(2), 2 + random.randrange(2)
    wide, high = width_of(6, body) + 5, body + 5
    columns = min(columns, (size - x - 3) // wide)
    cells = [
        [
            Node(
                "td",
                (x + c * wide, y + r * high, x + (c + 1) * wide, y + (r + 1) * high),
                str(random.randrange(1000)) if c else word(),
                "",
                body,
            )
            for c in range(columns)
        ]
        for r in range(rows)
    ]
    return _around("table", [_around("tr", row) for row in cells])


def paint(page: Node) -> np.ndarray:
    """The picture of a page, uint8 [size, size, 3]."""
    size = page.box[2]
    canvas = np.empty((size, size, 3), np.uint16)
    canvas[:] = _PAGE
    for node in page.walk():
        left, top, right, bottom = node.box
        if node.tag in ("h1", "line", "li"):
            ink(canvas, node.text, left, top, node.height, _BLACK)
            if node.tag == "li":
                canvas[top + node.height // 2 - 1 : top + node.height // 2 + 1, left - 5 : left - 3] = _BLACK
        elif node.tag == "a":
            ink(canvas, node.text, left, top, node.height, _BLUE)
            canvas[bottom + 1, left:right] = _BLUE
        elif node.tag == "button":
            canvas[top:bottom, left:right] = PALETTE[node.name]
            ink(canvas, node.text, left + 4, top + 3, node.height, _WHITE)
        elif node.tag == "td":
            canvas[top, left:right] = canvas[bottom - 1, left:right] = _GREY
            canvas[top:bottom, left] = canvas[top:bottom, right - 1] = _GREY
            ink(canvas, node.text, left + 2, top + 2, node.height, _BLACK)
        elif node.tag == "img":
            blit(canvas, sprite(node.name, "", max(12, size // 6)), left, top, False)
    return canvas.astype(np.uint8)
