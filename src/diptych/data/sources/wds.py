"""``wds:``: WebDataset shards, tar files in which the members of an item share a key: ``0001.jpg``, ``0001.txt``, ``0001.json``."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError, counted
from diptych.data.image import SUFFIXES
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.folder import captions_of
from diptych.data.storage import files

TEXTS = ("txt", "json", "cls")


class Wds(ListedSource):
    """Shards by name, brace range or glob. Each is read through once for offsets and texts, then images by offset.

    The key is a member's path up to the first dot of its name. Of a damaged shard, the members before the damage are used.
    """

    looked_for = "tar members such as KEY.jpg with KEY.txt or KEY.json"

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        urls = files.expand(f"{self.place.rstrip('/')}/*.tar" if files.is_directory(self.place) else self.place)
        if not urls:
            raise DiptychError(f"{self.place}: no shard has such a name")
        stamps = files.stamps(urls)
        missing = [url for url, stamp in stamps.items() if stamp is None]
        if missing:
            count = f"{len(missing)} of {len(urls)}"
            raise DiptychError(f"{self.place}: {count} shards do not exist: {', '.join(missing[:3])}")
        for url, shard in zip(urls, files.relative(urls), strict=True):
            for key, members in self._groups(url, shard).items():
                entry = self._entry(url, f"{shard}:{key}", members)
                if entry and stamps[url]:
                    entry.stamp = f"{stamps[url]}:{entry.where[1]}"
                if entry:
                    yield entry

    def _entry(self, url: str, item: str, members: dict[str, Any]) -> Entry | None:
        where = next((place for kind, place in members.items() if f".{kind}" in SUFFIXES), None)
        if where is None:
            self.problems.append(Problem(item, f"no image among its members ({', '.join(members)})"))
            return None
        try:
            captions, extra = captions_of({f"{item}.{k}": _text(v) for k, v in members.items() if k in ("txt", "json")})
        except (DiptychError, UnicodeDecodeError) as error:
            self.problems.append(Problem(item, str(error)))
            return None
        if "cls" in members:
            extra["cls"] = _text(members["cls"]).strip()
        return Entry(item, (url, *where), captions, extra)

    def _groups(self, url: str, shard: str) -> dict[str, dict[str, Any]]:
        """Key → {kind: (offset, length) of an image, or the bytes of a text}."""
        groups: dict[str, dict[str, Any]] = {}
        with files.open_file(url) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            end = 0  # of the last member, filled up to whole blocks
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
                        folder, _, base = member.name.rpartition("/")
                        key, _, kind = base.partition(".")
                        if not member.isfile() or not key or not kind:
                            continue
                        content = tar.extractfile(member).read() if kind.lower() in TEXTS else None  # type: ignore[union-attr]
                        group = groups.setdefault(f"{folder}/{key}" if folder else key, {})
                        if kind.lower() in group:
                            self.problems.append(Problem(f"{shard}:{member.name}", "same member again; kept the first"))
                            continue
                        group[kind.lower()] = content if content is not None else (member.offset_data, member.size)
                file.seek(end)  # tarfile itself takes a cut or damaged header for the end of the archive
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end mark after the last member")
            except (tarfile.TarError, EOFError) as error:
                reason = f"damaged or truncated ({error}); kept the {counted(len(groups), 'key')} before that"
                self.problems.append(Problem(shard, reason))
        return groups

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, still encoded."""
        url, offset, length = entry.where
        data = files.read(url, offset, length)
        if len(data) != length:
            raise OSError(f"{url} holds {len(data)} of its {length} bytes")
        return data


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")
