"""VQA accuracy (Antol et al., arXiv:1505.00468; VQAv2, Goyal et al., arXiv:1612.00837) as its evaluator computes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = dict(
    zip(
        ("none", *["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]),
        map(str, (0, *range(11))),
        strict=True,
    )
)
ARTICLES = frozenset(["a", "an", "the"])

# Contractions written without their apostrophe. "im", "ive" and "id" are not among them: the evaluator's own entries
# have a capital I, and are looked up in lower case.
_FAMILIES = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
}
_THREE_PARTS = {
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
}


def _contractions() -> dict[str, str]:
    table = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "somebody'd": "somebodyd"}
    table |= {"'ow'sat": "'ow's'at", "'ows'at": "'ow's'at", "ow's'at": "'ow's'at", "yall'll": "y'all'll", "y'allll": "y'all'll"}
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    for end, stems in _FAMILIES.items():
        table |= {stem + end.replace("'", ""): stem + end for stem in stems.split()}
    for end, stems in _THREE_PARTS.items():
        first, second = end[: end.rindex("'")], end[end.rindex("'") :]
        for stem in stems.split():
            whole = stem + end
            table[stem + first.replace("'", "") + second] = whole
            table[stem + first + second.replace("'", "")] = whole
    return table


CONTRACTIONS = _contractions()
_PERIOD, _DIGIT_COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")


def clean(text: str) -> str:
    """What happens to every answer: line ends and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)
def normalise_answer(text: str) -> str:
    """The evaluator's normal form: ``3,000`` → ``3000``, ``U.S.A.`` → ``usa``, ``None`` → ``0``, ``tv/monitor`` → ``tv monitor``.

    A punctuation sign is deleted wherever it stands if it stands next to a space anywhere, or if the text has
    digit,digit; else it becomes a space.
    """
    text = found = clean(text)
    thousands = _DIGIT_COMMA.search(text) is not None
    for sign in PUNCTUATION:
        if sign in text:
            gone = thousands or f"{sign} " in text or f" {sign}" in text
            found = found.replace(sign, "" if gone else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", found).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Mean over the humans, each left out by position, of min(1, matches among the others / 3).

    With ten humans 0, 1, 2, 3, ≥ 4 matches give 0, .3, .6, .9, 1. Both sides are normalised unless all humans say the same.
    Raises ValueError for fewer than four humans, with whom a right answer could not get 1.
    """
    if len(humans) < 4:
        raise ValueError(f"VQA accuracy needs at least 4 human answers (the data sets have 10), got {len(humans)}")
    answer, said = clean(answer), [clean(h) for h in humans]
    if len(set(said)) > 1:
        answer, said = normalise_answer(answer), [normalise_answer(h) for h in said]
    matches, n = said.count(answer), len(said)
    of_matching, of_others = min(matches - 1, 3), min(matches, 3)  # thirds granted with a matching, with another human left out
    return (matches * of_matching + (n - matches) * of_others) / (3 * n) if matches else 0.0
