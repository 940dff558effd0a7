"""Words of captions as the COCO server sees them: Penn Treebank tokens in lower case, less punctuation, without Java."""

from __future__ import annotations

import re
from functools import lru_cache

# What the server drops after tokenising. Its list has the brackets in capitals, but the tokens come in lower case:
# "-lrb-" stays, and so it does here.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_NORMALISE = str.maketrans(
    {
        "’": "'", "‘": "`", '"': "''", "“": "``", "”": "''", "–": "--", "—": "--", "―": "--", "…": "...",
        **dict.fromkeys("«»‹›„", " "), "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "£": "#", "€": "$",
        "\u00a0": " ", "\u200b": " ", "\u00ad": "", "\u2011": " ",
    }
)  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": " "}
_SPLIT = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents",
    ":)": ":-rrb-", ":-)": ":--rrb-", ";)": ";-rrb-", "=)": "=-rrb-", ":(": ":-lrb-", ":-(": ":--lrb-", "=(": "=-lrb-",
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me", "lemme": "lem me",
    "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
_ABBREVIATIONS = (
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|thu|fri|mrs?|ms|drs?|st|jr|sr|prof|etc|vs|inc|ltd|co|corp|"
    "ave|blvd|rd|ft|mt|dept|gov|sen|rep|gen|col|capt|lt|sgt|cpl|maj|cmdr|adm|rev|hon|pres|supts?|messrs|univ|assn|bros|bldg|calif|"
    "fla|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis|wyo|ariz|colo|conn|esq|est|ext|sq|tel|plc|ph\\.d"
)
_CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
_JOIN = rf"[-/_]|(?<=[^\W\d])[.!?](?=[^\W\d])|(?<=\b[cdlo])'(?!{_CLITIC[1:]})|"
_JOIN += r"(?<=\bma)'(?=am)|(?<=\bne)'(?=er)|(?<=\bqu)'|(?<=\bnor)'(?=easter)|(?<=\bhallowe)'(?=en)"
_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>|()]+[^\s"<>|.!?(){{}},-]                             # addresses, mail, hash tags
    | www\.(?:[^\s"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}(?:/[^\s"<>|()]+[^\s"<>|.!?(){{}},-])?
    | (?:\w[^\s"<>|()@]*)@(?:[^\s"<>|().]+\.)*[^\s"<>|().]+
    | [#@][^\W\d]\w* | </?[a-z!?][^<>\s]*>
    | (?:[a-z]\.)+[a-z](?![\w])\.?(?:-\w+)* | \b[a-z]\.(?!\w|\s*$|\s+(?-i:[A-Z]))   # u.s. p.m, vitamin c.
    | (?:{_ABBREVIATIONS})\.(?!\w) | no\.(?=\ *\d)                         # mr. etc. no. 7
    | [+-]?\d+(?:[.,:/]\d+)+ | [+-]\d+ | [+-]?\.\d+                         # 3,000 5.00 3/4 5:30 -5 .5
    | '(?:\d\ds\b|\d\d(?=\s|$)|n'|n\b|em\b|tis\b|twas\b|cause\b|til\b) | o'clock\b | y'(?=all\b)
    | {_CLITIC} | n't\b
    | (?-i:[A-Z]+(?:&[A-Z]+)+) | c\+\+ | [cf]\# | (?:us|a|c|hk|nz)\$(?=[\d.])       # R&B is one company, b&w are two colours
    | [:;=]-?[()](?!\w) | [:;=]-?[dp]\b(?<!\w:[dp])
    | \w+?(?=n't\b) | \w+(?:(?:{_JOIN})\w+?(?=n't\b|\b))*
    | \.\.\. | -+ | [!?]+ | '' | `` | \*+ | << | >> | (?![\U00010000-\U0010ffff])[^\w\s]
    """,
    re.VERBOSE | re.IGNORECASE,
)


_PLAIN = re.compile(r"[A-Za-z]+(?:,? [A-Za-z]+)*(?<![^A-Za-z][A-Za-z])[ .]*")  # words, commas, a full stop: most captions
_NOT_PLAIN = frozenset(_SPLIT) | frozenset(re.sub(r"(\w)\?", r"\1", _ABBREVIATIONS).split("|"))
_LOOKS_AHEAD = re.compile(r"(?:^|\W)(?:[a-z]|no)\.\W*$", re.IGNORECASE)  # the kind of token depends on the next word


@lru_cache(maxsize=1 << 17)
def tokenise(text: str) -> tuple[str, ...]:
    """Lower-case Penn Treebank tokens as Stanford CoreNLP 3.4.1 makes them, less punctuation.

    A single letter with a full stop at the end loses the stop, as it does in the server where the next caption starts with a
    capital.
    """
    if _PLAIN.fullmatch(text):
        words = tuple(text.lower().replace(",", "").rstrip(" .").split(" "))
        if _NOT_PLAIN.isdisjoint(words):
            return words
    if "&" in text:
        for entity, character in _ENTITIES.items():
            text = text.replace(entity, character)
    text = text.translate(_NORMALISE)
    parts = [_tokens(part) for part in text.split()]
    return tuple(token for part in parts for token in part) if None not in parts else _cut(text)  # type: ignore[union-attr]


@lru_cache(maxsize=1 << 17)
def _tokens(part: str) -> tuple[str, ...] | None:
    """The tokens of a part of a text without spaces; None if they depend on what follows."""
    return None if _LOOKS_AHEAD.search(part) else _cut(part)


def _cut(text: str) -> tuple[str, ...]:
    lower = (token.lower() for token in _TOKEN.findall(text))
    tokens = " ".join(_SPLIT.get(token, token) for token in lower).split()
    return tuple(t for t in tokens if t not in PUNCTUATION and t.strip("-"))
