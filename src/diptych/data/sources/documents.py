"""``documents:``: texts and images in order, as on a web page; of OBELICS, MMC4, a list of parts, or Markdown files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from diptych.core.errors import DiptychError
from diptych.core.sample import Document, Sample
from diptych.data.image import decode
from diptych.data.source import BrokenItem, Problem
from diptych.data.sources.base import Entry, ListedSource, Names, bytes_of, clean, image_of, joined_stamp
from diptych.data.sources.parquet import parquet_rows
from diptych.data.sources.table import read_jsonl
from diptych.data.storage import files

Part = tuple[str, Any]  # ("text", a text) or ("image", the URL of a file, or bytes)
LAYOUTS = "{images, texts} of OBELICS, {text_list, image_info} of MMC4, or {parts: [{text} or {image}]}"
# ![alt](path), ![alt](<a path>), ![alt](path "title")
_PICTURE = re.compile(
    r"""!\[(?P<alt>[^\]]*)\]\(\s*(?:<(?P<angled>[^>]+)>|(?P<path>[^)\s]+(?:\s(?!["'])[^)\s]+)*))\s*(?:["'][^)]*["']\s*)?\)"""
)


class Documents(ListedSource):
    """A .jsonl or .parquet (globs allowed) with one document per row, or a directory of Markdown files, one document each.

    Rows: ``{images: [path or null …], texts: [text or null …]}``, parallel, as in OBELICS; ``{text_list: […], image_info:
    [{image_name, matched_text_index}]}``, as in MMC4, where an image comes before the text that it is matched with; or ``{parts:
    [{text: …} or {image: …}]}``. Other keys go to ``extra``. Paths are relative to ``?images=DIR``, else to the file; in Parquet,
    images may be bytes or ``{bytes, path}``, which stay in memory. In Markdown, ``![alt](path)`` is an image; alternative texts go
    to ``extra["alt"]``. A missing image is left out and recorded, a document without any part too. All texts of a document, joined,
    are its caption.
    """

    looked_for = f"documents: rows with {LAYOUTS}, or Markdown files"
    medium = "document"

    def __init__(self, place: str, *, images: str | None = None):
        self.images = images
        super().__init__(place)

    # --- listing ---

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        names = Names()
        rows = self._markdown() if files.is_directory(self.place) else self._tables()
        for item, directory, result in rows:
            name = names.new(str(result.pop("id", "") or item) if isinstance(result, dict) else item)
            try:
                parts, extra = parts_of(result) if isinstance(result, dict) else markdown_parts(result)
                where = tuple(_part(kind, value, directory) for kind, value in parts)
            except ValueError as mistake:
                self.problems.append(Problem(name, str(mistake)))
                continue
            where = tuple(part for part in where if part[1])
            texts = " ".join(value for kind, value in where if kind == "text")
            yield Entry(name, where, [texts] if texts else [], extra)

    def _markdown(self) -> Iterator[tuple[str, str, str]]:
        for path in files.find(self.place):
            if path.lower().endswith((".md", ".markdown")):
                url = files.join(self.place, path)
                try:
                    text = files.read_text(url)
                except DiptychError as error:
                    self.problems.append(Problem(path, str(error)))
                else:
                    yield path, files.directory_of(url, self.images), text

    def _tables(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        urls = files.matching(self.place)
        for url, name in zip(urls, files.relative(urls), strict=True):
            directory = files.directory_of(url, self.images)
            rows = enumerate(parquet_rows(url)) if url.endswith(".parquet") else iter(read_jsonl(url)[1])
            yield from ((f"{name}:{number}", directory, row) for number, row in rows)

    def files_of(self, entry: Entry) -> Sequence[str]:
        """URLs of the files that an entry needs; none if it lies within a larger file."""
        return [value for kind, value in entry.where if kind == "image" and isinstance(value, str)]

    def _is_usable(self, entry: Entry, stamps: Mapping[str, str | None]) -> bool:
        missing = {url for url in self.files_of(entry) if stamps[url] is None}
        self.problems += [Problem(entry.id, f"there is no file {url}") for url in sorted(missing)]
        entry.where = tuple(part for part in entry.where if part[1] not in missing)
        if not entry.where:
            self.problems.append(Problem(entry.id, "no text and no image is left"))
            return False
        urls = self.files_of(entry)
        order = json.dumps([value if kind == "text" else None for kind, value in entry.where])  # which part is an image, too
        known = [order, *(stamps[url] or "" for url in urls)]
        inline = any(isinstance(value, bytes) for _, value in entry.where)
        entry.stamp = joined_stamp(known) if urls and not inline else ""
        return True

    # --- reading ---

    def read(self, entry: Entry) -> bytes:
        """The bytes that decide the split: all parts one after the other."""
        return b"\0".join(v.encode() if k == "text" else bytes_of(v) for k, v in entry.where)

    def encoded(self, index: int) -> bytes | None:
        """The image as it is stored; None if a sample of this source is not one image."""
        return None

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned."""
        entry = self._entries[index]
        parts: list[Any] = []
        for kind, value in entry.where:
            if kind == "text":
                parts.append(value)
                continue
            name = f"{entry.id}, image {sum(not isinstance(p, str) for p in parts) + 1}"
            try:
                parts.append(decode(bytes_of(value), name))
            except BrokenItem as broken:
                raise BrokenItem(entry.id, f"{broken.problem.item.rpartition(', ')[2]}: {broken.problem.reason}") from broken
            except Exception as error:  # remote file systems raise errors of their own
                raise BrokenItem(entry.id, f"cannot be read: {error}") from error
        return self.sample(entry, document=Document(parts))


def _part(kind: str, value: Any, directory: str) -> Part:
    """A cleaned text, or an image as the URL of its file or its bytes; empty if there is nothing."""
    if kind == "text":
        return kind, clean(str(value))
    return kind, image_of(value, directory)


def parts_of(row: dict[str, Any]) -> tuple[list[Part], dict[str, Any]]:
    """The parts of a row in order, and its other keys. Raises ValueError for a row in none of ``LAYOUTS``."""
    row = dict(row)
    if isinstance(row.get("parts"), list):
        return [_given(part) for part in row.pop("parts")], row
    if isinstance(row.get("text_list"), list):
        texts, about = row.pop("text_list"), row.pop("image_info", None) or []
        if not isinstance(about, list):
            raise ValueError(f"image_info given as {type(about).__name__}; expected a list of {{image_name, matched_text_index}}")
        return _mmc4(texts, about), row
    images, texts = row.pop("images", None), row.pop("texts", None)
    if not isinstance(images, list) or not isinstance(texts, list):
        raise ValueError(f"not a document; expected {LAYOUTS}")
    if len(images) != len(texts):
        raise ValueError(
            f"{len(images)} images and {len(texts)} texts; OBELICS' lists are parallel, with null where the other has the part"
        )
    return [part for i, t in zip(images, texts, strict=True) for part in (("image", i), ("text", t)) if part[1]], row


def _given(part: Any) -> Part:
    known = [(kind, part[kind]) for kind in ("text", "image") if part.get(kind) is not None] if isinstance(part, Mapping) else []
    if len(known) != 1:
        raise ValueError("a part that is not {text} or {image}")
    return known[0]


def _mmc4(texts: list[Any], about: list[Any]) -> list[Part]:
    before: dict[int, list[Part]] = {}
    for image in about:
        name = image.get("image_name") if isinstance(image, Mapping) else None
        place = image.get("matched_text_index") if isinstance(image, Mapping) else None
        if not name or not isinstance(place, int) or not 0 <= place < len(texts):
            raise ValueError(f"an image_info without image_name or with matched_text_index {place!r}, of {len(texts)} texts")
        before.setdefault(place, []).append(("image", name))
    return [part for k, text in enumerate(texts) for part in (*before.get(k, ()), ("text", text or ""))]


def markdown_parts(text: str) -> tuple[list[Part], dict[str, Any]]:
    """The parts of a Markdown text in order, and ``{"alt": alternative texts of its images}`` where there are any."""
    parts: list[Part] = []
    alternatives, end = [], 0
    for match in _PICTURE.finditer(text):
        parts += [("text", text[end : match.start()]), ("image", match["angled"] or unquote(match["path"]))]
        alternatives.append(clean(match["alt"]))
        end = match.end()
    parts.append(("text", text[end:]))
    return parts, ({"alt": alternatives} if any(alternatives) else {})
