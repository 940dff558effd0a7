"""CHAIR: objects that a caption names and the image does not show (Rohrbach et al., arXiv:1809.02156).

A vocabulary maps words and phrases, in the singular, to objects. CHAIR_i = mentions of absent objects / mentions,
CHAIR_s = share of captions with at least one. Both fall when captions get shorter: recall and length stand beside them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache

import numpy as np

from diptych.benchmarks.metrics.coco_objects import COCO_OBJECTS

Vocabulary = dict[tuple[str, ...], str | None]  # None: a phrase that is no object ("train track")

_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "people": "person",
    "oxen": "ox", "policemen": "policeman", "firemen": "fireman", "fishermen": "fisherman", "gentlemen": "gentleman",
    "businessmen": "businessman", "salesmen": "salesman",
}  # fmt: skip
_WORD = re.compile(r"\w+(?:'\w+)*")
COLUMNS = ("captions", "mentions", "hallucinated", "with_hallucination", "true", "recalled", "words")


def vocabulary(lines: Iterable[str]) -> Vocabulary:
    """From lines ``object, synonym, synonym …``, the format of the published synonym lists; a line ``- phrase, …`` of what is none.

    Raises ValueError, naming the line from 1, if a word stands for two objects.
    """
    found: Vocabulary = {}
    for number, line in enumerate(lines, 1):
        words = [" ".join(w.split()).lower() for w in line.strip().lstrip("-").split(",") if w.strip()]
        target = None if line.strip().startswith("-") else (words[0] if words else None)
        for word in words:
            key = _words(word)
            if found.get(key, target) != target:
                raise ValueError(f"line {number}: '{word}' stands for '{found[key]}' and for '{target}'")
            found[key] = target
    for name in {v for v in found.values() if v is not None}:
        found.setdefault(_words(name), name)
    return found


@cache
def coco_vocabulary() -> Vocabulary:
    """Our list for the 80 objects of COCO."""
    return vocabulary(COCO_OBJECTS.strip().split("\n"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(w.removesuffix("'s") for w in _WORD.findall(text.lower().replace("’", "'").replace("-", " ")))


def _singulars(word: str) -> list[str]:
    """The word and what it may be the plural of, the likeliest first; the vocabulary decides."""
    found = [word]
    if word in _IRREGULAR:
        found.append(_IRREGULAR[word])
    if word.endswith("s"):
        found.append(word[:-1])
        if word.endswith("es"):
            found.append(word[:-2])
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
    return found


def objects_in(text: str, words: Vocabulary) -> list[str]:
    """The objects a text mentions, in order and with repetitions; the longest phrase wins ("hot dog" is no dog)."""
    tokens = _words(text)
    longest = max(map(len, words), default=0)
    found, i = [], 0
    while i < len(tokens):
        for length in range(min(longest, len(tokens) - i), 0, -1):
            *head, last = tokens[i : i + length]  # only the last word of a phrase is put in the singular
            key = next((k for w in _singulars(last) if (k := (*head, w)) in words), None)
            if key is not None:
                if words[key] is not None:
                    found.append(str(words[key]))
                i += length
                break
        else:
            i += 1
    return found


def chair_counts(mentioned: Sequence[Sequence[str]], truth: Sequence[Collection[str]], texts: Sequence[str]) -> np.ndarray:
    """Per caption the numbers of ``COLUMNS``, int [N, 7]; every metric is a function of the column sums.

    ``mentioned``: ``objects_in`` of each caption; ``truth``: the objects of its image, from labels and reference captions.
    """
    rows = []
    for said, true, text in zip(mentioned, truth, texts, strict=True):
        false = sum(name not in true for name in said)
        rows.append([1, len(said), false, int(false > 0), len(set(true)), len(set(said) & set(true)), len(_WORD.findall(text))])
    return np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))


def chair_of_counts(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: float [...]} of column sums [..., 7]: chair_i, chair_s, recall (shares; 0/0 is 0) and length (words a caption)."""
    captions, mentions, false, with_false, true, recalled, words = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return {
        "chair_i": false / np.maximum(mentions, 1),
        "chair_s": with_false / np.maximum(captions, 1),
        "recall": recalled / np.maximum(true, 1),
        "length": words / np.maximum(captions, 1),
    }


def chair(captions: Sequence[str], truth: Sequence[Collection[str]], words: Vocabulary | None = None) -> dict[str, float]:
    """The metrics of captions against the objects of their images."""
    words = coco_vocabulary() if words is None else words
    counts = chair_counts([objects_in(c, words) for c in captions], truth, captions)
    return {name: float(v) for name, v in chair_of_counts(counts.sum(0)).items()}
