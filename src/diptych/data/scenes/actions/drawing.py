"""Frames of a clip from its script, all in one array."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np

from diptych.data.scenes.actions.layout import SCREEN, Track, tracks
from diptych.data.scenes.actions.script import Script
from diptych.data.scenes.layout import ground
from diptych.data.scenes.sprites import PALETTE, Sprite, sprite

Box = list[int] | None


@lru_cache(maxsize=4096)
def drawn(concept: str, colour: str, side: int, turn: int, flip: bool) -> Sprite:
    """A thing as it is painted: its drawing mirrored, then turned anticlockwise by quarters; a screen is a plain square."""
    if concept == SCREEN:
        paint = np.empty((side, side, 3), np.uint8)
        paint[:] = PALETTE[colour]
        edge = max(1, side // 12)
        paint[edge:-edge, edge:-edge] = paint[edge:-edge, edge:-edge] // 8 * 7
        return Sprite(paint, np.zeros((side, side, 3), np.uint16), np.ones((side, side), bool))
    one = sprite(concept, colour, side)
    if not turn and not flip:
        return one
    return Sprite(*(np.ascontiguousarray(np.rot90(a[:, ::-1] if flip else a, turn)) for a in one))


def frames_of(script: Script, size: int) -> tuple[np.ndarray, list[list[Box]]]:
    """The frames, uint8 [frames, size, size, 3], and for each thing its box in each frame.

    A box is [left, top, right, bottom] in pixels, cut to the picture, and of a thing that is there several times the box of all;
    None where it is not in the picture. A thing behind another has its box all the same.
    """
    canvas = np.empty((script.frames, size, size, 3), np.uint16)
    canvas[:] = ground(script.background, Random(script.seed + 7), size)
    boxes: list[list[Box]] = [[None] * script.frames for _ in script.things]
    for track in tracks(script):
        _paint(canvas, track, script.things[track.thing].concept, size, boxes[track.thing])
    order = script.order
    pictures: np.ndarray = canvas.astype(np.uint8)
    if script.play:
        pictures = pictures[order]
        boxes = [[row[k] for k in order] for row in boxes]
    return pictures, boxes


def _paint(canvas: np.ndarray, track: Track, concept: str, size: int, boxes: list[Box]) -> None:
    """Paint one track into all frames, and write its boxes."""
    sides = np.rint(track.length * size).astype(int).tolist()
    xs, ys, seen = (track.x * size).tolist(), (track.y * size).tolist(), track.seen.tolist()
    for k, side in enumerate(sides):
        if not seen[k]:
            continue
        one = drawn(concept, track.colour[k], side, track.turn[k], track.flip)
        paint, keep = one.paint, one.keep
        height, width = paint.shape[:2]
        left, top = round(xs[k] - width / 2), round(ys[k] - height / 2)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(size, left + width), min(size, top + height)
        if x1 <= x0 or y1 <= y0:
            continue
        if x1 - x0 != width or y1 - y0 != height:
            part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
            paint, keep = paint[part], keep[part]
        under = canvas[k, y0:y1, x0:x1]
        under *= keep
        under >>= 8
        under += paint
        box = boxes[k]
        boxes[k] = [x0, y0, x1, y1] if box is None else [min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1)]
