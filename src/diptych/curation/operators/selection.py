"""Exact shares of a pool by a score, and scores made of others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from diptych.curation.operators.base import Columns, Reduce


def top(scores: np.ndarray, hashes: np.ndarray, fraction: float | str) -> np.ndarray:
    """Which rows are the best ⌈f·n⌉: bool [N]. Ties by hash; a row without a score (NaN) comes last, but f = 1 keeps it too.

    ``fraction`` as it is written: 0.7 of 10 are 7, although 0.7 · 10 is a little more than 7 in binary.
    """
    chosen = np.zeros(len(scores), bool)
    chosen[np.lexsort((hashes, -scores))[: count(len(scores), fraction)]] = True
    return chosen


def count(n: int, fraction: float | str) -> int:
    return math.ceil(Fraction(str(fraction)) * n)


@dataclass(frozen=True, kw_only=True)
class TopFraction(Reduce):
    """``in_top``: whether a row is among the best ⌈f·n⌉ by the column ``by`` (``lowest``: the smallest), ties broken by hash."""

    name = "top_fraction"
    by: str
    fraction: float
    lowest: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.by,)

    @property
    def outputs(self) -> Mapping[str, pa.DataType]:
        return {"in_top": pa.bool_()}

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        return pa.table({"score": self._scores(batch), "hash": batch["hash"]})

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The last row that is in."""
        table = pa.concat_tables(list(summaries))
        scores, hashes = table["score"].to_numpy(), table["hash"].to_numpy()
        order = np.lexsort((hashes, -scores))[: count(len(scores), self.fraction)]
        return pa.table({"score": scores[order[-1:]], "hash": hashes[order[-1:]]})

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        if not state.num_rows:
            return {"in_top": np.zeros(batch.num_rows, bool)}
        score, hash_ = state["score"][0].as_py(), np.uint64(state["hash"][0].as_py())
        scores, hashes = self._scores(batch), batch["hash"].to_numpy()
        if math.isnan(score):
            return {"in_top": ~np.isnan(scores) | (hashes <= hash_)}
        return {"in_top": (scores > score) | ((scores == score) & (hashes <= hash_))}

    def _scores(self, batch: pa.RecordBatch) -> np.ndarray:
        scores = batch[self.by].to_numpy(zero_copy_only=False).astype(np.float64)
        return -scores if self.lowest else scores


@dataclass(frozen=True, kw_only=True)
class Fuse(Reduce):
    """``fused``: Σ weight · score, each score first stretched to 0 … 1 over the pool (min-max), as Sieve fuses with CLIPScore."""

    name = "fuse"
    outputs = {"fused": pa.float64()}  # noqa: RUF012 - declared, never changed
    weights: Mapping[str, float]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        low, high = [], []
        for name in self.weights:
            scores = batch[name].to_numpy(zero_copy_only=False).astype(np.float64)
            scores = scores[np.isfinite(scores)]
            low.append(scores.min(initial=np.inf))
            high.append(scores.max(initial=-np.inf))
        return pa.table({"column": list(self.weights), "low": low, "high": high})

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        table = pa.concat_tables(list(summaries)).group_by("column").aggregate([("low", "min"), ("high", "max")])
        return table.rename_columns({"low_min": "low", "high_max": "high"})

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        total = np.zeros(batch.num_rows)
        for row in state.to_pylist():
            scores = batch[row["column"]].to_numpy(zero_copy_only=False).astype(np.float64)
            span = row["high"] - row["low"]
            total += self.weights[row["column"]] * ((scores - row["low"]) / span if span > 0 else np.zeros_like(scores))
        return {"fused": total}
