"""``llava:`` and ``chat:``: conversations about images: none, one or several in each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from diptych.core.errors import DiptychError
from diptych.core.sample import Conversation, Sample, Turn, captioned
from diptych.data.conversations.turns import check_images, turns_of
from diptych.data.image import decode
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources.base import Entry, ListedSource, Names, bytes_of, image_of, joined_stamp
from diptych.data.sources.parquet import parquet_rows
from diptych.data.sources.table import read_jsonl
from diptych.data.storage import files

COLUMNS = ("messages", "conversations")
IMAGES = ("images", "image")

Row = tuple[str, dict[str, Any]]  # its place in the file, for messages; fields


class Conversations(ListedSource):
    """A .json with LLaVA's list of ``{id, image, conversations: [{from, value}]}``, or a .jsonl or .parquet with ``messages``:
    ``[{role, content}]``.

    ``<image>`` in a turn's text, or a part ``{type: image}`` of its content, marks the place of an image. ``image`` or ``images``
    holds a path (relative to ``?images=DIR``, else to the file), several, or none; in Parquet also bytes or ``{bytes, path}``,
    which stay in memory. A conversation that contradicts itself is refused, naming file and id; with ``?broken=skip`` it is left
    out and recorded. The first answer serves as the caption.
    """

    looked_for = "conversations"

    def _fields(self) -> tuple[str, ...]:
        return (*(("image",) if any(e.where for e in self._entries) else ()), "text", "turns")

    def __init__(self, place: str, *, images: str | None = None, broken: Literal["refuse", "skip"] = "refuse"):
        self.images, self.broken = images, broken
        super().__init__(place)

    # --- listing ---

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        urls = files.matching(self.place)
        names = Names()  # LLaVA's own files use an id several times
        for url, file in zip(urls, files.relative(urls), strict=True):
            here = files.directory_of(url, self.images)
            for place, row in _rows(url, file):
                name = names.new(str(row.get("id", "")) or place)
                try:
                    turns = turns_of(next((row[c] for c in COLUMNS if c in row), None))
                    where = tuple(image_of(image, here) for image in _listed(next((row[c] for c in IMAGES if c in row), None)))
                    check_images(turns, len(where))
                except ValueError as mistake:
                    self.problems.append(Problem(name, f"{file}: {mistake}"))
                    continue
                answer = next((t.text for t in turns if t.role == "assistant"), "")
                yield Entry(name, where, [answer], {"turns": [list(turn) for turn in turns]})

    def _usable(self) -> list[Entry]:
        entries = list(self.entries())
        if self.problems and self.broken == "refuse":
            first = "".join(f"\n  {p.item}: {p.reason}" for p in self.problems[:3])
            raise DiptychError(
                f"{self.place}: {len(self.problems)} conversations contradict themselves; fix them, or leave them out with "
                f"?broken=skip:{first}"
            )
        stamps = files.stamps(image for e in entries for image in e.where if isinstance(image, str))
        return [e for e in entries if self._is_usable(e, stamps)]

    def _is_usable(self, entry: Entry, stamps: Any) -> bool:
        paths = [image for image in entry.where if isinstance(image, str)]
        for path in paths:
            if stamps[path] is None:
                self.problems.append(Problem(entry.id, f"there is no file {path}"))
                return False
        if paths and len(paths) == len(entry.where):
            entry.stamp = joined_stamp([stamps[path] for path in paths])
        return True

    # --- reading ---

    def _images(self, entry: Entry) -> list[bytes]:
        return [bytes_of(image) for image in entry.where]

    def read(self, entry: Entry) -> bytes:
        """The bytes that decide the split: the images, or the words if there are no images."""
        return b"".join(self._images(entry)) or json.dumps(entry.extra["turns"]).encode()

    def encoded(self, index: int) -> bytes | None:
        """The image as it is stored; None if a sample of this source is not one image."""
        return None  # any number of images, so no encoded image is passed on

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned."""
        return self[index]

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        try:
            encoded = self._images(entry)
        except Exception as error:  # remote file systems raise errors of their own
            raise BrokenItem(entry.id, f"cannot be read: {error}") from error
        images = [decode(data, entry.id) for data in encoded]
        turns = [Turn(*turn) for turn in entry.extra["turns"]]
        first = images[0] if images else None
        return Sample(entry.id, image=first, text=captioned(entry.captions), turns=Conversation(turns, images))

    def conversation(self, index: int) -> tuple[str, list[Turn], int]:
        """Id, turns and number of images, without reading the images."""
        entry = self._entries[index]
        return entry.id, [Turn(*turn) for turn in entry.extra["turns"]], len(entry.where)

    def captions(self, index: int) -> list[str]:
        """The texts of all turns, from which a tokenizer learns."""
        return [text for _, text in self._entries[index].extra["turns"]]


def _rows(url: str, name: str) -> Iterator[Row]:
    if url.endswith(".parquet"):
        yield from ((f"{name}:{k}", row) for k, row in enumerate(parquet_rows(url)))
    elif url.endswith((".jsonl", ".ndjson")):
        yield from ((f"{name}:{line}", row) for line, row in read_jsonl(url)[1])
    else:
        try:
            content = json.loads(files.read_text(url))
        except (ValueError, RecursionError) as error:
            raise DiptychError(f"{url}: broken JSON: {error}") from error
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise DiptychError(f"{url}: expected LLaVA's list of {{id, image, conversations}}, found {type(content).__name__}")
        yield from ((f"{name}:{k}", row) for k, row in enumerate(content))


def _listed(images: Any) -> list[Any]:
    return [] if images is None or images == "" else list(images) if isinstance(images, (list, tuple)) else [images]
