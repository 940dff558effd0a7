"""The rules, against plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diptych.curation.keep import Keep
from diptych.curation.operators.base import sample_hash


def verdict(rule: Keep, values: list | pa.Array, cut: int = 3) -> list[bool]:
    """Over shards of ``cut`` rows, as a run does it."""
    column = values if isinstance(values, pa.Array) else pa.array(values)
    rows = np.arange(len(column), dtype=np.int64)
    hashes = np.array([sample_hash(f"row {i}") for i in rows], dtype=np.uint64)
    parts = [slice(i, i + cut) for i in range(0, len(column), cut)]
    state = rule.combine(rule.summarise(column[p], hashes[p], rows[p]) for p in parts) if rule.counts_all else None
    return [bool(v) for p in parts for v in rule.verdict(column[p], hashes[p], rows[p], "salt", state)]


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ({"min": 2}, lambda v: v >= 2),
        ({"above": 2}, lambda v: v > 2),
        ({"max": 2}, lambda v: v <= 2),
        ({"below": 2}, lambda v: v < 2),
        ({"above": 1, "max": 3}, lambda v: 1 < v <= 3),
        ({"in": [1, 4]}, lambda v: v in (1, 4)),
        ({"not_in": [1, 4]}, lambda v: v not in (1, 4)),
    ],
)
def test_rules_on_numbers(rule, stays):
    values = [0, 1, 2, 3, 4, 5]
    assert verdict(Keep(column="c", **rule), values) == [stays(v) for v in values]


def test_rules_on_texts_booleans_and_lists():
    assert verdict(Keep(column="c", **{"in": ["en", "de"]}), ["en", "fr", None, "de"]) == [True, False, False, True]
    assert verdict(Keep(column="c", **{"in": [False]}), [True, False, None]) == [False, True, False]
    lists = pa.array([["a", "b"], [], None, ["c"], ["b"]], pa.list_(pa.string()))
    assert verdict(Keep(column="c", **{"in": ["b", "x"]}), lists, cut=2) == [True, False, False, False, True]
    assert verdict(Keep(column="c", not_in=["b"]), lists, cut=2) == [False, True, False, True, False]
    assert Keep(column="duplicate_of", unique=True).label() == "has duplicate_of"
    assert verdict(Keep(column="c", unique=True), pa.array([None, 3, None], pa.int64())) == [True, False, True]


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, -1.0, 7.5]) | st.none(), min_size=1, max_size=40),
    st.integers(1, 100),
    st.sampled_from(["top", "bottom"]),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_top_and_bottom_are_exact_and_ties_go_to_the_lower_hash(values, percent, way, cut):
    share = percent / 100
    found = verdict(Keep(column="c", **{way: share}), pa.array(values, pa.float64()), cut)
    there = [i for i, v in enumerate(values) if v is not None]
    k = math.ceil(Fraction(percent, 100) * len(there))
    sign = -1 if way == "top" else 1
    best = sorted(there, key=lambda i: (sign * values[i], sample_hash(f"row {i}")))[:k]
    assert found == [i in best for i in range(len(values))]
    assert sum(found) == k


def test_chance_keeps_its_share_and_depends_on_the_row_alone():
    n = 20_000
    rule = Keep(column="p", random=True)
    probabilities = np.tile([0.0, 0.1, 0.5, 1.0], n // 4)
    found = np.array(verdict(rule, pa.array(probabilities), cut=997))
    for p in (0.0, 0.1, 0.5, 1.0):
        share = found[probabilities == p].mean()
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / (n / 4))
    assert (found == verdict(rule, pa.array(probabilities), cut=n)).all()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"column": "c"}, "got none"),
        ({"column": "c", "top": 0.3, "min": 2}, "got top, a range"),
        ({"top": 0.3}, "name the column"),
        ({"column": "c", "top": 1.5}, "less than or equal to 1"),
        ({"column": "c", "random": 0.5}, "not both"),
        ({"column": "c", "mim": 2}, "Extra inputs"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule, said):
    with pytest.raises(ValidationError, match=said):
        Keep.model_validate(rule)
