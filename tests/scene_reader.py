"""A reader of scene captions that shares no code with their writer: it checks them against the boxes."""

from __future__ import annotations

import re

from diptych.data.scenes import Scenes
from diptych.data.scenes.concepts import all_concepts
from diptych.data.scenes.graph import Graph, Things, is_held_out
from diptych.data.scenes.sprites import PALETTE

COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "a": 1, "an": 1}
NOUNS = {form: c.name for c in all_concepts() for form in (c.name, c.plural)}
RELATIONS = {
    "to the left of": (0, -1), "left of": (0, -1), "to the right of": (0, 1), "right of": (0, 1),
    "above": (1, -1), "below": (1, 1), "in front of": (2, 1), "behind": (2, -1),
}  # fmt: skip
SIDES = {"above": (1, -1), "below": (1, 1), "to the left of": (0, -1), "to the right of": (0, 1)}
CENTRES = {
    "top left": (0.25, 0.25), "top right": (0.75, 0.25), "bottom left": (0.25, 0.75), "bottom right": (0.75, 0.75),
    "centre": (0.5, 0.5),
}  # fmt: skip


def read_group(text: str) -> tuple[int, str, str, str]:
    """(count, size, colour, concept) of "two big red foxes"."""
    words = text.split(" ")
    count = COUNTS[words.pop(0)]
    size = words.pop(0) if words[0] in ("big", "small") else ""
    colour = words.pop(0) if words[0] in PALETTE else ""
    return count, size, colour, NOUNS[" ".join(words)]


def find(text: str, boxes: list[dict], size: int) -> list[tuple[int, dict]] | None:
    """The (painting order, box) of the objects a phrase speaks of; None if the scene has no such group."""
    count, big, colour, concept = read_group(text)
    found = [(order, box) for order, box in enumerate(boxes) if box["concept"] == concept]
    if len(found) != count or any(colour and box["colour"] != colour for _, box in found):
        return None
    for _, box in found:
        x0, y0, x1, y1 = box["box"]
        side = max(x1 - x0, y1 - y0) / size
        if (big == "big" and side < 0.42) or (big == "small" and side > 0.3):
            return None
    return found


def stands(first: list[tuple[int, dict]], axis: int, sign: int, second: list[tuple[int, dict]]) -> bool:
    """Whether each of the first lies on that side of each of the second, without overlap; axis 2 is depth."""
    for order_a, a in first:
        for order_b, b in second:
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a["box"], b["box"]
            if axis == 2:
                overlap = min(ax1, bx1) > max(ax0, bx0) and min(ay1, by1) > max(ay0, by0)
                if not overlap or (order_a > order_b) != (sign > 0):
                    return False
            else:
                low, high = (a, b) if sign < 0 else (b, a)
                if low["box"][axis + 2] > high["box"][axis] + 1:  # one pixel for rounding
                    return False
    return True


def holds(caption: str, boxes: list[dict], size: int, background: str = "") -> bool:
    """Whether a caption is true of a scene; fails on wording it does not know."""
    text = re.sub(r"^(a picture of|there is|there are) ", "", caption)
    if match := re.search(r" but no (.+)$| and with no (.+)$", text):
        text = text[: match.start()]
        if any(box["concept"] == NOUNS[match[1] or match[2]] for box in boxes):
            return False
    if match := re.search(r", on (\w+)$", text):
        text = text[: match.start()]
        if match[1] != background:
            return False
    third = None
    if match := re.search(r", with (.+) (above|below|to the left of|to the right of) them$", text):
        text, third = text[: match.start()], (find(match[1], boxes, size), *SIDES[match[2]])
    if match := re.search(r"^(.+) in the (top left|top right|bottom left|bottom right|centre)$", text):
        found = find(match[1], boxes, size)
        if found is None:
            return False
        x0, y0, x1, y1 = found[0][1]["box"]
        x, y = CENTRES[match[2]]
        return abs((x0 + x1) / 2 / size - x) < 0.11 and abs((y0 + y1) / 2 / size - y) < 0.11
    for words, (axis, sign) in RELATIONS.items():
        if f" {words} " in text:
            first, second = (find(part, boxes, size) for part in text.split(f" {words} "))
            if first is None or second is None or not stands(first, axis, sign, second):
                return False
            return third is None or (third[0] is not None and stands(third[0], third[1], third[2], first + second))
    return all(find(part, boxes, size) is not None for part in re.split(r", | and ", text))


def held_out(caption: str, scenes: Scenes) -> bool:
    """Whether a caption tells of a combination kept from training."""
    text = re.sub(r"^(a picture of|there is|there are) ", "", caption)
    text = re.sub(r" but no .*| and with no .*|, on \w+|, with .*| in the .*", "", text)
    for words, (axis, sign) in RELATIONS.items():
        if f" {words} " in text:
            a, b = (Things(1, g[3], g[2]) for g in (read_group(part) for part in text.split(f" {words} ")))
            forth = sign < 0 if axis < 2 else sign > 0
            return is_held_out(Graph((a, b) if forth else (b, a), ("left", "above", "front")[axis]), scenes.world)
    groups = [read_group(part) for part in re.split(r", | and ", text)]
    return any(is_held_out(Graph((Things(1, g[3], g[2]),)), scenes.world) for g in groups)
