"""Which option a model's text names: by its letter or by its own text, in English, German, Spanish and Chinese; never a guess.

``tests/benchmarks/choice_texts.json`` holds the texts that this was written for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from diptych.benchmarks.answers.final import (
    CORRECTION,
    HEAD,
    LINK,
    NUMBERS,
    marked,
    plain_text,
    without_questions,
    without_thinking,
)
from diptych.benchmarks.answers.keys import LETTERS

BEFORE = 200  # characters in which a denial is looked for
WORDS = "AEIOUY"  # letters that are words in one of the languages: "A dog" is no answer A
# What may follow a letter but no article.
_AFTER = (
    r"because|since|as|for|which|that|given|not|rather|instead|and|or|but|nor"
    r"|weil|denn|da|und|oder|sondern|porque|ya|pues|y|o|no"
)
_OR = r"(?:,|;|/|&|、|(?<![^\W_])(?:or|and|oder|und|o|y|ou|et)(?![^\W_])|或|和|及|与)"
_OPTION = (
    r"(?i:(?:definitely|certainly|clearly|probably|most\s+likely)\s+)?"
    r"(?i:(?<![^\W_])(?:option|choice|opción|answer|antwort|la)s?\s+|选项\s*)?"
)
_WRONG = (
    r"\s*(?:选项)?\s*(?:(?:is|ist|es|are|seems|looks|can|could|might|may|would|was)(?![^\W_])|不|错)"
    r"|\s*(?:wrong|incorrect|false|falsch|incorrecta)(?![^\W_])"
)
_RIGHT = (
    r"\s*(?:选项)?\s*(?:(?:is|ist|es|seems|must\s+be)\s+)?(?:是)?(?:(?:the|die|la|el|most)\s+)*"
    r"(?:(?:correct|right|best|richtige?|korrekte?|correcta|correcto|respuesta\s+correcta|answer|antwort)(?![^\W_])|正确|对的)"
)
_TAKEN = (  # words before a letter that choose it
    r"(?:(?<![^\W_])(?:i|we)(?:(?:'d|'ll|\s+would|\s+will|\s+have\s+to)?"
    r"\s+(?:choose|pick|select|say|answer|go\s+(?:with|for))|(?:'m|\s+am|'re|\s+are)\s+going\s+with)\s*:?"
    r"|(?<![^\W_])(?:(?:it|that|this|which)(?:'s|\s+is|\s+must\s+be|\s+has\s+to\s+be|\s+should\s+be)"
    r"|es\s+ist|(?<!no )es\s+la|(?<!no )es)"
    r"|(?<![^\W_])(?:therefore|thus|hence|so|also|daher|somit|folglich|por\s+lo\s+tanto|por\s+tanto|así\s+que),?"
    r"|(?<![^\W_])(?:ich\s+(?:wähle|nehme)|elijo|escojo|selecciono)"
    r"|选(?:择|了)?(?!项)[:：]?|(?:所以|因此|故),?"
    r"|(?<![^\W_])(?:but|sondern|sino)(?:\s+rather)?|而是)\s*(?:(?:option|choice|opción|la|the|answer)\s+|选项)*"
)
_CLOSED = rf"\s*(?:$|[).:,;!\n。，])|\s+(?:{_AFTER})(?![^\W_])"  # what follows a chosen letter
_NOT = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|without|isn't|unlike|than|instead of|except|kein\w*|nicht|statt|weder|noch|sin|ningún|ni)\b"
    r"|n't\b|不是|没有|并非|不像|而非)[^,.;:!?，。；\n]*$",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[,.;:!?，。；\n]|\b(?:but|sondern|sino|because|since|so)\b|而是", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:a|an|the|an?\s+image\s+of|ein\w*|der|die|das|un|una|el|la|los|las|一[只个匹条张])\s+", re.IGNORECASE)
_CJK = r"\u3400-\u9fff"


def parse_choice(text: str, options: Sequence[str], letters: str = "") -> int | None:
    """The index of the option that a text names, by letter (``B``, ``(b)``, ``B. a cat``, ``The answer is B``, ``\\boxed{B}``) or
    by the text of one option. None if it names none or several, contradicts itself, or ends within its thinking; never a guess.

    ``letters``: those of the options, if they are not A, B, C … in a row.
    """
    reader = _reader(tuple(options), letters or LETTERS[: len(options)])
    text = without_thinking(text)
    inside = marked(text)
    if inside:
        found = {reader.read(part) for part in inside}
        return found.pop() if len(found) == 1 else None
    return reader.read(text)


@lru_cache(maxsize=1024)
def _reader(options: tuple[str, ...], letters: str) -> _Reader:
    return _Reader(options, letters)


class _Several(Exception):  # noqa: N818 - an outcome, not a failure
    """The text names several options where it gives its answer."""


class _Reader:
    """Reads texts that answer a question with these options."""

    def __init__(self, options: tuple[str, ...], letters: str):
        self.options, self.letters = options, letters
        either = re.escape(letters + letters.lower())
        # In brackets a letter may be small; alone only in front of punctuation or an end.
        self.letter = (
            rf"(?<![^\W{_CJK}])(?:[(\[]\s*(?P<in>[{either}])\s*[)\]]|(?P<up>[{letters}])|(?P<low>[{letters.lower()}])(?=\s*(?:$|[).:,;!\n])))"
            rf"(?![^\W{_CJK}]|'\w|-\w)"
        )
        self.texts = [_squeezed(o) for o in options]
        self.longest = max(map(len, options)) + 100  # characters after a letter that matter
        patterns: dict[str, set[int]] = {}
        for i in sorted(range(len(options)), key=lambda i: -len(options[i])):
            patterns.setdefault(_pattern(options[i]), set()).add(i)
        self.named = [(re.compile(p, re.IGNORECASE), same) for p, same in patterns.items() if p]

    def read(self, text: str) -> int | None:
        """The option that a text without thinking and marks names."""
        text = plain_text(text)
        if not text:
            return None
        written = _squeezed(text)
        if self.texts.count(written) > 1 and written not in self.letters.lower():
            return None
        same = self.equal(text)
        if same is not None and not re.fullmatch(r"\W*[A-Za-z]\W*", text):
            return same
        fixes = list(CORRECTION.finditer(text))
        if fixes and fixes[-1].start():
            text = text[fixes[-1].end() :].lstrip(" ,.:!…—-")
        try:
            found = self.by_letter(text)
            if not found:
                found = set(self.stated_texts(text)) or self.by_text(text)
        except _Several:
            return None
        return found.pop() if len(found) == 1 else None

    def equal(self, text: str) -> int | None:
        """The option of which this is the text, but for case, space, an article and a plural."""
        written = _squeezed(text)
        for form in (written, NUMBERS.get(written, written)):
            same = [i for i, t in enumerate(self.texts) if t and t == form]
            if same:
                return same[0] if len(same) == 1 else None
        more = [i for i, t in enumerate(self.texts) if len(t) > 2 and written in (t + "s", t + "es")]
        return more[0] if len(more) == 1 else None

    # --- letters ---

    def by_letter(self, text: str) -> set[int]:
        """The options that the text gives as its answer by letter, each way of saying it that applies."""
        rest = without_questions(self.without_listing(text)).strip()
        written = without_questions(text)
        last = rest.rpartition("\n")[2].strip()
        found = set(self.leading(rest)) | set(self.stated(written)) | set(self.leading(last, last=True))
        if alone := re.search(rf"\w\w[.!。]\s+{self.letter}[\s).]*$", written):  # "There are two. B"
            found.add(self.index(alone))
        return found or set(self.in_brackets(written))

    def without_listing(self, text: str) -> str:
        """The text without a repetition of the options, in lines or in a row."""
        mark = rf"(?:^|[\n,;.])\s*{_OPTION}{self.letter}\s*[).:、-]"
        before = [(m, text[max(0, m.start() - BEFORE) : m.start()].rpartition("\n")[2]) for m in re.finditer(mark, text)]
        starts = [m for m, words in before if not _NOT.search(words) and words.count("(") <= words.count(")")]
        listed = {self.index(m) for m in starts}
        if len(listed) < 2:
            return text
        lines = text.split("\n")
        kept = [line for line in lines if not re.match(rf"\s*{_OPTION}{self.letter}\s*[).:、-]", line)]
        return "\n".join(kept).strip()

    def leading(self, text: str, last: bool = False) -> Iterator[int]:
        """The letter that a text starts with, if it is the answer. ``last``: of a last line, which must be a letter alone or with
        its own option.
        """
        start = re.match(rf"\s*{_OPTION}{self.letter}", text)
        if not start:
            return
        i, rest = self.index(start), text[start.end() :]
        self.refuse_lists(start, text, i)
        clause = re.split(r"[,.;!\n。，]", re.sub(r"^\s*[).:、,–-]?\s*", "", rest), maxsplit=1)[0]
        own, other = self.equal(clause) == i, self.equal(clause)
        line = rest.partition("\n")[0].strip(" .):。、,!")
        if not line:
            yield i
        elif re.match(r"\s*[).:、。,–-]", rest) or start["in"]:
            if other is not None and not own:
                raise _Several  # "B. cat", where B is a dog
            body = re.sub(r"^\s*[).:、,-]", "", rest)
            wrong = re.match(_WRONG, body) and not re.match(_RIGHT, body)
            joined = rf"(?:(?<![^\W_])(?:or|and|oder|und|o|y)(?![^\W_])|[/&或和])\s*{_OPTION}{self.letter}\s*[).:]"
            if any(self.index(m) != i for m in re.finditer(joined, rest.partition("\n")[0])) and not _NOT.search(line):
                raise _Several  # "A. cat or B. dog"
            if not wrong and (own or not last):
                yield i
        elif own or (not last and (re.match(rf"\s+(?:{_AFTER})(?![^\W_])", rest) or re.match(r"\s*因为", rest))):
            yield i

    def stated(self, text: str) -> Iterator[int]:
        """The letters that the text says are the answer: "the answer is B", "B is correct", "I choose B"."""
        for m in re.finditer(rf"(?i:{HEAD}{LINK}){self.letter}", text):
            if self.is_letter(m, text):
                yield self.index(m)
        for m in re.finditer(rf"(?i:{_TAKEN}){self.letter}", text):
            if self.is_letter(m, text) and (m["in"] or re.match(_CLOSED, text[m.end() :])):
                yield self.index(m)
        for m in re.finditer(rf"{self.letter}[)\]]?(?i:{_RIGHT})", text):
            if not _denied(text, m.start()):
                yield self.index(m)
        for m in re.finditer(rf"(?i:\bwürde\s+){self.letter}(?i:\s+(?:wählen|nehmen))", text):
            yield self.index(m)

    def is_letter(self, m: re.Match[str], text: str) -> bool:
        """Whether a letter in a statement is one, and is not refused in the same breath. Raises _Several for a list."""
        i, rest = self.index(m), text[m.end() : m.end() + self.longest]
        self.refuse_lists(m, text, i)
        if re.match(_WRONG, rest, re.IGNORECASE) and not re.match(_RIGHT, rest, re.IGNORECASE):
            return False
        clause = re.split(r"[,.;!\n。，]", re.sub(r"^\s*[).:、,–-]?\s*", "", rest), maxsplit=1)[0]
        other = self.equal(clause)
        if other is not None and other != i and re.match(r"\s*[).:、,–-]", rest):
            raise _Several
        if m["up"] and m["up"] in WORDS:
            free = re.match(r"\s*(?:$|[).:,;!\n。，、–-])", rest) or re.match(rf"\s+(?:{_AFTER})(?![^\W_])", rest)
            return bool(free) or other == i or bool(re.match(rf"\s*[{_CJK}]", rest))
        return True

    def refuse_lists(self, m: re.Match[str], text: str, i: int) -> None:
        """Raises _Several if another letter follows: "A or B", "A, B", "(A) (B)"."""
        if m["in"] and re.match(rf"\s*[(\[][{re.escape(self.letters)}][)\]]", text[m.end() :]):
            raise _Several
        hedge = r"(?:(?:or|and|possibly|maybe|perhaps|also|even|vielleicht|quizás)\s+)*"
        another = rf"\s*[)\].:]?\s*{_OR}\s*{hedge}{_OPTION}{self.letter}(?P<end>.?.?)"
        following = re.match(another, text[m.end() :], re.DOTALL)
        if not following:
            return
        article = following["up"] and following["up"] in WORDS and re.match(r"\s[^\W\d_]", following["end"])
        if not article or re.match(rf"\s+(?:{_AFTER})(?![^\W_])", text[m.end() + following.end() - len(following["end"]) :]):
            raise _Several

    def in_brackets(self, text: str) -> Iterator[int]:
        """Letters in brackets that are not refused: "I see (B)"."""
        either = re.escape(self.letters + self.letters.lower())
        for m in re.finditer(rf"[(\[](?P<in>[{either}])[)\]](?P<up>)(?P<low>)", text):
            refused = re.match(r",?\s*(?:but\s+)?(?:it\s+)?" + _WRONG.strip(), text[m.end() :]) or re.match(_WRONG, text[m.end() :])
            if not _denied(text, m.start()) and not refused:
                yield self.letters.index(m["in"].upper())

    def index(self, m: re.Match[str]) -> int:
        """The option of a match of ``letter``."""
        return self.letters.index((m["in"] or m["up"] or m["low"]).upper())

    # --- texts of options ---

    def stated_texts(self, text: str) -> Iterator[int]:
        """The options that the text says are the answer by their texts."""
        for m in re.finditer(rf"(?i:{HEAD}{LINK})", text):
            rest = re.split(r"[.;!\n。](?!\d)", text[m.end() : m.end() + self.longest].lstrip(), maxsplit=1)[0]
            if (same := self.equal(rest)) is not None:
                yield same

    def by_text(self, text: str) -> set[int]:
        """The options that the text mentions, the longest first, without those that it denies or asks about."""
        text = without_questions(self.without_listing(text)).replace("$", "")
        found: set[int] = set()
        for pattern, same in self.named:
            for m in list(pattern.finditer(text)):
                if not _denied(text, m.start()):
                    found |= same
                text = text[: m.start()] + "\0" * len(m[0]) + text[m.end() :]
        return found | self.scattered(text, found)

    def scattered(self, text: str, found: set[int]) -> set[int]:
        """The longer options of which all words are in the text, though not in a row: "a dog and two horses on the grass"."""
        written, own = _long_words(text), set().union(*(_long_words(self.options[i]) for i in found))
        rest = {i: _long_words(o) - own for i, o in enumerate(self.options) if found and i not in found}
        return {i for i, words in rest.items() if len(words) > 1 and words <= written}


def _denied(text: str, start: int) -> bool:
    """Whether what starts there is denied in its clause: "not a cat", "rather than B"."""
    return bool(_NOT.search(_BREAK.split(text[max(0, start - BEFORE) : start])[-1]))


def _long_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower())) - {"the", "and"}


def _squeezed(text: str) -> str:
    """A text for comparison: small letters, without space, an article, and signs at its ends."""
    text = re.sub(r"^[\s.,:;!?。，、]+|[\s.,:;!?。，、]+$", "", text.translate(_DROPPED).lower())
    text = _ARTICLE.sub("", re.sub(r"^一[只个匹条张](?=.)", "", text))
    return re.sub(r"[\s\-]+", "", text)


_DROPPED = {ord("$"): None, ord("\\"): None}


def _pattern(option: str) -> str:
    """A regular expression that finds an option in a text; "" if it has no letters or digits."""
    option = _ARTICLE.sub("", option.translate(_DROPPED).strip(" .,;:!?。").lower())
    tokens = re.findall(rf"\d+(?:[.,]\d+)*|[^\W\d_{_CJK}]+|[{_CJK}]+|[^\w\s]|_", option)
    if not re.search(r"\w", option):
        return ""
    parts = [re.escape(tokens[0])]
    for before, token in pairwise(tokens):
        words = before.isalpha() and token.isalpha()
        parts += [r"[\s\-]+" if words else r"\s*", r"[\s\-]*" if token == "-" else re.escape(token)]
    first, last = option[0], option[-1]
    start = r"(?<!\d)(?<!\d[.,])" if first.isdigit() else rf"(?<![^\W{_CJK}])" if re.match(rf"[^\W{_CJK}]", first) else ""
    end = r"(?!\d)(?![.,]\d)" if last.isdigit() else rf"(?:e?s)?(?![^\W{_CJK}])" if re.match(rf"[^\W{_CJK}]", last) else ""
    if re.fullmatch(rf"[{_CJK}]", option):  # one sign is part of many words
        start = r"(?<=[只匹条个头是为有:\s])"
    return start + "".join(parts) + end
