"""Noun chunks of English captions by rule: "a big red fox left of two keys" has "a big red fox" and "two keys".

A stand-in for the parser of the papers (spaCy in Kosmos-2 and GroupViT): content words that follow each other are one chunk, the
last of them its head; an article or a number before them belongs to it.
"""

from __future__ import annotations

from typing import NamedTuple

from diptych.data.negatives import ARTICLES, FUNCTION_WORDS, NUMBERS, WORD


class Chunk(NamedTuple):
    """A noun chunk. start, end: its place in the caption. head: its last word, in small letters."""

    text: str
    start: int
    end: int
    head: str


BEFORE = ARTICLES | NUMBERS
PICTURES = frozenset({"photo", "picture", "image", "photograph", "drawing", "view", "scene", "pictures", "photos", "images"})


def chunks(caption: str) -> list[Chunk]:
    """The noun chunks of a caption, in order. Verbs in -ing and words for the picture itself are no heads."""
    words = [(m[0].lower(), m.start(), m.end()) for m in WORD.finditer(caption)]
    result, k = [], 0
    while k < len(words):
        if words[k][0] in FUNCTION_WORDS:
            k += 1
            continue
        last = k
        while last + 1 < len(words) and words[last + 1][0] not in FUNCTION_WORDS:
            if not caption[words[last][2] : words[last + 1][1]].isspace():
                break
            last += 1
        head = words[last][0]
        if not head.endswith("ing") and head not in PICTURES:
            first = k - 1 if k and words[k - 1][0] in BEFORE and caption[words[k - 1][2] : words[k][1]].isspace() else k
            result.append(Chunk(caption[words[first][1] : words[last][2]], words[first][1], words[last][2], head))
        k = last + 1
    return result
