"""Quality measures of a text: repetition, special characters, stock phrases that do not describe the picture."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diptych.curation.operators.base import Columns, Operator

# Texts written by a camera, a shop or a page template; RE2, case-insensitive, on the trimmed text.
BOILERPLATE = (
    r"^(img|dsc|dscn|dcim|pxl|image|photo|picture|pic|screenshot|screen shot|scan|untitled|file|unnamed|no ?name)"
    r"[\s_\-#.:()]*\d*\)?(\.(jpe?g|png|gif|webp|bmp|tiff?))?$",
    r"^[\w\-. ()%+]+\.(jpe?g|png|gif|webp|bmp|tiff?)$",
    r"^(click|tap) (here|to|for|on)\b|\b(click|tap) (here|to (enlarge|view|zoom|see|open|expand))\b",
    r"\b(stock (photo|image|photography|illustration|vector)s?|royalty[- ]free|shutterstock|istock(photo)?|getty images|alamy"
    r"|dreamstime)\b",
    r"\b(buy now|add to cart|free shipping|order online|best price|in stock|out of stock|sold out|on sale now|shop now)\b",
    r"\b(all rights reserved|copyright \d{4}|image credit|photo credit|terms of use|privacy policy|cookie policy)\b|©",
    r"\b(subscribe|sign up|log ?in|read more|learn more|see more|load more|share (this|on)|follow us|download (now|here|free))\b",
    r"^(null|none|nan|n/?a|undefined|alt( text)?|placeholder|thumbnail|logo|icon|banner|default|loading\.*|lorem ipsum.*)$",
    r"https?://|www\.\w",
)


@dataclass(frozen=True, kw_only=True)
class TextQuality(Operator):
    """Repetition and special characters of the caption, 0 … 1 each, and whether it is a stock phrase.

    character_repetition: the share of the √k most frequent of k different n-grams of ``run`` characters, if they occur more than
    once, as in the ROOTS corpus (Laurençon et al. 2022). word_repetition: the share of n-grams of ``words`` words that occur more
    than once, case-insensitive. special_characters: the share of characters other than letters, digits, punctuation and white
    space. boilerplate: bool, see ``BOILERPLATE``.
    """

    name = "text_quality"
    inputs = ("text",)
    outputs = {  # noqa: RUF012 - declared, never changed
        "character_repetition": pa.float32(),
        "word_repetition": pa.float32(),
        "special_characters": pa.float32(),
        "boilerplate": pa.bool_(),
    }
    run: int = 10
    words: int = 4

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        text = batch["text"]
        plain = text.to_pylist()
        special = pc.count_substring_regex(text, r"[^\p{L}\p{N}\p{M}\s]")
        length = pc.max_element_wise(pc.utf8_length(text), 1)
        return {
            "character_repetition": [character_repetition(t, self.run) for t in plain],
            "word_repetition": [word_repetition(t, self.words) for t in plain],
            "special_characters": pc.divide(pc.cast(special, pa.float32()), pc.cast(length, pa.float32())),
            "boilerplate": is_boilerplate(text),
        }


def is_boilerplate(text: pa.Array) -> pa.Array:
    """Boolean, true for stock phrases."""
    pattern = "|".join(f"(?:{p})" for p in BOILERPLATE)
    return pc.match_substring_regex(pc.utf8_trim_whitespace(text), pattern, ignore_case=True)


def character_repetition(text: str, run: int) -> float:
    """The share of repeated n-grams of ``run`` characters, see ``TextQuality``."""
    runs = [text[i : i + run] for i in range(len(text) - run + 1)]
    if len(set(runs)) == len(runs):
        return 0.0
    counts = sorted(Counter(runs).values(), reverse=True)
    repeated = sum(1 for c in counts if c > 1)
    return sum(counts[: min(int(len(counts) ** 0.5), repeated)]) / len(runs)


def word_repetition(text: str, run: int) -> float:
    """The share of repeated n-grams of ``run`` words, see ``TextQuality``."""
    words = text.lower().split()
    runs = list(zip(*(words[i:] for i in range(run)), strict=False))
    if len(set(runs)) == len(runs):
        return 0.0
    return sum(c for c in Counter(runs).values() if c > 1) / len(runs)


def normalised(text: str) -> str:
    """The text without letter case, repeated white space and punctuation at its ends."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")


_DIGITS = re.compile(r"\d+")


def template(text: str) -> str:
    """``normalised`` with numbers replaced: "IMG 17" and "img 203" have the same template."""
    return _DIGITS.sub("0", normalised(text))
