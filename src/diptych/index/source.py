"""``index:``: what an index holds, or a selection of it, as data to train on or to curate."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Sample, captioned
from diptych.data.clips import as_video
from diptych.data.image import decode
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources.base import split_rows

if TYPE_CHECKING:
    from diptych.index.index import Index


class IndexSource:
    """The pictures of an index in the order of their ids, or those of a selection in its order, with captions and columns.

    What a data address knows more of its items (labels, regions, conversations) is there too. Broken pictures are problems.
    Splits go by the hash of a picture's file. The index may be brought up to date meanwhile: a picture that changed is a broken
    item.
    """

    def __init__(self, place: str, *, selection: str | None = None):
        self.place, self.address, self.selection = place, place, selection
        self.part: str | None = None
        index = self._index
        with_reasons = [] if selection is not None else index.broken().items()
        self.problems = [Problem(name, reason) for name, reason in with_reasons]
        if selection is None:
            ids = index.catalog.column("SELECT id FROM pictures WHERE state = 'ok' ORDER BY id").tolist()
        else:
            ids = index.selections_.ids(selection, place)
        if not ids:
            raise DiptychError(f"index:{place}: no pictures in it; run diptych index first")
        self.ids: list[int] = ids
        rows = index.catalog.rows_of(ids)
        self._rows = [rows[i] for i in ids]
        self.fields: tuple[str, ...] = self._fields()

    @property
    def _index(self) -> Index:
        """The index, opened by each process for itself."""
        from diptych.index.index import Index

        pid, found = self.__dict__.get("_opened", (0, None))
        if found is None or pid != os.getpid():
            found = Index.open(Path(self.place))
            self.__dict__["_opened"] = (os.getpid(), found)
        result: Index = found
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_opened"}

    def _fields(self) -> tuple[str, ...]:
        more: dict[str, None] = {}
        for source in {row["source"] for row in self._rows}:
            known = getattr(self._index.collection(source), "source", None)
            more |= dict.fromkeys(getattr(known, "fields", ()))
        text = ("text",) if any(row["caption"] for row in self._rows) else ()
        clips = all(self._index.collection(source).of_clips for source in {row["source"] for row in self._rows})
        return tuple(dict.fromkeys(("video" if clips else "image", *text, *more)))

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes that labels are of, where the data has them."""
        sources = {row["source"] for row in self._rows}
        known = [getattr(getattr(self._index.collection(s), "source", None), "classes", None) for s in sources]
        return list(known[0]) if len(known) == 1 and known[0] else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        try:
            if row["position"] >= 0:
                sample: Sample = self._index.collection(row["source"]).source[row["position"]]  # type: ignore[attr-defined]
                if sample.id == row["name"]:
                    return sample
            return self.sample_of(index, self.encoded(index))
        except DiptychError as error:
            raise BrokenItem(row["name"], str(error)) from error

    def encoded(self, index: int) -> bytes | None:
        """The picture as it is stored; None where the data holds pixels. Raises ``BrokenItem``."""
        content = self._content(index)
        return content if isinstance(content, bytes) else None

    def _content(self, index: int) -> Any:
        try:
            return self._index.content(self.ids[index])
        except DiptychError as error:
            raise BrokenItem(self._rows[index]["name"], str(error)) from error

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned."""
        row = self._rows[index]
        image = self._content(index) if encoded is None else decode(encoded, row["name"])
        return self._sample(row, image)

    def _sample(self, row: dict[str, Any], image: Any = None) -> Sample:
        captions = self._captions(row)
        if getattr(image, "ndim", 3) == 4:
            clip = as_video(image, row["name"])
            text = captioned(captions) if captions else None
            return Sample(row["name"], json.loads(row["columns"]), video=clip, text=text)
        return Sample(row["name"], json.loads(row["columns"]), image=image, text=captioned(captions) if captions else None)

    @staticmethod
    def _captions(row: dict[str, Any]) -> list[str]:
        return [line for line in row["caption"].split("\n") if line]

    def listed(self, index: int) -> Sample:
        """One item without its picture."""
        row = self._rows[index]
        source: Any = getattr(self._index.collection(row["source"]), "source", None)
        if row["position"] >= 0 and hasattr(source, "listed"):
            sample: Sample = source.listed(row["position"])
            return sample
        return self._sample(row)

    def captions(self, index: int) -> list[str]:
        """The captions of one item."""
        return self._captions(self._rows[index])

    def digests(self) -> list[bytes]:
        """The 16-byte hash of each picture's file."""
        return [row["digest"] for row in self._rows]

    def fingerprint(self) -> str:
        """A hash of pictures, captions and columns; names and order do not matter."""
        total = hashlib.blake2b(digest_size=16)
        rows = (hashlib.blake2b(r["digest"] + f"{r['caption']}\0{r['columns']}".encode(), digest_size=16) for r in self._rows)
        for row in sorted(row.digest() for row in rows):
            total.update(row)
        return total.hexdigest()

    def split(self, name: str) -> IndexSource:
        """The pictures with a hash in the part's share: equal ones are always in the same part."""
        if self.part is not None and name == self.part:
            return self
        return self._part(name, split_rows(name, self.part, self.address, b"".join(self.digests())).tolist())

    def _part(self, name: str, rows: Sequence[int]) -> IndexSource:
        part = copy.copy(self)
        part.part = name
        part.address = f"{self.address}{'&' if '?' in self.address else '?'}split={name}"
        part.ids, part._rows = [self.ids[i] for i in rows], [self._rows[i] for i in rows]
        return part
