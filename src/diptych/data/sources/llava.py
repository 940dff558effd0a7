"""``llava:`` and ``chat:``: conversations about images: none, one or several in each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from diptych.core.errors import DiptychError, counted
from diptych.core.sample import Conversation, Sample, Turn, captioned
from diptych.data.conversations.turns import Mistake, check_images, images_in, turns_of, unread_keys
from diptych.data.image import decode
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources.base import Entry, ListedSource, Names, bytes_of, image_of, joined_stamp
from diptych.data.sources.parquet import parquet_rows
from diptych.data.sources.table import JSONL, check_scheme, read_json, read_jsonl
from diptych.data.storage import files

COLUMNS = ("messages", "conversations")
IMAGES = ("images", "image")
MEDIA = ("video", "videos", "audio", "audios")  # what a turn would be about
KNOWN = ("id", "system", *COLUMNS, *IMAGES, *MEDIA)

Row = tuple[str, dict[str, Any]]  # its place in the file, for messages; fields


class Conversations(ListedSource):
    """A .json with LLaVA's list of ``{id, image, conversations: [{from, value}]}``, or a .jsonl or .parquet with ``messages``:
    ``[{role, content}]``.

    ``<image>`` in a turn's text, or a part ``{type: image}`` of its content, marks the place of an image. ``image`` or ``images``
    holds a path (relative to ``?images=DIR``, else to the file), several, or none; in Parquet also bytes or ``{bytes, path}``,
    which stay in memory. Parts may hold their image themselves, as Qwen's and OpenAI's do. A text in ``system`` is the system turn;
    other columns go to ``extra``, and keys of turns that are not read are listed. A conversation that contradicts itself, or is
    about a video or a sound, is refused, naming file and id; with ``?broken=skip`` it is left out and recorded. The first answer
    serves as the caption.
    """

    looked_for = "conversations"

    def _fields(self) -> tuple[str, ...]:
        return (*(("image",) if any(e.where for e in self._entries) else ()), "text", "turns")

    def __init__(self, place: str, *, images: str | None = None, broken: Literal["refuse", "skip"] = "refuse"):
        self.images, self.broken = images, broken
        self._unread: Counter[tuple[str, str]] = Counter()  # keys of turns that are not read, by file: conversations
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
                    given = _first(row, COLUMNS)
                    turns = _with_system(turns_of(given), row.get("system"))
                    if unread := next((key for key in MEDIA if row.get(key)), None):
                        raise Mistake(f"{unread} is not read; conversations have texts and images")
                    where = tuple(image_of(image, here) for image in _images_of(row, images_in(given)))
                    check_images(turns, len(where))
                except ValueError as mistake:
                    self.problems.append(Problem(name, f"{file}: {mistake}"))
                    continue
                for key in unread_keys(given):
                    self._unread[file, key] += 1
                answer = next((t.text for t in turns if t.role == "assistant"), "")
                others = {k: v for k, v in row.items() if k not in KNOWN and v is not None and not isinstance(v, bytes)}
                yield Entry(name, where, [answer], {**others, "turns": [list(turn) for turn in turns]})

    def _usable(self) -> list[Entry]:
        entries = list(self.entries())
        if self.problems and self.broken == "refuse":
            first = "".join(f"\n  {p.item}: {p.reason}" for p in self.problems[:3])
            raise DiptychError(
                f"{self.place}: {len(self.problems)} conversations contradict themselves; fix them, or leave them out with "
                f"?broken=skip:{first}"
            )
        for (file, key), times in self._unread.items():
            self.problems.append(Problem(file, f"'{key}' of turns is not read ({counted(times, 'conversation')})"))
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
        extra = {key: value for key, value in entry.extra.items() if key != "turns"}
        return Sample(entry.id, extra, image=first, text=captioned(entry.captions), turns=Conversation(turns, images))

    def conversation(self, index: int) -> tuple[str, list[Turn], int]:
        """Id, turns and number of images, without reading the images."""
        entry = self._entries[index]
        return entry.id, [Turn(*turn) for turn in entry.extra["turns"]], len(entry.where)

    def captions(self, index: int) -> list[str]:
        """The texts of all turns, from which a tokenizer learns."""
        return [text for _, text in self._entries[index].extra["turns"]]


def _rows(url: str, name: str) -> Iterator[Row]:
    if url.lower().endswith(".parquet"):
        yield from ((f"{name}:{k}", row) for k, row in enumerate(parquet_rows(url)))
    elif url.lower().endswith(JSONL):
        yield from ((f"{name}:{line}", row) for line, row in read_jsonl(url)[1])
    else:
        columns, rows = read_json(url)
        if "conversations" not in columns and "messages" not in columns:
            expected = "LLaVA's list of {id, image, conversations}, or rows with messages"
            check_scheme(files.read_text(url), url, expected, "llava")
            raise DiptychError(f"{url}: expected {expected}; found the keys {', '.join(columns) or 'of no row'}")
        yield from ((f"{name}:{k}", row) for k, row in rows)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that holds something."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _images_of(row: dict[str, Any], inline: list[Any]) -> list[Any]:
    """The images of a row: of its column, or those that its turns hold."""
    listed = _listed(_first(row, IMAGES))
    if listed and inline and listed != inline:
        raise Mistake(f"images twice: {len(inline)} in its turns and {len(listed)} next to them; keep one of the two")
    return listed or inline


def _with_system(turns: list[Turn], system: Any) -> list[Turn]:
    """The turns, after the system turn that stands next to them."""
    if not isinstance(system, str) or not system.strip() or turns[0] == Turn("system", system):
        return turns
    if turns[0].role == "system":
        raise Mistake("a system turn, and another text in 'system'")
    return [Turn("system", system), *turns]


def _listed(images: Any) -> list[Any]:
    return [] if images is None or images == "" else list(images) if isinstance(images, (list, tuple)) else [images]
