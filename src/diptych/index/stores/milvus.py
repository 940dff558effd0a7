"""Vectors in Milvus: a server or a cluster (``https://host:19530``), or milvus-lite in a file (``PATH.db``)."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.index.filters import Value
from diptych.index.stores.conditions import MILVUS, stored
from diptych.index.stores.engine import Candidates, Engine
from diptych.index.stores.lance import refuse_secrets

TOKEN = "DIPTYCH_MILVUS_TOKEN"
BATCH = 1000  # vectors of one call: messages of gRPC are at most 64 MB, and servers take less
MOST = 16_000  # results of one call; Milvus allows 16,384


class Milvus(Engine):
    """A collection in Milvus. url: of the server, or a file that ends in ``.db``; None: a file in the folder of the store. The
    token is that of the environment variable DIPTYCH_MILVUS_TOKEN; it is never written.

    index: of the vectors, as Milvus calls it; None: FLAT (exact) in a file, and AUTOINDEX (what it thinks best) on a server.
    """

    kind = "milvus"
    language = MILVUS

    def __init__(self, folder: Path, width: int, *, url: str | None = None, index: str | None = None):
        refuse_secrets(self.kind, url, f"the environment variable {TOKEN}, as token or as user:password")
        self._milvus = need("pymilvus", extra="milvus", what=f"store {self.kind}")
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints what it also raises, and the values of filters with it
        self._server = url is not None and "://" in url
        if not self._server:
            need("milvus_lite", extra="milvus", what=f"store {self.kind} in a file")
            if url is not None and not url.endswith(".db"):
                raise DiptychError(f"store {self.kind}: {url} is neither a URL (https://host:19530) nor a file that ends in .db")
        path = Path(url) if url is not None and not self._server else Path(folder) / "milvus.db"
        self._where = str(url) if self._server else str(path.absolute())
        if not self._server:
            Path(self._where).parent.mkdir(parents=True, exist_ok=True)
        self.url, self.index = url, index or ("AUTOINDEX" if self._server else "FLAT")
        with self._problems("cannot be opened"):
            self._client = self._connected()
        super().__init__(folder, width)

    def _connected(self) -> Any:
        if self._server:
            return self._milvus.MilvusClient(uri=self._where, token=os.environ.get(TOKEN, ""))
        # Within one process nothing has to be kept alive, and milvus-lite closes connections that try it every ten seconds.
        quiet = {"grpc.keepalive_time_ms": 3_600_000, "grpc.keepalive_permit_without_calls": False}
        return self._milvus.MilvusClient(uri=self._where, grpc_options=quiet)

    @contextmanager
    def _problems(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._milvus.MilvusException as error:
            token = os.environ.get(TOKEN, "")
            text = str(error.message).partition("\n")[0][:300]
            text = text.replace(token, "…") if token else text
            raise DiptychError(
                f"store {self.kind}: {self._where} {what} ({text}); is the server there, and is {TOKEN} its token?"
                if self._server
                else f"store {self.kind}: {self._where} {what} ({text})"
            ) from None

    # --- what an engine does ---

    def _create(self) -> str:
        name, kinds = f"diptych_{secrets.token_hex(4)}", self._milvus.DataType
        schema = self._milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=self.width)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=self.index, metric_type="IP")
        with self._problems("does not make a collection"):
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        return name

    def _attach(self) -> None:
        with self._problems("cannot be read"):
            there = self._client.has_collection(self._place)
        if not there:
            raise DiptychError(
                f"{self.folder}: there is no collection {self._place} at {self._where}; bring it back, or delete the index and "
                "index again"
            )
        with self._problems("cannot be read"):
            fields = self._client.describe_collection(self._place)["fields"]
            self._client.load_collection(self._place)
        widths = [int(field["params"]["dim"]) for field in fields if field["name"] == "vector"]
        if widths != [self.width]:
            raise DiptychError(f"{self._where}: the collection {self._place} has vectors of width {widths}, not {self.width}")

    def _stored_ids(self) -> np.ndarray:
        ids: list[int] = []
        with self._problems("cannot be read"):
            pages = self._client.query_iterator(self._place, batch_size=MOST, filter="", output_fields=["id"])
            while page := pages.next():
                ids += [row["id"] for row in page]
            pages.close()
        return np.array(ids, np.int64)

    def _upsert(self, ids: np.ndarray, vectors: np.ndarray, rows: list[dict[str, Value | None]]) -> None:
        data = []
        for id, vector, row in zip(ids.tolist(), vectors, rows, strict=True):
            columns = {stored(name): _plain(value) for name, value in row.items() if value is not None}
            data.append({"id": id, "vector": vector.tolist(), **columns})
        with self._problems("does not take vectors"):
            for start in range(0, len(data), BATCH):
                self._client.upsert(self._place, data[start : start + BATCH])

    def _remove(self, ids: np.ndarray) -> None:
        with self._problems("does not delete vectors"):
            for start in range(0, len(ids), BATCH):
                self._client.delete(self._place, ids=ids[start : start + BATCH].tolist())

    def _fetch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = []
        with self._problems("cannot be read"):
            for start in range(0, len(ids), BATCH):
                found += self._client.get(self._place, ids=ids[start : start + BATCH].tolist(), output_fields=["id", "vector"])
        return np.array([row["id"] for row in found], np.int64), self._vectors(found, "vector")

    def _top(self, queries: np.ndarray, k: int, condition: str, allowed: int | None) -> Candidates:
        if k + 16 > MOST:
            raise DiptychError(f"store {self.kind}: at most {MOST - 16} results of one search, not {k}")
        # A few more than k: scores of the engine are float32, and ours decide.
        with self._problems("does not search"):
            found = self._client.search(
                self._place, data=queries.tolist(), limit=k + 16, filter=condition, output_fields=["vector"], anns_field="vector"
            )
        parts = []
        for hits in found:
            rows = [{"id": hit["id"], **hit["entity"]} for hit in hits]
            parts.append((np.array([row["id"] for row in rows], np.int64), self._vectors(rows, "vector")))
        return parts

    def _written(self) -> None:
        if not self._server:  # a server has what it confirmed, and allows few such calls
            with self._problems("does not make changes lasting"):
                self._client.flush(self._place)

    # --- more ---

    def close(self) -> None:
        """Closes the connection. Does not save."""
        super().close()
        self._client.close()

    def drop(self) -> None:
        """Removes the collection, once its vectors are elsewhere."""
        with self._problems("does not remove a collection"):
            self._client.drop_collection(self._place)

    def _vectors(self, rows: list[dict[str, Any]], name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], np.float32).reshape(-1, self.width)


def _plain(value: Value) -> Any:
    return value.item() if isinstance(value, np.generic) else value
