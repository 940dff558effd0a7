"""Which option of a question is the right one: options and answer keys of multiple-choice files, read once for a whole file."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diptych.benchmarks.tables import Row
from diptych.core.errors import DiptychError, nearest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of the options
KINDS = ("letter", "text", "index")
_WORDS = {"letter": "letters of options", "text": "texts of options", "index": "indices from 0"}
REMEDY = "say what it is: &key=letter, &key=text or &key=index (--key of diptych metrics)"


class Options(NamedTuple):
    """The options of one question. ``letters``: one for each; in a table with empty cells not A, B, C … in a row."""

    texts: list[str]
    letters: str
    columns: bool  # from the columns A, B, …; else from a list


def options_of(row: Row) -> Options:
    """The options: a list, a list written as text (MMMU), or the columns A, B, … that are not empty.

    A column keeps its letter: of A, B and D, the option in D is D. Raises DiptychError unless there are 2 to 26.
    """
    given = row.get("options", row.get("choices"))
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            try:
                given = ast.literal_eval(given)
            except (ValueError, SyntaxError):
                given = None
    letters, columns = LETTERS, given is None
    if given is None:
        letters = "".join(n for n in LETTERS if str("" if row.get(n) is None else row[n]).strip() not in ("", "nan"))
        given = [row[name] for name in letters]
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        raise DiptychError(f"{row.where}: expected two or more options (at most 26) in fields A, B, … or in the list 'options'")
    return Options([str(o).strip() for o in given], letters[: len(given)], columns)


def _letter(answer: Any, of: Options, raw: Any) -> int | None:
    """``B``, ``b``, ``(B)``, ``B.``"""
    found = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", answer) if isinstance(answer, str) else None
    return of.letters.index(found[1].upper()) if found and found[1].upper() in of.letters else None


def _text(answer: Any, of: Options, raw: Any) -> int | None:
    """The text of an option; a number only if the options are numbers, too. In other case if no other option is then the same."""
    if not isinstance(answer, str):
        return raw.index(answer) if isinstance(raw, list) and answer in raw else None
    if answer in of.texts:
        return of.texts.index(answer)
    lower = [text.lower() for text in of.texts]
    return lower.index(answer.lower()) if lower.count(answer.lower()) == 1 else None


def _index(answer: Any, of: Options, raw: Any) -> int | None:
    if isinstance(answer, bool) or not re.fullmatch(r"\d+", str(answer)):
        return None
    return int(answer) if int(answer) < len(of.texts) else None


_READ: dict[str, Callable[[Any, Options, Any], int | None]] = {"letter": _letter, "text": _text, "index": _index}


def answer_key(rows: Sequence[Row], options: Sequence[Options], kind: str = "auto") -> list[int]:
    """The index of the right option of each row, from the field ``answer``.

    The answers of a file are of one kind: letters, texts of options, or indices from 0 (numbers or digits). ``kind``: which one;
    ``auto``: the one that fits every row. In a table with the columns A, B, … letters are the letters of columns, also over
    options that are letters. Raises DiptychError if no kind fits every row, or if two fit and mean different options.
    """
    if kind not in ("auto", *KINDS):
        raise DiptychError(f"key={kind}: valid are auto, {', '.join(KINDS)}{nearest(kind, KINDS)}")
    answers = [row.need("answer", kind=(str, int)) for row in rows]
    answers = [a.strip() if isinstance(a, str) else a for a in answers]
    raw = [row.get("options", row.get("choices")) for row in rows]
    keys = {
        name: [_READ[name](a, o, r) for a, o, r in zip(answers, options, raw, strict=True)]
        for name in (KINDS if kind == "auto" else (kind,))
    }
    fit = {name: [k for k in key if k is not None] for name, key in keys.items() if None not in key}
    if not fit:
        raise _misfit(rows, answers, options, keys)
    if "letter" in fit and all(o.columns for o in options):
        return fit["letter"]
    (first, key), *others = fit.items()
    for name, other in others:
        for row, answer, of, a, b in zip(rows, answers, options, key, other, strict=True):
            if of.texts[a] != of.texts[b]:
                both = f"the option '{of.texts[a]}' as one of {_WORDS[first]}, '{of.texts[b]}' as one of {_WORDS[name]}"
                raise DiptychError(f"{row.where}: field 'answer': '{answer}' is {both}; every row fits both: {REMEDY}")
    return key


def _misfit(
    rows: Sequence[Row], answers: Sequence[Any], options: Sequence[Options], keys: dict[str, list[int | None]]
) -> DiptychError:
    """Names the first row that does not fit the kind that fits most rows."""
    name, key = max(keys.items(), key=lambda entry: sum(k is not None for k in entry[1]))
    i, fitting = key.index(None), sum(k is not None for k in key)
    what = f"{rows[i].where}: field 'answer': '{answers[i]}' is not one of the {len(options[i].texts)} options"
    if not fitting:
        return DiptychError(f"{what}; expected a letter, an index from 0 or the text of an option, of one kind in the whole file")
    if name == "index" and all(str(a).isdigit() and 1 <= int(a) <= len(o.texts) for a, o in zip(answers, options, strict=True)):
        return DiptychError(f"{what} counted from 0; these answers count from 1: subtract 1 from each, or write letters")
    some = f"{fitting} of the {len(rows)} answers are {_WORDS[name]}"
    return DiptychError(f"{what} in this way: {some}; write all answers in one way" + ("" if len(keys) > 1 else f", or {REMEDY}"))
