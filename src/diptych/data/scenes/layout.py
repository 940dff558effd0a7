"""Where the objects of a graph are, and the picture of them.

Lengths are fractions of the picture until ``picture`` rounds them to pixels. The random draws depend on the numbers
and sizes of the objects only, so scenes that differ in concepts, colours or order alone differ in nothing else.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import numpy as np

from diptych.data.scenes.backgrounds import VARIANTS, textures
from diptych.data.scenes.graph import Graph, Things
from diptych.data.scenes.sprites import Sprite, sprite

Point = tuple[float, float]  # (x, y) of an object's centre

# Longer sides of objects. Few different ones, so that few tinted sprites are kept.
_MARKED = {"big": 0.5, "small": 0.27}  # the sizes that captions name
_ALONE = (0.42, 0.4, 0.37, 0.36, 0.28, 0.28)  # in a group of 1, 2 … that has the picture to itself
_SHARING = (0.38, 0.36, 0.3, 0.25, 0.24, 0.24)
_FRONT = 0.52  # one before the other
CENTRES = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "centre": (0.5, 0.5),
}
_VISIBLE = (0.5, 0.9)  # of the hidden object, at least and at most


class Placed(NamedTuple):
    """A sprite at its place."""

    things: Things
    sprite: Sprite
    x: int  # pixels, left edge
    y: int  # pixels, top edge
    flip: bool


def _side(things: Things, room: int, alone: bool) -> float:
    """Longer side of an object in a group laid out for ``room`` objects."""
    return _MARKED[things.size] if things.size else (_ALONE if alone else _SHARING)[room - 1]


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random() if high > low else (low + high) / 2


def _spread(random: Random, count: int, room: int, side: float) -> list[Point]:
    """Objects of one group all over the picture, in the cells of a grid."""
    cells = 2 if room <= 4 else 3
    order = random.sample(range(cells * cells), room)[:count]
    slack = max(0.0, 1 / cells - side) / 2 * 0.9
    jitter = [(_between(random, -slack, slack), _between(random, -slack, slack)) for _ in range(room)]
    return [
        ((cell % cells + 0.5) / cells + dx, (cell // cells + 0.5) / cells + dy)
        for cell, (dx, dy) in zip(order, jitter, strict=False)
    ]


def _block(random: Random, count: int, side: float, along: tuple[float, float], middle: float, rows: int) -> list[Point]:
    """A group within an interval of the main axis, in rows about ``middle`` of the other: (along, across) centres."""
    lines = -(-count // rows)
    rows = -(-count // lines)
    width = (along[1] - along[0]) / lines
    height = min(1.25 * side, max(side, 2 * min(middle, 1 - middle) / rows))
    cells = random.sample(range(lines * rows), count) if lines * rows > count else range(count)
    points = []
    for cell in cells:
        u = along[0] + (cell // rows + 0.5) * width + _between(random, -1, 1) * (width - side) / 2
        v = middle + (cell % rows + 0.5 - rows / 2) * height + _between(random, -1, 1) * (height - side) / 2
        points.append((u, v))
    return points


def _next_to_each_other(
    random: Random, counts: tuple[int, int], sides: tuple[float, float], across: tuple[float, float] = (0.0, 1.0)
) -> tuple[list[Point], list[Point]]:
    """Two groups one after the other on the main axis, in line on the other: (along, across) centres."""
    room = across[1] - across[0]
    rows = [max(1, int(room / side + 1e-6)) for side in sides]
    needs = [-(-count // row) * side for count, row, side in zip(counts, rows, sides, strict=True)]
    cut = needs[0] + (1 - sum(needs)) * _between(random, 0.15, 0.85)
    half = max(min(count, row) * side for count, row, side in zip(counts, rows, sides, strict=True)) / 2
    middle = _between(random, across[0] + half, across[1] - half)
    return (
        _block(random, counts[0], sides[0], (0.0, cut), middle, rows[0]),
        _block(random, counts[1], sides[1], (cut, 1.0), middle, rows[1]),
    )


def _swap(points: list[Point]) -> list[Point]:
    return [(y, x) for x, y in points]


def _trio(random: Random, graph: Graph) -> tuple[list[list[Point]], list[float]]:
    """Two groups in relation, and a third on a side of both."""
    side = 0.34
    third = _between(random, 0.4, 0.5)  # the share of the third group on the second axis
    last = graph.side in ("below", "right")
    pair_span, third_span = ((0.0, 1 - third), (1 - third, 1.0)) if last else ((third, 1.0), (0.0, third))
    first, second = _next_to_each_other(random, (1, 1), (side, side), pair_span)
    count = graph.things[2].count
    block = _block(random, count, side, third_span, _between(random, count * side / 2, 1 - count * side / 2), count)
    points = [first, second, _swap(block)]  # all as (along the pair's axis, across it)
    return (points if graph.relation == "left" else [_swap(p) for p in points]), [side] * 3


def _visible(hidden: np.ndarray, cover: np.ndarray, dx: int, dy: int) -> float:
    """Share of a mask left visible under another with its top left corner (dx, dy) pixels away."""
    height, width = hidden.shape
    rows, columns = cover.shape
    y0, y1, x0, x1 = max(0, dy), min(height, dy + rows), max(0, dx), min(width, dx + columns)
    if y0 >= y1 or x0 >= x1:
        return 1.0
    both = hidden[y0:y1, x0:x1] & cover[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return 1 - np.count_nonzero(both) / np.count_nonzero(hidden)


def _overlapping(random: Random, graph: Graph, size: int) -> list[Placed]:
    """One object partly in front of another, in painting order; their places do not depend on which is in front."""
    side = round(_FRONT * size)
    pair = sorted(graph.things)
    flips = random.random() < 0.5, random.random() < 0.5
    sprites = [sprite(things.concept, things.colour, side) for things in pair]
    a, b = (drawn.mask[:, ::-1] if flip else drawn.mask for drawn, flip in zip(sprites, flips, strict=True))
    best: tuple[float, int, int, int, int] | None = None
    for _ in range(16):
        dx, dy = round(_between(random, -0.8, 0.8) * side), round(_between(random, -0.8, 0.8) * side)
        left, top = min(0, dx), min(0, dy)
        right, bottom = max(a.shape[1], dx + b.shape[1]), max(a.shape[0], dy + b.shape[0])
        shares = (_visible(a, b, dx, dy), _visible(b, a, -dx, -dy))
        miss = max(_VISIBLE[0] - min(shares), max(shares) - _VISIBLE[1], 0.0)
        if best is None or miss < best[0]:
            x = int(_between(random, 0, size - (right - left))) - left
            y = int(_between(random, 0, size - (bottom - top))) - top
            best = (miss, x, y, x + dx, y + dy)
        if miss == 0:
            break
    assert best is not None
    _, ax, ay, bx, by = best
    placed = [Placed(pair[0], sprites[0], ax, ay, flips[0]), Placed(pair[1], sprites[1], bx, by, flips[1])]
    return placed if pair[1] == graph.things[0] else placed[::-1]


def place(graph: Graph, random: Random, size: int) -> list[Placed]:
    """Every object of the scene, in painting order."""
    if graph.relation == "front":
        return _overlapping(random, graph, size)
    first = graph.things[0]
    if graph.position:
        sides = [_side(first, 1, True)]
        slack = 0.06 if graph.position == "centre" else min(0.09, max(0.0, 0.25 - sides[0] / 2))
        x, y = CENTRES[graph.position]
        points = [[(x + _between(random, -slack, slack), y + _between(random, -slack, slack))]]
    elif len(graph.things) == 1:
        room = max(graph.room, first.count)
        sides = [_side(first, room, True)]
        points = [_spread(random, first.count, room, sides[0])]
    elif len(graph.things) == 3:
        points, sides = _trio(random, graph)
    else:
        second = graph.things[1]
        sides = [_side(first, first.count, False), _side(second, second.count, False)]
        points = list(_next_to_each_other(random, (first.count, second.count), (sides[0], sides[1])))
        if graph.relation == "above":
            points = [_swap(group) for group in points]
    placed = []
    for things, side, group in zip(graph.things, sides, points, strict=True):
        for x, y in group:
            drawn = sprite(things.concept, things.colour, round(side * size))
            height, width = drawn.mask.shape
            left = min(max(0, round(x * size - width / 2)), size - width)
            top = min(max(0, round(y * size - height / 2)), size - height)
            placed.append(Placed(things, drawn, left, top, random.random() < 0.5))
    return placed


def ground(background: str, random: Random, size: int) -> np.ndarray:
    """A random window of a texture, uint16 [size, size, 3] with values 0..255; a view."""
    texture = textures(size)[background][random.randrange(VARIANTS)]
    left, top = random.randrange(size + 1), random.randrange(size + 1)
    window: np.ndarray = texture[top : top + size, left : left + size]
    return window


def blit(canvas: np.ndarray, drawn: Sprite, x: int, y: int, flip: bool) -> None:
    """Paint a sprite, mirrored if ``flip``, with its top left corner at (x, y); parts beyond the canvas are cut off. canvas:
    uint16 [H, W, 3].
    """
    height, width = drawn.mask.shape
    keep, paint = (drawn.keep[:, ::-1], drawn.paint[:, ::-1]) if flip else (drawn.keep, drawn.paint)
    if x < 0 or y < 0 or y + height > canvas.shape[0] or x + width > canvas.shape[1]:
        rows, columns = slice(max(0, -y), max(0, canvas.shape[0] - y)), slice(max(0, -x), max(0, canvas.shape[1] - x))
        keep, paint = keep[rows, columns], paint[rows, columns]
        x, y, (height, width) = max(0, x), max(0, y), keep.shape[:2]
    under = canvas[y : y + height, x : x + width]
    under *= keep
    under >>= 8
    under += paint


def picture(graph: Graph, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The image, uint8 [size, size, 3], and the boxes in painting order.

    A box is {"box": [x0, y0, x1, y1] in pixels, "concept", "colour"}.
    """
    random = Random(graph.seed + 2)
    canvas = ground(graph.background, random, size).copy()
    boxes = []
    for things, drawn, x, y, flip in place(graph, random, size):
        height, width = drawn.mask.shape
        blit(canvas, drawn, x, y, flip)
        boxes.append({"box": [x, y, x + width, y + height], "concept": things.concept, "colour": things.colour})
    return canvas.astype(np.uint8), boxes


def seen_groups(graph: Graph, size: int) -> list[np.ndarray]:
    """The visible pixels of each group of the scene that ``picture`` paints, bool [size, size]: those more than half covered by one
    of its objects, and by no later object.
    """
    random = Random(graph.seed + 2)
    ground(graph.background, random, size)  # makes the same draws as ``picture``
    owner = np.full((size, size), -1, np.int16)
    for things, drawn, x, y, flip in place(graph, random, size):
        mask = drawn.mask[:, ::-1] if flip else drawn.mask
        owner[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = graph.things.index(things)
    return [owner == number for number in range(len(graph.things))]
