"""Conditions on the facts of a picture, such as its folder, its date or a column of the data."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.words import words as words_of

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "under", "words"]
Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]

FACTS = (
    "address",
    "folder",
    "name",
    "date",
    "width",
    "height",
    "bytes",
    "caption",
)  # columns of a condition that every picture has
MOST_WORDS, MOST_VALUES = 100, 1000  # in one filter
OWN = "column_"  # before the name of a column of the data
FILTERS = (
    "address", "folder", "since", "until", "words", "columns",
    "min_width", "max_width", "min_height", "max_height", "min_bytes", "max_bytes",
)  # fmt: skip
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?)?)?")


@dataclass(frozen=True)
class Condition:
    """One condition. ``under``: a folder and all below it; ``words``: every word occurs in the text, in any order.

    column: one of ``FACTS``, or ``column_NAME`` for a column of the data.
    """

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Where:
    """Conditions that all have to hold.

    A store that holds the columns translates ``conditions``; one that holds vectors alone asks ``ids``, which returns the ids
    that fulfil them, int64 and ascending.
    """

    conditions: tuple[Condition, ...] = ()
    ids: Callable[[], np.ndarray] = field(default=lambda: np.zeros(0, dtype=np.int64), compare=False)


def conditions_of(filters: Mapping[str, Any], columns: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions that filters mean (``Index.where``). columns: those of the data. DiptychError for one that does not exist or
    does not fit.
    """
    result: list[Condition] = []
    for name, value in filters.items():
        if name not in FILTERS:
            hint = (
                f"; a column of the data is given as {{'columns': {{'{name}': …}}}}" if name in columns else nearest(name, FILTERS)
            )
            raise DiptychError(f"filter '{name}': there is no such filter{hint}")
        if value is None or value == "" or value == {}:
            continue
        if name == "columns":
            result += _of_columns(value, columns)
        elif name in ("since", "until"):
            result.append(Condition("date", ">=" if name == "since" else "<=", _moment(name, value)))
        elif name == "words":
            parts = list(value) if isinstance(value, list | tuple) else [value]
            found = words_of(" ".join(_text(name, part) for part in parts))
            if len(found) > MOST_WORDS:
                raise DiptychError(f"filter 'words': {len(found):,} words; at most {MOST_WORDS}")
            if found:
                result.append(Condition("caption", "words", " ".join(found)))
        elif name == "folder":
            folder = _text(name, value).strip("/").removeprefix("./")
            if folder not in ("", "."):
                result.append(Condition("folder", "under", folder))
        elif name == "address":
            result.append(Condition("address", "=", _text(name, value)))
        else:
            limit, _, fact = name.partition("_")
            result.append(Condition(fact, ">=" if limit == "min" else "<=", _number(name, value)))
    return tuple(result)


def _of_columns(given: Any, columns: Sequence[str]) -> list[Condition]:
    if not isinstance(given, Mapping):
        raise DiptychError(f"filter 'columns': expected {{name: value}}, got {type(given).__name__}")
    result: list[Condition] = []
    for name, value in given.items():
        if name not in columns:
            raise DiptychError(f"filter 'columns': the data has no column '{name}'{nearest(str(name), columns)}")
        where = f"filter 'columns.{name}'"
        if isinstance(value, Mapping):
            if not value or set(value) - {"min", "max"}:
                raise DiptychError(f"{where}: expected a value, a list of values, or {{'min': …, 'max': …}}")
            result += [
                Condition(OWN + name, ">=" if limit == "min" else "<=", _scalar(where, v))
                for limit, v in value.items()
                if v is not None
            ]
        elif isinstance(value, list | tuple):
            if len(value) > MOST_VALUES:
                raise DiptychError(f"{where}: {len(value):,} values; at most {MOST_VALUES:,}")
            result.append(Condition(OWN + name, "in", tuple(_scalar(where, v) for v in value)))  # type: ignore[arg-type]
        elif value is not None:
            result.append(Condition(OWN + name, "=", _scalar(where, value)))
    return result


def _scalar(where: str, value: Any) -> str | int | float | bool:
    if not isinstance(value, str | int | float):
        raise DiptychError(f"{where}: expected a text or a number, got {type(value).__name__}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            raise DiptychError(f"{where}: the number is too large") from None
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DiptychError(f"filter '{name}': expected a text, got {type(value).__name__}")
    return value


def _number(name: str, value: Any) -> int | float:
    try:
        number = float(value)
        if number != number or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DiptychError(f"filter '{name}': expected a number, got {value!r}") from None
    return int(number) if number.is_integer() and abs(number) < 2**63 else number


def _moment(name: str, value: Any) -> str:
    """``2024`` → 2024-01-01T00:00:00 as ``since``, 2024-12-31T23:59:59 as ``until``."""
    match = _DATE.fullmatch(str(value).strip())
    parts = [int(p) if p else None for p in match.groups()] if match else []
    try:
        if not parts or parts[0] is None:
            raise ValueError
        first = name == "since"
        year = parts[0]
        month = parts[1] or (1 if first else 12)
        day = parts[2] or (1 if first else calendar.monthrange(year, month)[1])
        time = [p if p is not None else (0 if first else most) for p, most in zip(parts[3:], (23, 59, 59), strict=True)]
        if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1] and time[0] < 24 and max(time[1:]) < 60):
            raise ValueError
    except (ValueError, calendar.IllegalMonthError):
        raise DiptychError(f"filter '{name}': expected a date such as 2024-05-31, 2024-05 or 2024, got {value!r}") from None
    return f"{year:04d}-{month:02d}-{day:02d}T{time[0]:02d}:{time[1]:02d}:{time[2]:02d}"


# --- as SQL ---


def sql_of(conditions: Sequence[Condition], addresses: Sequence[str]) -> tuple[str, list[Any]]:
    """The expression that holds for the pictures which fulfil all conditions, and its values. addresses: of the sources."""
    parts, values = ["state = 'ok'"], []
    for condition in conditions:
        text, own = _expression(condition, addresses)
        parts.append(text)
        values += own
    return " AND ".join(parts), values


def _expression(condition: Condition, addresses: Sequence[str]) -> tuple[str, list[Any]]:
    column, operator, value = condition.column, condition.operator, condition.value
    if operator == "words":
        words = [word.casefold() for word in words_of(str(value))]
        return "(" + " AND ".join(["instr(words, ?) > 0"] * len(words)) + ")", [f" {word} " for word in words]
    if operator == "under":
        return "(folder = ? OR (folder >= ? AND folder < ?))", [value, f"{value}/", f"{value}0"]  # 0 is the character after /
    if column == "address":
        numbers = [i for i, address in enumerate(addresses) if address == value]
        return f"source IN ({','.join('?' * len(numbers))})", list(numbers)
    own = column.startswith(OWN)
    if not own and column not in FACTS:
        raise DiptychError(f"condition on '{column}': there is no such fact{nearest(column, FACTS)}")
    fact = "(SELECT value FROM json_each(columns) WHERE key = ?)" if own else column
    before = [column.removeprefix(OWN)] if own else []
    if operator == "in":
        assert isinstance(value, list | tuple)
        given = [form for v in value for form in _forms(v)]
        return f"{fact} IN ({','.join('?' * len(given))})", [*before, *given]
    assert isinstance(value, str | int | float)
    if operator in ("=", "!="):
        given = _forms(value)
        return f"{fact} {'IN' if operator == '=' else 'NOT IN'} ({','.join('?' * len(given))})", [*before, *given]
    kinds = "('text')" if isinstance(value, str) else "('integer', 'real')"  # any text is above any number for SQLite
    known = "" if column != "date" else " AND date != ''"
    return f"(typeof({fact}) IN {kinds} AND {fact} {operator} ?{known})", [*before, *before, value]


def _forms(value: Any) -> list[Any]:
    """A value as a number and as a text: data may hold either."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), str(value)]
    if isinstance(value, int | float):
        return [value, str(value)]
    if value.lower() in ("true", "false"):
        return [value, int(value.lower() == "true")]
    try:
        number = float(value)
    except ValueError:
        return [value]
    return [value, number] if number - number == 0 else [value]
