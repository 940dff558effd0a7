"""Tables that users bring, as rows that know their place in the file: an error names the file, the line and the field.

Ids may be texts or whole numbers; 7 and "7" are the same id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest

# A score is also shown by the values of these columns, if a file has them; a macro average is over the first of them.
SLICES = (
    "relation_name", "relation", "attributes", "attribute", "category", "l2-category", "kind", "split", "type", "tag",
    "collapsed_tag", "secondary_tag", "answer_type", "question_type", "subfield", "topic_difficulty",
)  # fmt: skip


class Table:
    """The rows of a file. ``where(i)``: the place of row i, ``answers.jsonl, line 3`` or ``results.json, annotations[2]``."""

    def __init__(self, path: Path, rows: list[dict[str, Any]], where: Callable[[int], str] | Sequence[int]):
        self.path, self.rows, self._where = path, rows, where

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """The place of row i in words, for messages."""
        return self._where(i) if callable(self._where) else f"{self.path}, line {self._where[i]}"

    def column(self, name: str, kind: str = "any", *, aliases: Sequence[str] = (), default: Any = ...) -> list[Any]:
        """The values of one field, checked (``kind``: id, text, number, score, truth, list, any; see ``CHECKS``).

        ``aliases``: other names of the field. Without ``default`` every row must have it.
        """
        check, names, values = CHECKS[kind], (name, *aliases), []
        quick = self._valid_column(name, kind)
        if quick is not None:
            return quick
        for i, row in enumerate(self.rows):
            key = next((n for n in names if n in row), None)
            if key is None and default is ...:
                expected = " or ".join(f"'{n}'" for n in names)
                raise DiptychError(f"{self.where(i)}: no field {expected}{nearest(name, map(str, row))}")
            try:
                values.append(default if key is None else check(row[key]))
            except ValueError as error:
                raise DiptychError(f"{self.where(i)}: '{key}' must be {error}, got {short(row[key or name])}") from None
        return values

    def _valid_column(self, name: str, kind: str) -> list[Any] | None:
        """The column without a check of each value, if the types alone show that all are valid; else None. Makes tables of a
        million rows fast.
        """
        try:
            values = [row[name] for row in self.rows]
        except KeyError:
            return None
        types = set(map(type, values))
        if kind == "id" and types == {str}:
            return None if "" in values else values
        if kind == "id" and types == {int}:
            return list(map(str, values))
        if kind in ("number", "score") and types <= {float, int}:
            numbers = np.array(values, dtype=np.float64)
            return numbers.tolist() if np.isfinite(numbers).all() else None
        return values if kind in ("text", "answer") and types == {str} else None

    def has(self, name: str) -> bool:
        """Whether the first row has the field."""
        return bool(self.rows) and name in self.rows[0]

    def unique(self, name: str = "id", *, aliases: Sequence[str] = ()) -> list[str]:
        """A column of ids. Raises DiptychError if one occurs twice."""
        ids = self.column(name, "id", aliases=aliases)
        if len(set(ids)) == len(ids):
            return ids
        first: dict[str, int] = {}
        for i, value in enumerate(ids):
            if first.setdefault(value, i) != i:
                raise DiptychError(f"{self.where(i)}: {name} '{value}' again; it is also at {self.where(first[value])}")
        return ids

    def slices(self) -> dict[str, list[Any]]:
        """{column: values} of the columns in ``SLICES`` that the file has."""
        return {name: self.column(name) for name in SLICES if self.has(name)}

    def records(self) -> list[Row]:
        """The rows, each with its place."""
        return [Row(fields, self.where(i)) for i, fields in enumerate(self.rows)]


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError("an id (a text or a whole number)")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _answer(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("a text, or null for no answer")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number (null for a missing score)")
    return number


def _score(value: Any) -> float:
    return math.nan if value is None or value == "" else _number(value)  # "": an empty cell of a table


def _truth(value: Any) -> float:
    credit = _credit(value)
    if not 0 <= credit <= 1:
        raise ValueError("true, false or a credit in [0, 1]")
    return credit


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def _credit(value: Any) -> float:
    named = {"true": 1.0, "false": 0.0}.get(str(value).lower())
    return _number(value) if named is None else named


CHECKS: dict[str, Callable[[Any], Any]] = {
    "any": lambda value: value,
    "id": _id,
    "text": _text,
    "answer": _answer,  # a model's text; null where it gave none, which counts as an answer that cannot be parsed
    "number": _number,
    "score": _score,  # a number, or null: NaN, which counts as the lowest score; the table says how many there are
    "truth": _truth,
    "credit": _credit,  # a credit without bounds, such as CIDEr
    "list": _list,
    "texts": lambda value: [_text(v) for v in _list(value)],
    "scores": lambda value: [_score(v) for v in _list(value)],
}


def short(value: Any) -> str:
    """A value cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class Row(dict[str, Any]):
    """One row of a table. ``where``: its file and line, for error messages."""

    def __init__(self, fields: Mapping[str, Any], where: str):
        super().__init__(fields)
        self.where = where

    def need(self, *names: str, kind: type | tuple[type, ...] = object) -> Any:
        """The first of the fields that is not null. Raises DiptychError if there is none, or if it is not of ``kind``."""
        for name in names:
            if self.get(name) is not None:
                value = self[name]
                if not isinstance(value, kind):
                    kinds = kind if isinstance(kind, tuple) else (kind,)
                    expected = " or ".join(k.__name__ for k in kinds)
                    raise DiptychError(f"{self.where}: field '{name}': expected {expected}, found {type(value).__name__}")
                return value
        raise DiptychError(
            f"{self.where}: no field '{' or '.join(names)}'{nearest(names[0], self)}; it has {', '.join(self) or 'none'}"
        )

    def text(self, *names: str) -> str:
        """The first of the fields that is not null, a text or a number, as text without space at its ends."""
        return str(self.need(*names, kind=(str, int, float))).strip()

    def slices(self) -> dict[str, str]:
        """{column: value} of the columns in ``SLICES`` that are not empty; a list is joined by spaces."""
        if self.keys().isdisjoint(SLICES):
            return {}
        values = {name: self[name] for name in SLICES if name in self and isinstance(self[name], str | int | list)}
        texts = {name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in values.items()}
        return {name: text for name, text in texts.items() if text}


def unique(ids: Iterable[str], path: object, what: str = "item") -> None:
    """Raises DiptychError if an id occurs twice: records are kept by id, so the second would be lost."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DiptychError(f"{path}: {what} '{name}' occurs twice")
        seen.add(name)


def match(
    have: Mapping[str, Any] | Sequence[str], want: Mapping[str, Any] | Sequence[str], of: Table | Path, against: Table | Path
) -> None:
    """Raises DiptychError unless both files have the same ids. ``have``: the ids of the file ``of``; ``want``: those of
    ``against``."""
    of_path, against_path = (t.path if isinstance(t, Table) else t for t in (of, against))
    having, wanted = set(have), set(want)
    for missing, where, other in ((wanted - having, of_path, against_path), (having - wanted, against_path, of_path)):
        if missing:
            place = ""
            if isinstance(of, Table) and where == against_path and len(of) == len(have):
                place = f"{of.where(next(i for i, name in enumerate(have) if name in missing))}: "
            some = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
            raise DiptychError(f"{place}{len(missing)} of the {len(wanted | having)} ids are in {other} but not in {where}: {some}")
