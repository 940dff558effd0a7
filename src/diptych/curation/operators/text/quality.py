"""Quality measures of a text: repetition, special characters, stock phrases that do not describe the picture."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diptych.core.words import words
from diptych.curation.operators.base import Columns, Operator

# What a camera, a shop or a page template wrote; RE2, case-insensitive, on the trimmed text. Words such as "log in" also describe
# pictures ("a turtle on a log in a pond"), so most of them count only as a clause of their own, or with what follows in a template.
_START = r"(?:^|[.!?|;:,•·»>/–—…]\s*|\s-\s+)"  # of a clause
_END = r"(?:\s*(?:$|[.!?|;:,•·»>/–—…])|\s-\s)"
_FILE = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic)"
_THIS = r"(?:(?:the|this|our|your)\s)?(?:image|picture|photo|page|post|article|video|link|story|item|product|file|app|pdf)s?"
_SITE = r"(?:facebook|instagram|twitter|pinterest|youtube|tiktok|whatsapp|linkedin|reddit|tumblr|social media)"
BOILERPLATE = (
    rf"^(?:img|dsc|dscn|dcim|pxl|image|photo|picture|pic|screenshot|screen shot|scan|untitled|file|unnamed|no ?name)"
    rf"[\s_\-#.:()]*\d*\)?(?:{_FILE})?$",
    rf"^[\p{{L}}\p{{N}}_\-.()%+]+{_FILE}$|^[\p{{L}}\p{{N}}_\-. ()%+]*\d[\p{{L}}\p{{N}}_\-. ()%+]*{_FILE}$",
    r"\b(?:click|tap) here\b|\b(?:click|tap) to (?:enlarge|view|zoom|see|open|expand|play|read)\b",
    rf"{_START}click (?:on|for)\s(?:{_THIS}|(?:a )?(?:larger|bigger|full|more)|details)\b",
    r"\b(?:stock (?:photo|image|photography|illustration|vector)s?|royalty[- ]free|shutterstock|istock(?:photo)?|getty images|alamy"
    r"|dreamstime)\b",
    rf"{_START}(?:buy|shop|order|book|download|subscribe|register|sign up) (?:now|online|today|here|for free|free)"
    rf"(?:{_END}| (?:and|for|at|from|with|the|our|all|your)\b)|{_START}download {_THIS}\b|\bfree download{_END}",
    rf"{_START}add to (?:cart|basket|bag|wish ?list)\b|\badd to (?:cart|basket|bag|wish ?list)$",
    rf"{_START}(?:currently |temporarily |back |now )?(?:in stock|out of stock|sold out|on sale now){_END}"
    rf"|\bfree shipping(?:{_END}| (?:on|over|for|worldwide)\b)|\b(?:best|lowest) prices? (?:guaranteed?|online)\b",
    r"\ball rights reserved\b|\bcopyright (?:©|\(c\)|\d{4})|^©|©\s*(?:\d{4}|(?-i:[A-Z]))|\b(?:image|photo|picture) credits?\s*:",
    rf"{_START}(?:terms of (?:use|service)|privacy policy|cookie policy)(?:{_END}| (?:and|&) )"
    r"|\bour (?:terms of (?:use|service)|privacy policy|cookie policy)\b",
    rf"{_START}subscribe(?:{_END}| to (?:our|the|my|this)\b)|\bto our newsletter\b",
    rf"{_START}(?:sign up|log[ -]?in|sign in|register)(?:{_END}| or (?:register|sign|log|create)\b"
    rf"| to (?:your|view|see|continue|comment|post|reply|download|access|read|receive|get)\b"
    rf"| for (?:our|free|updates|a free|an account)\b| with (?:your|google|apple|email|{_SITE})\b)",
    rf"{_START}(?:read|learn|see|load|view|show) more(?:{_END}| (?:about|here|on page|on our|of this)\b)"
    r"|(?-i:\b(?:Read|Learn|See|Load|View|Show) [Mm]ore)\W*$",
    rf"{_START}(?:share|pin|tweet) (?:this{_END}|{_THIS}(?:{_END}|\s(?:on|with|via)\b))"
    rf"|\b(?:share|follow us|like us|find us) on {_SITE}\b|{_START}follow us(?:{_END}| (?:on|@|for)\b)",
    r"^(?:null|none|nan|n/?a|undefined|alt(?: text)?|placeholder|thumbnail|logo|icon|banner|default|loading\.*|lorem ipsum.*)$",
    r"https?://|^www\.\w|\b(?:visit|see|via|source:?|more at|info at|order at|buy at) www\.\w",
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
    version = 2
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
    found = words(text.lower())
    runs = list(zip(*(found[i:] for i in range(run)), strict=False))
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
