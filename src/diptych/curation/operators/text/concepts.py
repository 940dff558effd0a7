"""MetaCLIP (Xu et al. 2024, arXiv:2309.16671): match texts to a list of concepts, then sample frequent concepts less often."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.curation.operators.base import Columns, Operator, Reduce, sample_hash, uniform

_PADDED = str.maketrans({**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})


def padded(text: str) -> str:
    """The text with spaces at its ends and around punctuation, so that whole words are found by their spaces."""
    return f" {text} ".translate(_PADDED)


class Matcher:
    """Finds which of many entries occur in a text, in one pass of an Aho-Corasick automaton (Aho & Corasick 1975)."""

    def __init__(self, entries: Sequence[str]):
        ahocorasick_rs = need("ahocorasick_rs", extra="curate", what="the operator concepts")
        kind, form = ahocorasick_rs.MatchKind.Standard, ahocorasick_rs.Implementation.ContiguousNFA
        spaced = [f" {entry} " for entry in entries]
        self._automaton: Any = ahocorasick_rs.AhoCorasick(spaced, matchkind=kind, implementation=form, store_patterns=False)

    def __call__(self, text: str) -> list[int]:
        """Positions of the matching entries in the list, ascending, each once; case-sensitive."""
        return sorted({match[0] for match in self._automaton.find_matches_as_indexes(padded(text), overlapping=True)})


@lru_cache(maxsize=4)
def entries_of(path: str) -> tuple[str, ...]:
    """The entries in a file, without repetitions: one on each line, or a JSON list. Raises DiptychError if there is none."""
    import json

    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise DiptychError(
            f"{path}: cannot read the list of concepts ({error}); expected one entry per line, or a JSON list. "
            "Name yours: --set steps.concepts.file=FILE"
        ) from error
    entries = tuple(dict.fromkeys(line for line in lines if line.strip()))
    if not entries:
        raise DiptychError(f"{path}: no concepts; expected one entry per line, or a JSON list")
    return entries


@lru_cache(maxsize=4)
def _matcher(entries: tuple[str, ...]) -> Matcher:
    return Matcher(entries)


@dataclass(frozen=True, kw_only=True)
class Concepts(Operator):
    """``concepts``: the entries that occur in the caption as whole words, in the order of the list.

    entries: a list of concepts, or ``file``: one entry per line (or a JSON list). Plain substrings of the padded text, case
    included.
    """

    name = "concepts"
    inputs = ("text",)
    outputs = {"concepts": pa.list_(pa.string())}  # noqa: RUF012 - declared, never changed
    entries: tuple[str, ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        if bool(self.entries) == bool(self.file):
            raise DiptychError("concepts: give either 'entries' (a list) or 'file' (one entry per line)")

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return hashlib.sha256("\n".join(self._entries()).encode()).hexdigest()[:16]

    def _entries(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.entries)) if self.entries else entries_of(self.file)

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        entries = self._entries()
        match = _matcher(entries)
        return {"concepts": [[entries[i] for i in match(text)] for text in batch["text"].to_pylist()]}


def keep_probability(counts: Sequence[int], t: float) -> float:
    """The probability 1 − Π(1 − min(1, t / count)) over the matched entries that a row stays; 0 for none."""
    missed = 1.0
    for c in counts:
        missed *= 1 - min(1.0, t / c)
    return 1 - missed


class _Counted(Reduce):
    inputs = ("concepts",)

    def summarise(self, batch: pa.RecordBatch) -> pa.Table:
        """First pass: a summary of one shard, as small as possible."""
        return _counts(
            pa.table({"concept": batch["concepts"].flatten(), "count": np.ones(len(batch["concepts"].flatten()), np.int64)})
        )

    def combine(self, summaries: Iterator[pa.Table]) -> pa.Table:
        """The state for the second pass, from all shards' summaries in the order of the pool."""
        total: pa.Table | None = None
        for table in summaries:  # one shard at a time: memory grows with the number of concepts, not of rows
            total = table if total is None else _counts(pa.concat_tables([total, table]))
        assert total is not None
        return total.sort_by([("count", "descending"), ("concept", "ascending")])


def _counts(table: pa.Table) -> pa.Table:
    return table.group_by("concept").aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})


@dataclass(frozen=True, kw_only=True)
class Balance(_Counted):
    """MetaCLIP's balancing: each concept of a row keeps it with probability p = min(1, t / count).

    keep_probability: 1 − Π(1 − p). balanced: the outcome; each draw depends on the row, the concept and the seed only. The rarest
    concept of a row and its count are outputs too. The state is a table of counts: concept, count.
    """

    name = "balance"
    outputs = {  # noqa: RUF012 - declared, never changed
        "keep_probability": pa.float64(),
        "balanced": pa.bool_(),
        "rarest_concept": pa.string(),
        "rarest_count": pa.int64(),
    }
    t: int = 20_000
    seed: int = 0

    def decide(self, batch: pa.RecordBatch, state: pa.Table) -> Columns:
        """Second pass: the outputs for the rows of one shard."""
        concepts = batch["concepts"]
        n = len(concepts)
        lengths = np.diff(concepts.offsets.to_numpy())
        row = np.repeat(np.arange(n), lengths)
        names = _whole(state["concept"])
        place = pc.index_in(concepts.flatten(), value_set=names).to_numpy(zero_copy_only=False).astype(np.int64)
        counts = state["count"].to_numpy()[place] if len(place) else np.empty(0, np.int64)
        p = np.minimum(1.0, self.t / np.maximum(counts, 1))
        keys = np.array([sample_hash(name) for name in names.to_pylist()], np.uint64)
        draws = uniform(batch["hash"].to_numpy()[row] ^ keys[place], f"balance {self.seed}")
        with np.errstate(divide="ignore"):
            missed = np.bincount(row, np.log1p(-p), n)  # log Π(1 − p)
        rarest = np.full(n, -1, np.int64)
        order = np.lexsort((place, counts, row))
        first = order[np.unique(row[order], return_index=True)[1]]
        rarest[row[first]] = place[first]
        return {
            "keep_probability": -np.expm1(missed),
            "balanced": np.bincount(row, draws < p, n) > 0,
            "rarest_concept": names.take(pa.array(rarest, mask=rarest < 0)),
            "rarest_count": _whole(state["count"]).take(pa.array(rarest, mask=rarest < 0)),
        }


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
