"""Scores that combine other scores. (The rule ``top`` of ``keep`` takes an exact share of the pool by a score.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diptych.curation.operators.base import Columns, Reduce


@dataclass(frozen=True, kw_only=True)
class Fuse(Reduce):
    """``fused``: Σ weight · score, each score first scaled to 0 … 1 over the pool (min-max), as Sieve does with CLIPScore."""

    name = "fuse"
    outputs = {"fused": pa.float64()}  # noqa: RUF012 - declared, never changed
    weights: Mapping[str, float]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return tuple(self.weights)

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        """First pass: a summary of one shard, as small as possible."""
        low, high = [], []
        for name in self.weights:
            scores = batch[name].to_numpy(zero_copy_only=False).astype(np.float64)
            scores = scores[np.isfinite(scores)]
            low.append(scores.min(initial=np.inf))
            high.append(scores.max(initial=-np.inf))
        return pa.table({"column": list(self.weights), "low": low, "high": high})

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The state for the second pass, from all shards' summaries in the order of the pool."""
        table = pa.concat_tables(list(summaries)).group_by("column").aggregate([("low", "min"), ("high", "max")])
        return table.rename_columns({"low_min": "low", "high_max": "high"})

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        """Second pass: the outputs for the rows of one shard."""
        total = np.zeros(batch.num_rows)
        for row in state.to_pylist():
            scores = batch[row["column"]].to_numpy(zero_copy_only=False).astype(np.float64)
            span = row["high"] - row["low"]
            total += self.weights[row["column"]] * ((scores - row["low"]) / span if span > 0 else np.zeros_like(scores))
        return {"fused": total}
