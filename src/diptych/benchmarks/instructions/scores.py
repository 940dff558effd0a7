"""What an answer to an instruction earns, by kind, from the texts alone. Every function takes the answer, the right answer and the
truth, and returns {metric: credit from 0 to 1}; ``accuracy`` is always among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diptych.benchmarks.answers.vqa import normalise_answer
from diptych.benchmarks.answers.yes_no_text import parse_yes_no
from diptych.benchmarks.regions.answers import numbers_of
from diptych.data.regions.conventions import Convention
from diptych.data.regions.locations import box_of_cells
from diptych.data.scenes.instruct.source import how_written

Score = Callable[[str, str, Mapping[str, Any]], dict[str, float]]
RIGHT = 0.5  # the least overlap of a right box, as intersection over union
ORDINALS = ("first", "second", "third", "fourth")
_NONE = re.compile(r"\bthere(?:'s| is| are|'re) (?:no|none|not any)\b|\bthere (?:is|are)n't\b|^(?:none|no (?!\d))", re.IGNORECASE)
_TOKENS = re.compile(r"<patch_index_(\d+)>\s*<patch_index_(\d+)>")


def same(text: str, answer: str) -> bool:
    """Whether two texts are the same after the normalisation of VQA: case, punctuation, articles, number words."""
    return normalise_answer(text) == normalise_answer(answer)


def exact(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """1 for the right text."""
    return {"accuracy": float(same(text, answer))}


def yes_or_no(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """1 for a text that says the right one of yes and no."""
    said = parse_yes_no(text)
    return {"accuracy": float(said is not None and said == (answer == "yes"))}


def counted(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """accuracy: the number behind ``=``, or the last one, is right. reason: all summands are right. sum: the summands add up to the
    number, right or not.
    """
    parts, mark, total = text.rpartition("=")
    behind = _whole_numbers(total)
    said = (behind[0] if mark else behind[-1]) if behind else None
    summands = _whole_numbers(parts)
    return {
        "accuracy": float(said == truth["total"]),
        "reason": float(summands == [int(n) for n in truth["parts"]]),
        "sum": float(bool(summands) and sum(summands) == said),
    }


def _whole_numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", normalise_answer(text))]  # which writes "two" as 2


def refuses(text: str) -> bool:
    """Whether a text says that there is no such thing."""
    return _NONE.search(text.strip()) is not None


def refused(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """accuracy: it refuses where the thing is absent, and is the right answer elsewhere. answered: the same, of present things."""
    if truth["absent"]:
        return {"accuracy": float(refuses(text))}
    right = float(not refuses(text) and same(text, answer))
    return {"accuracy": right, "answered": right}


def corrects(text: str) -> bool:
    """Whether a text says that what was stated is wrong."""
    return text.strip().lower().startswith(("no,", "no ", "no.", "no;", "not ", "that is wrong"))


def corrected(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """accuracy: it corrects a wrong statement with the right fact, and only a wrong one, and answers the question. fact: of wrong
    statements, whether the right fact is named. final: whether the question is answered, by the last part of the text.
    """
    head, _, last = text.rpartition(";")
    final = float(same(last, truth["final"]))
    scores = {"final": final, "accuracy": float(corrects(text) == truth["false"]) * final}
    if truth["false"]:
        scores["fact"] = float(normalise_answer(truth["fact"]) in normalise_answer(head or text))
        scores["accuracy"] *= scores["fact"]
    return scores


def read_box(text: str, size: tuple[int, int], how: Convention | int) -> tuple[float, ...] | None:
    """The first box in a text, in pixels of a picture of this height and width; None if there is none."""
    if isinstance(how, int):
        found = _TOKENS.search(text)
        if found is None or max(int(n) for n in found.groups()) >= how**2:
            return None
        box = box_of_cells(int(found[1]), int(found[2]), how)
        return box[0] * size[1], box[1] * size[0], box[2] * size[1], box[3] * size[0]
    numbers = numbers_of(text)
    if not numbers:
        return None
    left, top, right, bottom = how.box(numbers[0], *size)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def boxed(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """iou: intersection over union of the first box of the text, written as ``truth["boxes"]`` says; accuracy: it is at least
    ``RIGHT``, and the thing is named where its name is asked for; name: that alone.
    """
    box = read_box(text, tuple(truth["size"]), how_written(truth["boxes"]))
    iou = 0.0 if box is None else _overlap(box, truth["box"])
    scores = {"accuracy": float(iou >= RIGHT), "iou": iou}
    if truth["name"]:
        words = re.split(r"[\[<({]", text, maxsplit=1)[0]
        scores["name"] = float(same(words, truth["name"]))
        scores["accuracy"] *= scores["name"]
    return scores


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / whole if whole > 0 else 0.0


def placed(text: str, answer: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """1 for a text that names the right picture and no other."""
    named = [word for word in ORDINALS if re.search(rf"\b{word}\b", text.lower())]
    return {"accuracy": float(named == [ORDINALS[truth["place"]]])}


# --- precision and recall of a decision: to refuse, to correct ---


def decisions(given: list[bool], wanted: list[bool]) -> np.ndarray:
    """Right positives, wrong positives, missed positives of each item, int [n, 3]."""
    rows = [(g and w, g and not w, w and not g) for g, w in zip(given, wanted, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def precision(sums: np.ndarray) -> np.ndarray:
    """Of column sums [..., 3] of ``decisions``: how many of the positives are right; 0 without positives."""
    return _ratio(sums[..., 0], sums[..., 0] + sums[..., 1])


def recall(sums: np.ndarray) -> np.ndarray:
    """Of column sums [..., 3] of ``decisions``: how many of the wanted positives are given."""
    return _ratio(sums[..., 0], sums[..., 0] + sums[..., 2])


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(a, b, out=np.zeros(np.shape(a), dtype=np.float64), where=np.asarray(b) > 0)
    return ratio
