"""Wrong versions of a caption by kind, and its facts as triples, by rule.

What CE-CLIP and Structure-CLIP make with parsers and language models, from the order of words alone: content words that follow each
other are a noun chunk (``chunks``), the last of them the noun, the others attributes; what stands between two chunks is their
relation.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

from diptych.data.negatives import ARTICLES, NUMBERS, meaning, swap_words
from diptych.data.regions.chunks import chunks

KINDS = ("relation", "noun", "attribute", "verb")
OPPOSITES = (("left", "right"), ("above", "below"), ("over", "under"), ("front", "back"), ("inside", "outside"), ("top", "bottom"),
             ("before", "after"), ("on", "under"), ("in", "outside"), ("with", "without"), ("up", "down"))  # fmt: skip
READ = 2000  # samples whose words may take the place of others


class Vocabulary(NamedTuple):
    """Words of a source by what they do: nouns, attributes and verbs in -ing."""

    nouns: tuple[str, ...]
    attributes: tuple[str, ...]
    verbs: tuple[str, ...]


def attributes_of(text: str) -> list[str]:
    """The words of a noun chunk before its noun, articles and numbers aside, in small letters."""
    return [w for w in text.lower().split()[:-1] if w not in ARTICLES and w not in NUMBERS]


def vocabulary_of(source: Any, read: int = READ) -> Vocabulary:
    """The words of the captions of a source's first samples, the most frequent first."""
    counts: tuple[Counter[str], ...] = Counter(), Counter(), Counter()
    for sample in islice((source[i] for i in range(len(source))), read):
        for caption in sample.captions:
            for chunk in chunks(caption):
                counts[0][chunk.head] += 1
                counts[1].update(attributes_of(chunk.text))
            counts[2].update(re.findall(r"\b[a-z]+ing\b", caption.lower()))
    return Vocabulary(*(tuple(sorted(c, key=lambda w: (-c[w], w))) for c in counts))


def changed(caption: str, kind: str, words: Vocabulary, draw: random.Random) -> str | None:
    """A caption that says something else in one respect, or None if the rule of this kind does not apply.

    kind: ``relation``: two nouns exchanged, or a word of place by its opposite; ``noun``, ``attribute``, ``verb``: one of them by
    another of the source; attributes may also be exchanged.
    """
    if kind == "relation":
        return swap_words(caption, draw, only="head") or _opposite(caption, draw)
    if kind == "verb":
        return _replaced(caption, [m.span() for m in re.finditer(r"\b[a-z]+ing\b", caption.lower())], words.verbs, draw)
    found = chunks(caption)
    if kind == "noun":
        return _replaced(caption, [(c.end - len(c.text.split()[-1]), c.end) for c in found], words.nouns, draw)
    if draw.random() < 0.5 and (swapped := swap_words(caption, draw, only="modifier")):
        return swapped
    places = []
    for c in found:
        own = set(attributes_of(c.text))
        places += [(c.start + m.start(), c.start + m.end()) for m in re.finditer(r"\S+", c.text) if m[0].lower() in own]
    return _replaced(caption, places, words.attributes, draw)


def _opposite(caption: str, draw: random.Random) -> str | None:
    turned = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    places = [m for m in re.finditer(r"\b[a-z]+\b", caption.lower()) if m[0] in turned]
    if not places:
        return None
    m = draw.choice(places)
    return caption[: m.start()] + turned[m[0]] + caption[m.end() :]


def _replaced(caption: str, places: Sequence[tuple[int, int]], words: Sequence[str], draw: random.Random) -> str | None:
    """One of the places with another word; None if there is no place or no other word."""
    here = caption.lower()
    others = [w for w in words if not re.search(rf"\b{re.escape(w)}\b", here)]
    if not places or not others:
        return None
    start, end = draw.choice(list(places))
    result = caption[:start] + draw.choice(others) + caption[end:]
    return result if meaning(result) != meaning(caption) else None


def triples(caption: str) -> list[tuple[str, str, str]]:
    """The facts of a caption: (subject, relation, object) of neighbouring noun chunks, and (noun, "is", attribute) of each
    attribute."""
    found = chunks(caption)
    facts = []
    for a, b in pairwise(found):
        between = caption[a.end : b.start].strip(" ,.;:").lower()
        if between:
            facts.append((a.head, between, b.head))
    return facts + [(c.head, "is", word) for c in found for word in attributes_of(c.text)]
