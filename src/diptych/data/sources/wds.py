"""``wds:``: WebDataset shards, tar files in which the members of an item share a key: ``0001.jpg``, ``0001.txt``, ``0001.json``."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError, counted
from diptych.data.image import CONVERT, SUFFIXES, UNREAD
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.folder import captions_of
from diptych.data.storage import files

TEXTS = ("txt", "json", "cls")


class Wds(ListedSource):
    """Shards by name, brace range or glob. Each is read through once for offsets and texts, then images by offset.

    The key is a member's path up to the first dot of its name, as in WebDataset; where that gives no image (``shot.05.png``), up to
    the last dot, as in ``datasets``. Of a damaged shard, the members before the damage are used.
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
            for key, members in _regrouped(self._groups(url, shard)).items():
                entry = self._entry(url, f"{shard}:{key}", members)
                if entry and stamps[url]:
                    entry.stamp = f"{stamps[url]}:{entry.where[1]}"
                if entry:
                    yield entry

    def _entry(self, url: str, item: str, members: dict[str, Any]) -> Entry | None:
        where = _image(members)
        if where is None:
            unread = next((f"; {UNREAD[f'.{kind}']} {CONVERT}" for kind in members if f".{kind}" in UNREAD), "")
            reason = f"no image among its members ({', '.join(members)}){unread}"
            if any("." in kind for kind in members):
                reason += "; a key ends at the first dot of a name: put another character there"
            self.problems.append(Problem(item, reason))
            return None
        try:
            captions, extra = captions_of({f"{item}.{k}": _text(v) for k, v in members.items() if k in ("txt", "json")})
        except (DiptychError, ValueError) as error:
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
            packer = files.packer_of(file.read(8))
            file.seek(0)
            if packer:
                raise DiptychError(
                    f"{url}: compressed by {packer}, but images are read in place: unpack it first, `{packer} -d FILE`"
                )
            end = 0  # of the last member, filled up to whole blocks
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        if member.offset_data + member.size > size:
                            raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
                        folder, _, base = member.name.rpartition("/")
                        key, _, kind = base.partition(".")
                        if not member.isfile() or not key:
                            continue
                        if not kind:
                            self.problems.append(Problem(f"{shard}:{member.name}", "no ending that says what it is"))
                            continue
                        is_text = kind.lower().rpartition(".")[2] in TEXTS
                        content = tar.extractfile(member).read() if is_text else None  # type: ignore[union-attr]
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


def _image(members: dict[str, Any]) -> Any:
    """Where the first image of a key is; None if it has none."""
    return next((place for kind, place in members.items() if f".{kind}" in SUFFIXES), None)


def _regrouped(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Groups without an image, divided at the last dots of their names if that gives images with texts; the others as they are."""
    result: dict[str, dict[str, Any]] = {}
    for key, members in groups.items():
        if _image(members) is not None:
            result[key] = members
            continue
        parts: dict[str, dict[str, Any]] = {}
        for kind, place in members.items():
            more, dot, last = kind.rpartition(".")
            parts.setdefault(f"{key}{'.' if dot else ''}{more}", {})[last] = place
        whole = any(_image(part) is not None and not part.keys().isdisjoint(TEXTS) for part in parts.values())
        result |= parts if whole else {key: members}
    return result


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")
