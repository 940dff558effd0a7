"""The words of a text that say what it is about."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_TOKEN = re.compile(r"[^\W\d_]+|[^\w\s]")
_COMMON = frozenset(  # words that say nothing of what there is, but how many, where, or how it is shown
    word
    for line in (
        "a an the of in on at with and or but to from by for is are there this that it its them no not some",
        "one two three four five six left right above below front behind next top bottom centre corner side",
        "picture photo photograph image drawing",
    )
    for word in line.split()
)


def content(text: str) -> frozenset[str]:
    """The words of a text that say what it is about, in lower case, without a plural's ending."""
    return frozenset(_singular(word) for word in _WORD.findall(text.lower()) if word not in _COMMON)


def heads(text: str) -> list[str]:
    """The last word of each run of words that say something: of "a small red cat left of two keys" cat and key; singular."""
    found, last = [], ""
    for token in [*_TOKEN.findall(text.lower()), "."]:
        if _WORD.fullmatch(token) and token not in _COMMON:
            last = token
        elif last:
            found.append(_singular(last))
            last = ""
    return found


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
