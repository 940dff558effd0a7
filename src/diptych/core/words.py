"""Words of a text in any script: one definition for curation, controls and inspection.

The rules are those of Unicode's default word boundaries (UAX #29) as far as they matter for captions. A word is a run of letters,
marks and digits, with single apostrophes, hyphens or full stops inside: "child's", "t-shirt", "3.5". Scripts without spaces between
words are cut further: each ideograph and each hiragana is a word, and a run of katakana is one. UAX #29 leaves Thai, Lao, Khmer and
Burmese to dictionaries; here up to four of their letters are a word, which is about the mean length of a word of Thai.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import regex

_ALONE = r"\p{Han}\p{Hiragana}\p{Bopomofo}"
_BY_DICTIONARY = ("Thai", "Lao", "Khmer", "Myanmar")
_LONG = "ー"  # lengthens the kana before it
_JOINERS = "\u200c\u200d"  # within words of Persian and of Indian languages


def _pattern() -> str:
    """A word, in the syntax that RE2 (of pyarrow) and ``regex`` share; ``[^\\P{A}\\p{B}]`` is a character of A that is not in B."""
    elsewhere = _ALONE + r"\p{Katakana}" + _LONG + "".join(rf"\p{{{script}}}" for script in _BY_DICTIONARY)
    letter = rf"[^\p{{P}}\p{{S}}\p{{Z}}\p{{C}}{elsewhere}]"
    run = rf"{letter}+(?:[{_JOINERS}]+{letter}+)*"
    cluster = "|".join(rf"[^\P{{{script}}}\p{{P}}\p{{S}}]\p{{M}}*" for script in _BY_DICTIONARY)
    return (
        rf"{run}(?:['’.\-‐‑]{run}|,\p{{N}}+)*"
        rf"|[{_ALONE}][\p{{M}}{_LONG}]*"
        rf"|(?:\p{{Katakana}}\p{{M}}*|{_LONG})+"
        rf"|(?:{cluster}){{1,4}}"
    )


PATTERN = _pattern()
_WORD = regex.compile(PATTERN)
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:['.\-][A-Za-z0-9]+|,[0-9]+)*")  # the same, faster


def spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word, in characters."""
    found = (_ASCII_WORD if text.isascii() else _WORD).finditer(text)
    return [match.span() for match in found]


def words(text: str) -> list[str]:
    """The words in order, without the white space and punctuation between them; letter case is unchanged."""
    found: list[str] = (_ASCII_WORD if text.isascii() else _WORD).findall(text)
    return found


def count_words(texts: Sequence[str] | pa.Array) -> pa.Array:
    """The number of words of each text, int32; null for null."""
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
    return pc.count_substring_regex(array, PATTERN).cast(pa.int32())
