"""``packed:``: what ``diptych data pack`` wrote, read at random through a memory map."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Sample
from diptych.data.packing.columns import Shard, sample_of
from diptych.data.packing.manifest import NAME, PROBLEMS
from diptych.data.packing.shard import ROWS, VERSION, file_hash
from diptych.data.source import Problem
from diptych.data.sources.base import split_rows
from diptych.data.storage import cache, files


class Packed:
    """Splits go by the hash of the original images, so packing before or after splitting gives the same parts.

    Images of ``raw`` shards are read-only views into the file. Forked workers share the mapping; a pickled source opens its own.
    """

    def __init__(self, place: str):
        self.place = files.normal(place)
        self.address = place
        self.manifest = self._read_manifest()
        self.problems = self._read_problems()
        self.part: str | None = self.manifest["part"]
        self.format: str = self.manifest["parameters"]["format"]
        fields = self.manifest.get("fields")  # None: version 1
        self._kinds: tuple[str, ...] | None = None if fields is None else tuple(fields)
        self.fields: tuple[str, ...] = ("image", "text") if fields is None else tuple(name for name, n in fields.items() if n)
        self._shards: list[Shard | None] = [None] * len(self.manifest["shards"])
        self._first = np.cumsum([0, *(s["items"] for s in self.manifest["shards"])])  # of each shard, and the end
        self._rows: np.ndarray | None = None  # of a part: the positions of its items
        self._known: list[bytes] | None = None  # digests, computed when first needed
        self._check_files()

    @property
    def image_size(self) -> int | None:
        """The size of the pictures, if the source has a fixed size and they were packed at it."""
        size: int | None = self.manifest["native_size"]
        return size

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes that labels are of, if there are labels."""
        return self.manifest.get("classes")

    @property
    def instant(self) -> bool:
        """Whether reading is only a memory access, for which threads and caches would be a waste."""
        return self.format == "raw"

    def __len__(self) -> int:
        return len(self._rows) if self._rows is not None else int(self._first[-1])

    def __getitem__(self, index: int) -> Sample:
        shard, row = self._place(index)
        return sample_of(shard[row], self.format, shard.path)

    def captions(self, index: int) -> list[str]:
        """All texts of one item, turns too, without its pictures."""
        shard, row = self._place(index)
        return shard.captions(row)

    def digests(self) -> list[bytes]:
        """The 16-byte hash of each item's original image. Kept: packing asks for each item."""
        if self._known is None:
            together = self._digests()
            rows = range(len(self)) if self._rows is None else self._rows.tolist()
            self._known = [together[16 * i : 16 * i + 16] for i in rows]
        return self._known

    def _digests(self) -> bytes:
        return b"".join(d for number in range(len(self._shards)) for d in self._shard(number).digests())

    def fingerprint(self) -> str:
        """A hash of what was packed and how."""
        whole = self.manifest["fingerprint"]
        return whole if self._rows is None else hashlib.blake2b(f"{whole} {self.part}".encode(), digest_size=16).hexdigest()

    def split(self, name: str) -> Packed:
        """One part of what is packed: all of it if this part alone was packed, else the items that the hashes of their images put
        into it.
        """
        if self.part is not None and name == self.part:
            return self
        part = copy.copy(self)
        part._known = None
        part.part, part._rows = name, split_rows(name, self.part, self.address, self._digests())
        part.address = f"{self.address}{'&' if '?' in self.address else '?'}split={name}"
        return part

    def verify(self, progress: Any = None) -> list[str]:
        """The shards that do not have the hash in the manifest, each with what is wrong; reads every byte. ``progress(shards
        read)``.
        """
        wrong = []
        for number, written in enumerate(self.manifest["shards"]):
            path = self._path(written["file"])
            try:
                Shard(path, written, self._rows_a_batch, self._kinds)
                if file_hash(path) != written["blake2b"]:
                    wrong.append(f"{path}: altered: its hash is not the manifest's")
            except DiptychError as error:
                wrong.append(str(error))
            if progress:
                progress(number + 1)
        return wrong

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": [None] * len(self._shards), "_known": None}

    # Files.

    def _place(self, index: int) -> tuple[Shard, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.address} has {counted(len(self), 'item')}; there is no number {index}")
        item = int(self._rows[index]) if self._rows is not None else index % len(self)
        number = int(self._first.searchsorted(item, "right")) - 1
        return self._shard(number), item - int(self._first[number])

    def _shard(self, number: int) -> Shard:
        held = self._shards[number]
        if held is None:
            written = self.manifest["shards"][number]
            held = self._shards[number] = Shard(self._path(written["file"]), written, self._rows_a_batch, self._kinds)
        return held

    @property
    def _rows_a_batch(self) -> int:
        return int(self.manifest["parameters"].get("rows", ROWS))

    def _path(self, file: str) -> str:
        url = files.join(self.place, file)
        return url if files.is_local(url) else cache.local_copy(url, needed=True)

    def _read_manifest(self) -> dict[str, Any]:
        where = files.join(self.place, NAME)
        if not files.exists(where):
            raise DiptychError(
                f"{self.place}: holds no packed data (no {NAME}); make it with: diptych data pack ADDRESS {self.place}"
            )
        try:
            manifest: dict[str, Any] = json.loads(files.read_text(where))
            version, complete = manifest["parameters"]["version"], manifest["complete"]
            done, items = len(manifest["shards"]), manifest["parameters"]["items"]
        except (ValueError, KeyError, TypeError) as error:
            raise DiptychError(f"{where}: not a manifest of packed data: {error}") from error
        if version > VERSION:
            raise DiptychError(
                f"{where}: packed in format {version}, this version of Diptych reads up to {VERSION}: upgrade Diptych"
            )
        if not complete:
            raise DiptychError(
                f"{self.place}: packing is not finished ({done} shards of {items:,} items); run the same `diptych data pack` again"
            )
        return manifest

    def _read_problems(self) -> list[Problem]:
        where = files.join(self.place, PROBLEMS)
        lines: Sequence[str] = files.read_text(where).split("\n") if files.exists(where) else ()
        return [Problem(row["item"], row["reason"]) for row in map(json.loads, filter(None, lines))]

    def _check_files(self) -> None:
        """Finds missing and truncated shards now, not in the middle of a run."""
        shards = self.manifest["shards"]
        if files.is_local(self.place):
            for number in range(len(shards)):
                self._shard(number)
            return
        cache.check_room(sum(s["bytes"] for s in shards), self.place)
        stamps = files.stamps(files.join(self.place, s["file"]) for s in shards)
        missing = [url for url, stamp in stamps.items() if stamp is None]
        if missing:
            raise DiptychError(
                f"{missing[0]}: this shard is missing ({len(missing)} of {len(shards)}); copy {self.place} again, whole"
            )
