"""Features of a picture and its caption that a model's scores may go with: plain numbers, computed without a model."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Sample


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NUMBERS = _set("two three four five six seven eight nine ten several many")
COLOURS = _set("red orange yellow green blue purple pink brown black white grey gray gold silver")
SIZES = _set("big large huge small tiny little tall short long")
PLACES = _set("left right above below under over behind front between next top bottom beside near inside outside on in")
NOT = _set("no not without nobody nothing none never")
FUNCTION = _set("a an the and or but of to with by for from at it its this that there is are was were be as who which")
ABOUT = {
    "words": "words of the caption",
    "letters a word": "mean length of its words",
    "rarity": "mean of −log2 of the share of each word among all words of the data",
    "function words": "share of words that only connect others",
    "numbers": "words for how many",
    "colours": "words for colours",
    "sizes": "words for sizes",
    "places": "words for where things are",
    "negation": "words that deny",
    "brightness": "mean of the pixels, 0 to 1",
    "contrast": "standard deviation of the pixels",
    "edges": "mean difference of neighbouring pixels",
    "width to height": "log of the picture's width over its height",
    "objects": "regions that are known",
    "largest object": "share of the picture that the largest box covers",
}


def features_of(samples: Sequence[Sample]) -> tuple[list[str], np.ndarray]:
    """Names and values [n, K] of the features of samples with a picture and a caption. Those that need regions are left out if a
    sample has none.
    """
    words = [re.findall(r"\w+", s.captions[0].lower()) for s in samples]
    counts = Counter(w for text in words for w in text)
    total = sum(counts.values())
    rows = [_of_text(text, counts, total) | _of_picture(s) for text, s in zip(words, samples, strict=True)]
    names = [name for name in ABOUT if all(name in row for row in rows)]
    return names, np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def _of_text(words: list[str], counts: Counter[str], total: int) -> dict[str, float]:
    n = max(1, len(words))
    kinds = {"numbers": NUMBERS, "colours": COLOURS, "sizes": SIZES, "places": PLACES, "negation": NOT}
    return {
        "words": float(len(words)),
        "letters a word": sum(map(len, words)) / n,
        "rarity": float(np.mean([-np.log2(counts[w] / total) for w in words])) if words else 0.0,
        "function words": sum(w in FUNCTION for w in words) / n,
        **{name: float(sum(w in kind for w in words)) for name, kind in kinds.items()},
    }


def _of_picture(sample: Sample) -> dict[str, float]:
    assert sample.image is not None
    grey = sample.image.astype(np.float64).mean(2) / 255
    found = {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "edges": float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2)
        if min(grey.shape) > 1
        else 0.0,
        "width to height": float(np.log(grey.shape[1] / grey.shape[0])),
    }
    if regions := sample.fields.get("regions"):
        areas = [max(0.0, r.box[2] - r.box[0]) * max(0.0, r.box[3] - r.box[1]) for r in regions]
        found |= {"objects": float(len(regions)), "largest object": max(areas) / grey.size}
    return found


def read_features(path: Path, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Features of one's own: a CSV file with the column ``id`` and columns of numbers. DiptychError for a picture without a row,
    and for a value that is no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = {str(row.get("id")): row for row in csv.DictReader(file)}
    names: list[Any] = [name for name in next(iter(rows.values()), {}) if name != "id"]
    if not names:
        raise DiptychError(f"{path}: expected a column 'id' and columns of numbers")
    values = []
    for name in ids:
        if name not in rows:
            raise DiptychError(f"{path}: no row for the picture '{name}'{nearest(name, rows)}")
        try:
            values.append([float(rows[name][column]) for column in names])
        except (TypeError, ValueError):
            raise DiptychError(f"{path}: the row of '{name}' holds a value that is not a number") from None
    return names, np.array(values)
