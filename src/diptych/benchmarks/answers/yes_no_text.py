"""Whether a model's text says yes or no, in English, German, Spanish and Chinese; never a guess.

``tests/benchmarks/yes_no_texts.json`` holds the texts that this was written for.
"""

from __future__ import annotations

import re

from diptych.benchmarks.answers.final import CORRECTION, HEAD, LINK, marked, plain_text, without_questions, without_thinking

_YES, _NO = r"yes|yeah|yep|yup|ja|jawohl|sí", r"no|nope|nein"
_WORDS_NO = frozenset(
    ["no", "not", "nope", "none", "nein", "kein", "keine", "keinen", "keiner", "keines", "nicht", "ningún", "ninguna"]
)
_WORDS_YES = frozenset(_YES.split("|"))
_ZH_NO, _ZH_YES = r"不是的?|不存在|不对|没有|并没有|没|否|不|无", r"是的?|有的?|对的?|存在|没错|正确"
_UNSURE = re.compile(
    r"(?:n't|\bnot) (?:\w+ )?(?:know|sure|certain|clear|tell|say|determine|possible|help)\b"
    r"|\b(?:can't|cannot|can not|unable to) (?:\w+ )?(?:see|view|access|open|find) (?:the|this|any|an|your) (?:image|picture|photo)"
    r"|\bsorry\b|\bweiß (?:es |das )?nicht|\bnicht (?:\w+ )?(?:sicher|klar|sagen|erkennen|erkennbar|bestimmen|beurteilen)\b"
    r"|\bno (?:lo )?(?:sé|se puede|estoy segur[oa]|está claro|es posible|puedo)\b"
    r"|\bno (?:idea|answer|information|info|clue|comment|way to)\b|\bnot (?:enough|sufficient|visible to me)\b|\bnone of\b"
    r"|\bmay or may not\b|\bkeine ahnung\b|\bno (?:tengo|sabría|podría|hay suficiente)\b"
    r"|无法|不知道|不确定|不清|不好说|说不准|不能|可能|也许|或许|是否",
    re.IGNORECASE,
)
_EITHER = rf"(?:(?P<yes>{_YES}|si(?=\s*(?:$|[,.!;\n])))(?![^\W_])|(?P<no>{_NO})(?![^\W_])|(?P<zno>{_ZH_NO})|(?P<zyes>{_ZH_YES}))"
_STATED = re.compile(rf"{HEAD}{LINK}{_EITHER}(?P<rest>[^.!\n。]*)", re.IGNORECASE)
_LEADING = re.compile(rf"(?:[(\[]?[AB][)\].:]\s+)?{_EITHER}(?P<rest>[^\n]*)", re.IGNORECASE)
_OTHER = re.compile(
    rf"\s*(?:[,/&]|\band\b|\bor\b|\bund\b|\boder\b|\by\b|\bo\b|和|或|不)\s*(?:{_EITHER})\s*(?:$|[,.!;。])", re.IGNORECASE
)
_SO = re.compile(r"^(?:so|therefore|thus|hence)\b,?\s*", re.IGNORECASE)
_NO_IDIOM = re.compile(
    r"\s+(?:problem|doubt|question|worries|idea|answer|information|info|clue|comment|way|would|could|might)\b", re.IGNORECASE
)


def parse_yes_no(text: str) -> bool | None:
    """What a text says: its marked or stated answer ("The answer is yes"), else its first sentence, else a last line that is only
    yes or no. None if it says neither or both (``Yes and no``), or ends within its thinking; never a guess.

    "Isn't" and the like count as no; "I don't know" and "not sure" as no answer.
    """
    text = without_thinking(text)
    inside = marked(text)
    found = {_read(part) for part in inside} if inside else {_read(text)}
    return found.pop() if len(found) == 1 else None


def _read(text: str) -> bool | None:
    text = without_questions(plain_text(text)).strip()
    fixes = list(CORRECTION.finditer(text))
    if fixes and fixes[-1].start():
        text = text[fixes[-1].end() :].lstrip(" ,.:!…—-")
    stated = {None if _contradicted(m) else _is_yes(m) for m in _STATED.finditer(text)}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    first = re.split(r"[.!\n。]", text, maxsplit=1)[0].strip()
    lead = _LEADING.match(text)
    if lead and not _NO_IDIOM.match(lead["rest"]):
        if _contradicted(lead):
            return None
        if re.match(r"\s*(?:$|[,.;:!。–-])", lead["rest"]):  # "No, not that I know"
            return _is_yes(lead)
        if not _UNSURE.search(first):
            return _is_yes(lead)
    if _UNSURE.search(first):
        return None
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", first.lower())
    yes = any(w in _WORDS_YES for w in words)
    no = any(w in _WORDS_NO or w.endswith("n't") for w in words) or bool(re.search(r"没有|不存在|不是", first))
    if yes != no:
        return yes
    last = _LEADING.fullmatch(_SO.sub("", re.split(r"\n|[.!。]\s+", text.strip())[-1].strip()))
    return _is_yes(last) if last and not yes and not last["rest"].strip(" .!。") else None


def _contradicted(m: re.Match[str]) -> bool:
    """Whether a yes or no is followed at once by the opposite: "yes or no"."""
    other = _OTHER.match(m["rest"])
    return other is not None and _is_yes(other) != _is_yes(m)


def _is_yes(m: re.Match[str]) -> bool:
    return bool(m["yes"] or m["zyes"])
