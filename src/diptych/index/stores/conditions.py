"""Conditions in the language of an engine: SQL of LanceDB, expressions of Milvus. What cannot be said there with the same meaning
is left to the catalog, which gives ids.

A picture without a value in a column fulfils no condition on it, as in SQL. Texts are compared by code points.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from diptych.index.filters import Condition, Where

Type = Literal["text", "number", "truth"]
SAFE = re.compile(r"[a-z][a-z0-9_]*")
OWN = "u_"  # before the name of a column that is written in hexadecimal
RESERVED = frozenset({"id", "vector"})


@dataclass(frozen=True)
class Language:
    """How an engine writes a condition. column: a name; equal, unequal: operators; text: a constant; truth: of False and True."""

    name: str
    equal: str
    unequal: str
    truth: tuple[str, str]

    def column(self, name: str) -> str:
        """A column."""
        return f"`{stored(name)}`" if self.name == "sql" else stored(name)

    def text(self, value: str) -> str:
        """A text as a constant, with everything that could end it early escaped."""
        if self.name == "sql":
            return "'" + value.replace("'", "''") + "'"
        return json.dumps(value, ensure_ascii=False)

    def ids(self, ids: np.ndarray, inside: bool = True) -> str:
        """That the id is one of those, or none of them."""
        listed = ", ".join(map(str, ids.tolist()))
        if self.name == "sql":
            return f"id {'' if inside else 'NOT '}IN ({listed})"
        return f"id {'' if inside else 'not '}in [{listed}]"


SQL = Language("sql", "=", "!=", ("false", "true"))
MILVUS = Language("milvus", "==", "!=", ("false", "true"))


def stored(name: str) -> str:
    """The name under which an engine keeps a column: as it is where every engine takes it, else its bytes in hexadecimal."""
    if SAFE.fullmatch(name) and not name.startswith(OWN) and name not in RESERVED and len(name) < 60:
        return name
    return OWN + name.encode("utf-8").hex()


def type_of(value: Any) -> Type | None:
    """The type of a value as engines keep it; None for one that they do not keep (a list, or a number that is not exact in
    float64)."""
    if isinstance(value, bool | np.bool_):
        return "truth"
    if isinstance(value, int | float | np.integer | np.floating):
        exact = math.isfinite(value) and (isinstance(value, float | np.floating) or abs(int(value)) <= 2**53)
        return "number" if exact else None
    if isinstance(value, str):
        return None if "\0" in value or not _encodable(value) else "text"
    return None


def translated(where: Where, types: Mapping[str, Type], language: Language) -> str | None:
    """The conditions for an engine that keeps columns of these types; None if one of them cannot be said there."""
    said = [_condition(condition, types, language) for condition in where.conditions]
    if not said or None in said:
        return None
    return " and ".join(f"({part})" for part in said)


def _condition(condition: Condition, types: Mapping[str, Type], language: Language) -> str | None:
    kind = types.get(condition.column)
    values = condition.value if condition.operator == "in" else [condition.value]
    if kind is None or isinstance(values, str) or not isinstance(values, list | tuple):
        return None
    if not values or any(type_of(value) != kind for value in values):
        return None
    column, constants = language.column(condition.column), [_constant(value, language) for value in values]
    if condition.operator == "in":
        return " or ".join(f"{column} {language.equal} {one}" for one in constants)
    if condition.operator == "under":
        return _under(column, str(values[0]), language) if kind == "text" else None
    if condition.operator == "words":
        return None
    if condition.operator in ("=", "!="):
        return f"{column} {language.equal if condition.operator == '=' else language.unequal} {constants[0]}"
    if kind == "truth":
        return None
    known = f" and {column} {language.unequal} {language.text('')}" if condition.column == "date" else ""  # "": none is known
    return f"{column} {condition.operator} {constants[0]}{known}"


def _under(column: str, folder: str, language: Language) -> str | None:
    """A folder and all below it: what begins with ``folder/`` lies between that and ``folder0``, since 0 follows /."""
    if not folder:
        return None
    low, high = language.text(folder + "/"), language.text(folder + "0")
    return f"{column} {language.equal} {language.text(folder)} or ({column} >= {low} and {column} < {high})"


def _constant(value: Any, language: Language) -> str:
    if isinstance(value, str):
        return language.text(value)
    if isinstance(value, bool | np.bool_):
        return language.truth[bool(value)]
    return repr(float(value))


def _encodable(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
