"""Vectors in LanceDB: in a folder, or in object storage (``s3://…``, ``gs://…``, ``az://…``)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.index.filters import Value
from diptych.index.stores.conditions import SQL, stored
from diptych.index.stores.engine import LISTED, Candidates, Engine

ARROW = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
FEW = 20_000  # so many that fulfil a filter are compared one by one, without the index


class Lance(Engine):
    """A LanceDB table. url: of the database, a folder or object storage; None: in the folder of the store. Keys of object storage
    are taken from the environment (AWS_ACCESS_KEY_ID and so on) and never written.

    Up to ``least`` vectors are compared one by one; more get an index (IVF-PQ), which is made by ``settle`` and by a ``save`` after
    which a good part of the vectors is not in it. probes: lists of the index that a search reads; refine: the exact scores of so
    many times k candidates are computed.
    """

    kind = "lancedb"
    language = SQL

    def __init__(
        self, folder: Path, width: int, *, url: str | None = None, least: int = 200_000, probes: int = 64, refine: int = 20
    ):
        if least < 1 or probes < 1 or refine < 1:
            raise DiptychError(f"store {self.kind}: least, probes and refine are at least 1")
        refuse_secrets(self.kind, url, "the environment, as for other programs (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …)")
        self.url, self.least, self.probes, self.refine = url, least, probes, refine
        os.environ.setdefault("LANCE_LOG", "error")  # it warns of each table that it makes
        lancedb = need("lancedb", extra="lancedb", what=f"store {self.kind}")
        where = url or str(Path(folder).absolute() / "lance")
        try:
            self._database = lancedb.connect(where)
        except Exception as error:  # LanceDB has no class of its own for what goes wrong
            raise DiptychError(f"store {self.kind}: {where} cannot be opened ({_short(error)})") from None
        self._where = where
        super().__init__(folder, width)

    # --- what an engine does ---

    def _create(self) -> str:
        name = f"diptych_{secrets.token_hex(4)}" if self.url else "vectors"
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), self.width))])
        # Overwritten where a process died before it could note the name: nothing is in it.
        self._database.create_table(name, schema=schema, mode="overwrite")
        return name

    def _attach(self) -> None:
        try:
            self._table = self._database.open_table(self._place)
        except Exception as error:
            raise DiptychError(
                f"{self.folder}: the table {self._place} at {self._where} cannot be opened ({_short(error)}); bring it back, or "
                "delete the index and index again"
            ) from None
        vector = self._table.schema.field("vector").type
        if getattr(vector, "list_size", None) != self.width:
            raise DiptychError(f"{self._where}: the table {self._place} has vectors of {vector}, not of width {self.width}")
        self._indexed = bool(self._table.list_indices())

    def _stored_ids(self) -> np.ndarray:
        ids: np.ndarray = self._table.search().select(["id"]).limit(None).to_arrow()["id"].to_numpy()
        return ids

    def _upsert(self, ids: np.ndarray, vectors: np.ndarray, rows: list[dict[str, Value | None]]) -> None:
        have = set(self._table.schema.names)
        new = [pa.field(stored(name), ARROW[kind]) for name, kind in self._types.items() if stored(name) not in have]
        if new:
            self._table.add_columns(new)
        dropped = [name for name in sorted(map(stored, self._dropped)) if name in have]
        if dropped:
            self._table.drop_columns(dropped)
        table = {
            "id": pa.array(ids, pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), self.width),
        }
        for name, kind in self._types.items():
            values = [_number(row[name]) if kind == "number" else row[name] for row in rows]
            table[stored(name)] = pa.array(values, ARROW[kind])
        data = pa.table(table).select([name for name in self._table.schema.names if name in table])
        # Not ``add``: after a journal that was done in part, some of them are there.
        self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)

    def _remove(self, ids: np.ndarray) -> None:
        for some in _parts(ids):
            self._table.delete(SQL.ids(some))

    def _fetch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._table.search().where(SQL.ids(ids)).select(["id", "vector"]).limit(len(ids)).to_arrow()
        return found["id"].to_numpy(), self._vectors(found)

    def _top(self, queries: np.ndarray, k: int, condition: str, allowed: int | None) -> Candidates:
        if allowed is None and condition and self._indexed:
            allowed = self._table.count_rows(condition)
        found = []
        for query in queries:
            # A few more than k: scores of the engine are float32, and ours decide.
            search = self._table.search(query, vector_column_name="vector").distance_type("dot").limit(k + 16)
            if condition:
                search = search.where(condition, prefilter=True)
            if self._indexed and allowed is not None and allowed <= FEW:
                search = search.bypass_vector_index()
            elif self._indexed:
                search = search.nprobes(self.probes).refine_factor(self.refine)
            part = search.select(["id", "vector", "_distance"]).to_arrow()
            found.append((part["id"].to_numpy(), self._vectors(part)))
        return found

    def _written(self) -> None:
        if len(self) >= self.least and (not self._indexed or self._behind() > max(self.least, len(self) // 3)):
            self.settle()

    # --- more ---

    def settle(self) -> None:
        """Makes the index, or brings it up to date, and joins the small files that each ``save`` made."""
        self.save()
        if len(self) >= self.least and not self._indexed:
            pieces = max(1, self.width // 8)
            while self.width % pieces:
                pieces -= 1
            self._table.create_index(
                metric="dot",
                vector_column_name="vector",
                index_type="IVF_PQ",
                num_partitions=max(1, int(np.sqrt(len(self)))),
                num_sub_vectors=pieces,
            )
            self._indexed = True
        self._table.optimize()

    def drop(self) -> None:
        """Removes the table from the database, once its vectors are elsewhere."""
        self._database.drop_table(self._place, ignore_missing=True)

    def _behind(self) -> int:
        statistics = [self._table.index_stats(index.name) for index in self._table.list_indices()]
        return max((s.num_unindexed_rows for s in statistics if s is not None), default=0)

    def _vectors(self, table: pa.Table) -> np.ndarray:
        if not table.num_rows:
            return np.zeros((0, self.width), np.float32)
        vectors: np.ndarray = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        return vectors


def refuse_secrets(kind: str, url: str | None, instead: str) -> None:
    """DiptychError for an address with a user, a password or a key in it: addresses are written to the index."""
    authority = (url or "").partition("://")[2].partition("/")[0]
    if "@" in authority or "?" in (url or ""):
        raise DiptychError(
            f"store {kind}: the address holds a user, a password or parameters, and it is kept on disk. Give them in {instead}"
        )


def _number(value: Value | None) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _parts(ids: np.ndarray) -> Iterable[np.ndarray]:
    return (ids[start : start + LISTED] for start in range(0, len(ids), LISTED))


def _short(error: Any) -> str:
    return str(error).partition("\n")[0][:200]
