"""Where two answers differ, in characters and in tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from diptych.data.preferences import Span

_PIECE = re.compile(r"\w+(?:['’-]\w+)*|\s+|[^\w\s]")


def differing(chosen: str, rejected: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The words of ``chosen`` that ``rejected`` does not have there, and the words of ``rejected`` that stand in their place, as
    spans of characters. Words that are only left out give no span on the other side.
    """
    ours, theirs = (list(_PIECE.finditer(text)) for text in (chosen, rejected))
    matcher = SequenceMatcher(None, [m.group() for m in ours], [m.group() for m in theirs], autojunk=False)
    first: list[Span] = []
    second: list[Span] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            continue
        for spans, pieces, start, stop in ((first, ours, a, b), (second, theirs, c, d)):
            if start < stop:
                spans.append((pieces[start].start(), pieces[stop - 1].end()))
    return _joined(first, chosen), _joined(second, rejected)


def _joined(spans: Sequence[Span], text: str) -> tuple[Span, ...]:
    """Spans with only white space between them as one."""
    result: list[Span] = []
    for start, stop in spans:
        if result and not text[result[-1][1] : start].strip():
            result[-1] = result[-1][0], stop
        else:
            result.append((start, stop))
    return tuple(result)


def marked_tokens(texts: Sequence[str], spans: Sequence[Span]) -> list[bool]:
    """Which tokens overlap one of the spans. texts: what each token stands for in its text, one after the other; a token of part of
    a character, which stands for nothing alone, is marked with the one after it. spans: of characters in their concatenation.
    """
    at, marks = 0, []
    for text in texts:
        stop = at + len(text)
        marks.append(any(max(a, at) < min(b, stop) for a, b in spans))
        at = stop
    for i in range(len(marks) - 2, -1, -1):
        if not texts[i]:
            marks[i] = marks[i + 1]
    return marks
