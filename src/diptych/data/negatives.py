"""Hard negatives for any English caption: the same words with two of them exchanged (as in NegCLIP)."""

from __future__ import annotations

import random
import re
from typing import Any

NUMBERS = {"no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several", "many", "few"}
ARTICLES = {"a", "an", "the", "some"}
_SYMMETRIC = {"and", "or", "with", "near", "beside", "alongside", "next", "to", "close"}  # dog near cat: cat near dog
_OTHERS = """
this that these those any each every all both much more most not none only very too another other others its it is are
was were be been being am has have had do does did can could will would may might must should but nor so if as than then
while when where who whom whose which what there here he she they them his her hers their theirs we us our you your i me
my of in on at by from without into onto over under above below beneath underneath behind besides between among against
across along around through toward towards inside outside off out up down upon about after before during for via like
left right front back top bottom side middle
"""
FUNCTION_WORDS = frozenset(_OTHERS.split()) | NUMBERS | ARTICLES | _SYMMETRIC

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def swap_words(caption: str, rng: random.Random, only: str = "") -> str | None:
    """``caption`` with two content words swapped, so that it most likely says something else; ``None`` if that is not possible.

    Words directly before another content word ("red cube") mostly are modifiers; the others are heads, or verbs in
    -ing. Modifiers are swapped with modifiers and heads with heads; any two words only if there is no such pair. The result never
    has the same meaning: not the same text in other letters, not "a dog and a cat" for "a cat and a dog", not "burly big" for "big
    burly".
    only: "modifier" or "head" for two of that kind and no others.
    """
    words = [m for m in WORD.finditer(caption) if m[0].lower() not in FUNCTION_WORDS]
    kinds = []
    for i, word in enumerate(words):
        modifies = i + 1 < len(words) and caption[word.end() : words[i + 1].start()].isspace()
        kinds.append("verb" if word[0].endswith("ing") else "modifier" if modifies else "head")
    pairs = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words))]
    if only:
        pairs = [(i, j) for i, j in pairs if kinds[i] == kinds[j] == only]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: kinds[pair[0]] != kinds[pair[1]] or kinds[pair[0]] == "verb")
    before = meaning(caption)
    for i, j in pairs:
        swapped = _swap(caption, words[i], words[j])
        if meaning(swapped) != before:
            return swapped
    return None


def _swap(caption: str, first: re.Match[str], second: re.Match[str]) -> str:
    a, b = _cased(second[0], first[0]), _cased(first[0], second[0])
    return caption[: first.start()] + a + caption[first.end() : second.start()] + b + caption[second.end() :]


def _cased(word: str, place: str) -> str:
    """``word`` with the capital of the place it goes to; abbreviations stay as they are."""
    if word.isupper() and len(word) > 1:
        return word
    capital = place[0].isupper() and (len(place) == 1 or not place.isupper())
    return (word[0].upper() if capital else word[0].lower()) + word[1:]


def meaning(caption: str) -> list[list[Any]]:
    """The words in order, except where the order has no meaning: among modifiers, and on either side of "and" or "next to"."""
    phrases: list[list[str]] = [[]]  # content words, their head last; function words and marks stand between them
    between: list[str] = [""]  # what stands before each phrase
    for token in re.findall(rf"{WORD.pattern}|\d+|[^\w\s]", caption.lower()):
        if token in ARTICLES:
            continue
        if token in FUNCTION_WORDS - NUMBERS or not token[0].isalnum():
            if phrases[-1]:
                phrases.append([])
                between.append("")
            between[-1] += f" {token}"
        else:
            phrases[-1].append(token)
    groups: list[list[Any]] = []
    for before, phrase in zip(between, phrases, strict=True):
        symmetric = set(before.replace(",", " ").split()) <= _SYMMETRIC
        text = (sorted(phrase[:-1]), phrase[-1:])
        if groups and symmetric:
            groups[-1][1] = sorted([*groups[-1][1], text])
        else:
            groups.append([before, [text]])
    return groups
