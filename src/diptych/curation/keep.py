"""The rules that decide which rows stay, by the columns of operators. Every removal has a reason.

| rule | keeps a row if |
|---|---|
| ``{column: c, above: 2}``, ``below``, ``min``, ``max`` | its value is > 2 (< …, ≥ …, ≤ …); several together make a range |
| ``{column: c, in: [en]}``, ``not_in`` | its value (for a list: any of its values) is one of these (none of these) |
| ``{column: c, top: 0.3}``, ``bottom`` | it is among the ⌈0.3·n⌉ highest (lowest) of n; ties go to the lower hash; 1 keeps all |
| ``{column: c, unique: true}`` | it points to no other row, as ``duplicate_of`` does |
| ``{random: 0.1}``, ``{column: c, random: true}`` | chance decides, with this probability or the row's own, by the row's hash |

``reason`` names the removal. ``missing: keep`` keeps rows without a value. ``top`` and ``bottom`` count the rows still kept;
``of: all`` counts every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, model_validator

from diptych.config.typed import Strict
from diptych.curation.operators.base import uniform

Share = Annotated[float, Field(gt=0, le=1)]
BOUNDS = {"min": "≥", "above": ">", "max": "≤", "below": "<"}


class Keep(Strict):
    """One rule, with exactly one way to decide."""

    model_config = ConfigDict(populate_by_name=True, frozen=True)
    column: str | None = None
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    in_: tuple[Any, ...] | None = Field(None, alias="in")
    not_in: tuple[Any, ...] | None = None
    top: Share | None = None
    bottom: Share | None = None
    unique: Literal[True] | None = None
    random: Share | Literal[True] | None = None
    reason: str = ""
    missing: Literal["drop", "keep"] = "drop"
    of: Literal["kept", "all"] = "kept"

    @model_validator(mode="after")
    def _one_way(self) -> Keep:
        ways = [
            k for k in ("in", "not_in", "top", "bottom", "unique", "random") if getattr(self, "in_" if k == "in" else k) is not None
        ]
        if any(getattr(self, bound) is not None for bound in BOUNDS):
            ways.append("a range")
        if len(ways) != 1:
            raise ValueError(
                "expected one way to decide (min/max/above/below, in, not_in, top, bottom, unique or random), "
                f"got {', '.join(ways) or 'none'}"
            )
        if self.column is None and (self.random is None or self.random is True):
            raise ValueError("name the column that decides: column: NAME")
        if self.column is not None and self.random not in (None, True):
            raise ValueError("random takes a probability, or true and the column that holds each row's probability; not both")
        return self

    @property
    def way(self) -> Literal["range", "in", "not_in", "top", "bottom", "unique", "random"]:
        """The way in which the rule decides."""
        ways: tuple[Any, ...] = ("top", "bottom", "unique", "random", "not_in")
        way = next((w for w in ways if getattr(self, w) is not None), None)
        return way or ("in" if self.in_ is not None else "range")

    @property
    def counts_all(self) -> bool:
        """Whether the rule needs two passes, since the decision on a row depends on the others."""
        return self.way in ("top", "bottom")

    def text(self) -> str:
        """The rule as a condition: ``words > 2``."""
        name = self.column or ""
        if self.way == "range":
            limits = [
                f"{name} {sign} {getattr(self, bound):g}" for bound, sign in BOUNDS.items() if getattr(self, bound) is not None
            ]
            return " and ".join(limits)
        if self.way in ("in", "not_in"):
            values = self.in_ if self.way == "in" else self.not_in
            named = ", ".join(map(str, values or ()))
            return f"{name} {'in' if self.way == 'in' else 'not in'} {{{named if len(named) < 60 else named[:57] + '…'}}}"
        if self.way in ("top", "bottom"):
            share = self.top if self.way == "top" else self.bottom
            return f"{name} among the {'highest' if self.way == 'top' else 'lowest'} {share:.4g}"
        if self.way == "unique":
            return f"no {name}"
        return f"chance {name or self.random}"

    def label(self) -> str:
        """The reason of its removals."""
        own = f"has {self.column}" if self.way == "unique" else f"not {self.text()}"  # unique says "no duplicate_of"
        return self.reason or own

    # ---- deciding

    def verdict(
        self, values: pa.Array | None, hashes: np.ndarray, rows: np.ndarray, salt: str, state: pa.Table | None
    ) -> np.ndarray:
        """Boolean, true where a row may stay; false for missing values.

        values: its column. state: of the first pass, if ``counts_all``.
        """
        if values is None:
            assert isinstance(self.random, float)
            return uniform(hashes, salt) < self.random
        if self.way == "unique":
            return np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False))
        if self.way in ("in", "not_in"):
            return self._member(values)
        numbers = _numbers(values)
        present: np.ndarray = ~np.isnan(numbers)
        if self.way == "random":
            return present & (uniform(hashes, salt) < numbers)
        if self.way == "range":
            inside = present.copy()
            for bound, compare in (("min", np.greater_equal), ("above", np.greater), ("max", np.less_equal), ("below", np.less)):
                if (limit := getattr(self, bound)) is not None:
                    inside &= compare(numbers, limit)
            return inside
        assert state is not None
        if state.num_rows == 0:
            return np.zeros(len(numbers), dtype=bool)
        worst = [state[name][0].as_py() for name in ("score", "hash", "row")]
        score = -numbers if self.way == "top" else numbers
        before = (hashes < worst[1]) | ((hashes == worst[1]) & (rows <= worst[2]))
        stays: np.ndarray = present & ((score < worst[0]) | ((score == worst[0]) & before))
        return stays

    def absent(self, values: pa.Array) -> np.ndarray:
        """Boolean, true where the column has no value. A null pointer is a value: the row repeats no other."""
        if self.way == "unique":
            return np.zeros(len(values), dtype=bool)
        nulls = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
        return nulls if self.way in ("in", "not_in") else nulls | np.isnan(_numbers(values))

    def _member(self, values: pa.Array) -> np.ndarray:
        wanted = self.in_ if self.way == "in" else self.not_in
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            inner = pc.is_in(values.flatten(), value_set=pa.array(wanted, values.type.value_type))
            matches = np.zeros(len(values), dtype=bool)
            parents = pc.list_parent_indices(values).to_numpy()
            matches[parents[inner.to_numpy(zero_copy_only=False)]] = True
        else:
            matches = np.array(pc.is_in(values, value_set=pa.array(wanted, values.type)).to_numpy(zero_copy_only=False))
        null = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
        member: np.ndarray = (matches if self.way == "in" else ~matches) & ~null
        return member

    # ---- two passes, for top and bottom: 24 bytes for each row

    def summarise(self, values: pa.Array, hashes: np.ndarray, rows: np.ndarray) -> pa.Table:
        """Score, hash and row of the rows with a value."""
        numbers = _numbers(values)
        present = ~np.isnan(numbers)
        score = -numbers if self.way == "top" else numbers
        return pa.table({"score": score[present], "hash": hashes[present], "row": rows[present]})

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The last row that stays: of n rows the ⌈f·n⌉-th by score, hash, row."""
        parts = [{name: s[name].to_numpy() for name in ("score", "hash", "row")} for s in summaries if s.num_rows]
        if not parts:
            return pa.table(
                {"score": pa.array([], pa.float64()), "hash": pa.array([], pa.uint64()), "row": pa.array([], pa.int64())}
            )
        score, hashes, rows = (np.concatenate([p[name] for p in parts]) for name in ("score", "hash", "row"))
        share = self.top if self.way == "top" else self.bottom
        k = -(-Fraction(str(share)) * len(score) // 1)  # ⌈f·n⌉ of the decimal as written: 0.07 of 100 is 7, not 8
        border = np.partition(score, int(k) - 1)[int(k) - 1]
        ties = np.flatnonzero(score == border)
        ties = ties[np.lexsort((rows[ties], hashes[ties]))]
        last = ties[int(k) - 1 - int((score < border).sum())]
        return pa.table(
            {"score": [float(score[last])], "hash": pa.array([int(hashes[last])], pa.uint64()), "row": [int(rows[last])]}
        )

    def threshold(self, state: pa.Table | None) -> float | None:
        """The value of the last row that stays, for ``top`` and ``bottom``."""
        if state is None or state.num_rows == 0:
            return None
        score: float = state["score"][0].as_py()
        return -score if self.way == "top" else score


def _numbers(values: pa.Array) -> np.ndarray:
    """The values as float64, NaN for null; booleans are 0 and 1."""
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    return numbers
