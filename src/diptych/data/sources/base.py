"""Base class of the sources of files: they list entries, and this class makes samples, splits and fingerprints of them."""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from diptych.core.errors import DiptychError, nearest
from diptych.core.sample import Region, Sample, captioned
from diptych.data.image import decode
from diptych.data.regions.outlines import drawn
from diptych.data.source import BrokenItem, Problem
from diptych.data.storage import digests, files

PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # shares of the hash's range
IMAGE_COLUMNS = ("image", "image_path", "file", "file_name", "filename", "filepath", "path", "url", "image_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "comment")

# Control characters, byte-order marks and half surrogates; tabs and line ends count as spaces.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")


@dataclass(slots=True)
class Entry:
    """One image as listed, before anything is decoded."""

    id: str  # path, row or key, as a user would look it up
    where: Any  # what ``read`` needs; a plain string is the URL of an image file
    captions: list[str]
    extra: dict[str, Any] = field(default_factory=dict)
    stamp: str = ""  # of this image alone, changes when its bytes do; "": not known, so their hash is not kept
    fields: dict[str, Any] = field(default_factory=dict)  # of the sample, known without decoding: a label, regions


def clean(caption: str) -> str:
    """One line, without control characters. Never shortened: that is left to the tokenizer."""
    return " ".join(_CONTROL.sub("", caption).split())


def texts(value: Any, key: str = "", names: bool = False) -> list[str]:
    """The captions in a field: a text, several, or none. A text that is a list as JSON or Python writes it is several: a table
    holds it so.

    key: where the texts are within objects (``split_key``). names: of classes, which may be numbers. ValueError for objects,
    numbers and lists in lists, which are no captions.
    """
    if isinstance(value, str):
        value = written_list(value)
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if key:
        given = [v.get(key) if isinstance(v, Mapping) else v for v in given]
        given = [v for inner in given for v in (inner if isinstance(inner, list) else [inner])]
    found = [v for v in given if v is not None and v == v]  # NaN, by which pandas marks a missing value
    for v in found:
        if not isinstance(v, str) and not (names and isinstance(v, (int, float))):
            raise ValueError(_not_a_text(v, "class" if names else "caption"))
    return [str(v) for v in found]


def _not_a_text(value: Any, what: str) -> str:
    """Why a value is no caption, or no class, and what to do."""
    if isinstance(value, Mapping):
        inner = [str(k) for k, v in value.items() if isinstance(v, str)]
        example = f": ?{'label' if what == 'class' else what}=COLUMN.{inner[0]}" if inner else ""
        keys = ", ".join(map(str, value))
        return f"a {what} given as an object with the keys {keys}; name the one that holds the text{example}, or write texts"
    return f"a {what} given as {type(value).__name__} {str(value)[:40]}; expected a text or a list of texts"


_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None)"""
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_TEXT}(?:\s*,\s*|\s+|(?=\])))*\]", re.DOTALL)  # numpy puts no commas


def written_list(text: str) -> Any:
    """A list of texts, or an object, that stands in a text as JSON or as Python writes it; else the text."""
    bare = text.strip()
    if bare[:1] + bare[-1:] not in ("[]", "{}"):
        return text
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if isinstance(found, list):
        return found if found and not all(isinstance(v, (int, float)) for v in found) else text if found else []
    if bare[0] == "[" and _PYTHON_LIST.fullmatch(bare):
        return [ast.literal_eval(part) for part in re.findall(_TEXT, bare, re.DOTALL)]
    try:
        found = ast.literal_eval(bare)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, (dict, list)) and found else text


def split_key(columns: Sequence[str], name: str) -> tuple[str, str]:
    """``captions.raw`` → the column and the key within its objects, unless a column is called so; the key is "" for a column."""
    column, _, key = name.partition(".")
    return (name, "") if name in columns or column not in columns else (column, key)


def column(columns: list[str], names: tuple[str, ...], chosen: str | None, option: str, where: str) -> str:
    """The column called ``chosen``, or the first of the usual ``names``; else an error with the remedy. ``chosen`` may name a key
    of a column's objects, ``captions.raw``.
    """
    if chosen is not None:
        if split_key(columns, chosen)[0] not in columns:
            hint = nearest(chosen, columns)
            raise DiptychError(f"{where}: no {option} column '{chosen}'{hint}; columns: {', '.join(columns)}")
        return chosen
    by_name = {c.lower(): c for c in reversed(columns)}
    for wanted in names:
        if wanted in by_name:
            return by_name[wanted]
    raise DiptychError(
        f"{where}: no {option} column (looked for {', '.join(names)}); columns: {', '.join(columns) or 'none'}; "
        f"name yours with ?{option}=NAME"
    )


def file_column(columns: list[str], names: tuple[str, ...], chosen: str | None, first: Mapping[str, Any], where: str) -> str:
    """The column of paths: as ``column``, but of several with usual names the first that holds a path in the first row, since
    ``image`` may be a number next to ``file_name``.
    """
    known = [c for n in names for c in columns if c.lower() == n]
    likely = [c for c in known if re.search(r"[/\\\\]|\.\w+\s*$", str(first.get(c, "")))]
    return column(likely if chosen is None and likely else columns, names, chosen, "image", where)


@cache
def note_choice(where: str, option: str, chosen: str, others: tuple[str, ...]) -> None:
    """Say once which column of several was taken."""
    more = ", ".join(f"?{option}={other}" for other in others)
    print(f"note: {where}: the {option} is read from the column '{chosen}'; others: {more}", file=sys.stderr)


def word_column(columns: list[str], words: tuple[str, tuple[str, ...]], chosen: str | None, where: str) -> str:
    """The column of texts, by ``column``; if there are several with usual names, a note says which was taken."""
    option, names = words
    found = column(columns, names, chosen, option, where)
    others = tuple(c for c in columns if c.lower() in names and c != found)
    if chosen is None and others:
        note_choice(where, option, found, others)
    return found


class ListedSource(ABC):
    """A ``Source`` over a list of entries. A format defines how to list them and, unless they are files, how to read one.

    Captions that are empty and images that are missing are left out and recorded in ``problems``; entries with the
    same id are one sample with several captions, equal captions once.
    """

    looked_for = "images with captions"
    medium = "image"  # the field that decoding yields

    def __init__(self, place: str):
        self.place = files.normal(place)
        self.address = place
        self.problems: list[Problem] = []
        self.part: str | None = None
        self._digests: list[bytes] | None = None
        self._entries = self._usable()
        if not self._entries:
            reasons = "".join(f"\n  {p.item}: {p.reason}" for p in self.problems[:3])
            raise DiptychError(f"{place}: empty data set: found no {self.looked_for}{reasons}")
        self.fields: tuple[str, ...] = self._fields()

    def _fields(self) -> tuple[str, ...]:
        """Names of the fields that samples have, each at least one of them."""
        known = dict.fromkeys(name for entry in self._entries for name in entry.fields)
        text = ("text",) if any(entry.captions for entry in self._entries) else ()
        return (self.medium, *text, *known)

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every image that the address names. May add to ``problems``; DiptychError if it cannot be listed."""

    def read(self, entry: Entry) -> bytes:
        """The image's bytes, still encoded. Raises ``OSError`` or ``DiptychError``."""
        return files.read(entry.where)

    def _usable(self) -> list[Entry]:
        merged: dict[str, Entry] = {}
        for entry in self.entries():
            first = merged.setdefault(entry.id, entry)
            if first is not entry:
                first.captions += entry.captions
                for name, value in entry.fields.items():
                    if isinstance(value, list):  # regions of one image may be in several rows
                        first.fields[name] = [*first.fields.get(name, []), *value]
        stamps = files.stamps(url for e in merged.values() for url in self.files_of(e))
        return [e for e in merged.values() if self._is_usable(e, stamps)]

    def files_of(self, entry: Entry) -> Sequence[str]:
        """URLs of the files that an entry needs; none if it lies within a larger file."""
        return [entry.where] if isinstance(entry.where, str) else []

    def _is_usable(self, entry: Entry, stamps: Mapping[str, str | None]) -> bool:
        captions = [clean(c) for c in entry.captions]
        if not self.has_content(entry):
            self.problems.append(Problem(entry.id, "no caption"))
        self.problems += [Problem(entry.id, "empty caption") for c in captions if not c]
        entry.captions = list(dict.fromkeys(c for c in captions if c))
        needed = self.files_of(entry)
        for url in needed:
            if stamps[url] is None:
                self.problems.append(Problem(entry.id, f"there is no file {url}"))
                return False
        if needed:
            entry.stamp = joined_stamp([stamps[url] or "" for url in needed])
        return self.has_content(entry)

    def has_content(self, entry: Entry) -> bool:
        """Whether an image has anything to learn from."""
        return bool(entry.captions or entry.fields)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        return self.sample_of(index, self.encoded(index))

    def encoded(self, index: int) -> bytes | None:
        """The image as it is stored; None if a sample of this source is not one image. Raises ``BrokenItem``."""
        return self.image_bytes(self._entries[index])

    def sample_of(self, index: int, encoded: bytes | None) -> Sample:
        """The sample, given what ``encoded(index)`` returned. Raises ``BrokenItem``."""
        entry = self._entries[index]
        image = None if encoded is None else decode(encoded, entry.id)
        return self.sample(entry, image=image)

    def sample(self, entry: Entry, **decoded: Any) -> Sample:
        """The sample of an entry with what was decoded of it."""
        text = captioned(entry.captions) if entry.captions else None
        fields = entry.fields
        if "regions" in fields:
            image = decoded.get("image")
            height, width = (None, None) if image is None else image.shape[:2]

            def wrong(number: int, reason: str) -> None:
                """Records a region that cannot be used."""
                self._note(f"{entry.id}, region {number}", reason)

            fields = {**fields, "regions": drawn(fields["regions"], height, width, wrong) or None}
        return Sample(entry.id, dict(entry.extra), **decoded, text=text, **fields)

    def _note(self, item: str, reason: str) -> None:
        """Records what only decoding shows to be wrong, once."""
        if all(problem.item != item for problem in self.problems):
            self.problems.append(Problem(item, reason))

    def listed(self, index: int) -> Sample:
        """One item without its image: its id, its captions and what else is known without decoding, such as a label."""
        return self.sample(self._entries[index])

    def captions(self, index: int) -> list[str]:
        """The captions of one item, without decoding its image."""
        return list(self._entries[index].captions)

    def image_bytes(self, entry: Entry) -> bytes:
        """Like ``read``, but every error becomes a ``BrokenItem``."""
        try:
            return self.read(entry)
        except Exception as error:  # remote file systems raise errors of their own
            raise BrokenItem(entry.id, f"cannot be read: {error}") from error

    def digests(self) -> list[bytes]:
        """A 16-byte hash of each item's encoded image. Reads every image once; kept in the user's cache."""
        if self._digests is None:
            self._digests = digests.of_entries(self.place, self._entries, self.image_bytes)
        return self._digests

    def fingerprint(self) -> str:
        """A hash of images, captions, other fields and extras; file names and order do not matter."""
        total = hashlib.blake2b(digest_size=16)
        rows = []
        for digest, entry in zip(self.digests(), self._entries, strict=True):
            known = [entry.captions, entry.extra, *([_plain(entry.fields)] if entry.fields else [])]
            rows.append(hashlib.blake2b(digest + json.dumps(known, sort_keys=True, default=str).encode(), digest_size=16).digest())
        for row in sorted(rows):
            total.update(row)
        return total.hexdigest()

    def split(self, name: str) -> ListedSource:
        """The items with an image hash in the part's share: equal images are always in the same part.

        A part of very few items may be empty. A part returns itself for its own name, and raises DiptychError for another.
        """
        if self.part is not None and name == self.part:
            return self
        return self._part_of(name, split_rows(name, self.part, self.address, b"".join(self.digests())).tolist())

    def _part_of(self, name: str, rows: Sequence[int]) -> ListedSource:
        """Some of the items as the part called ``name``."""
        part = copy.copy(self)
        part.part = name
        part.address = f"{self.address}{'&' if '?' in self.address else '?'}split={name}"
        part._entries = [self._entries[i] for i in rows]
        part._digests = None if self._digests is None else [self._digests[i] for i in rows]
        return part


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for a fingerprint. Of regions with no more than box and phrase only these, as before they could have more: the data of
    older runs keeps its fingerprint.
    """
    return {
        name: [v[:2] if isinstance(v, Region) and v[2:] == (None, (), None) else v for v in value]
        if isinstance(value, list)
        else value
        for name, value in fields.items()
    }


class Names:
    """Ids that are unique: a name that comes again is numbered, ``a``, ``a#2``, ``a#3``."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def new(self, name: str) -> str:
        """The id of the next item that is called so."""
        self._seen[name] += 1
        if self._seen[name] == 1:
            return name
        return self.new(f"{name}#{self._seen[name]}")  # unless something is called that, too


def image_of(given: Any, directory: str) -> str | bytes:
    """The URL of an image file, or its bytes, from a path as seen from a directory, a ``data:`` URL, bytes or ``{bytes, path}``.
    ValueError for anything else.
    """
    if isinstance(given, Mapping):
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"an image given as {type(given).__name__}; expected a path, or bytes")
    if given.startswith("data:"):
        head, _, data = given.partition(",")
        try:
            return base64.b64decode(data if head.endswith(";base64") else "?", validate=True)
        except ValueError as error:
            raise ValueError(f"an image given as {head[:40]}: not data in base64") from error
    return files.join(directory, given.strip())


def bytes_of(image: str | bytes) -> bytes:
    """The bytes of what ``image_of`` returned. Raises ``OSError`` or DiptychError."""
    return files.read(image) if isinstance(image, str) else image


def joined_stamp(stamps: Sequence[str]) -> str:
    """The stamp of several files together; "" if one of them is not known."""
    if len(stamps) == 1 or not all(stamps):
        return stamps[0] if len(stamps) == 1 else ""
    return digests.digest("|".join(stamps).encode("utf-8", "surrogateescape")).hex()


def split_rows(name: str, part: str | None, address: str, digests: bytes) -> np.ndarray:
    """Indices of the images with a hash in the share of the part called ``name``.

    part: the part that the source already is, or None; digests: 16 bytes per image, concatenated.
    """
    if name not in PARTS:
        raise DiptychError(f"{address}: no split '{name}'{nearest(name, PARTS)}")
    if part is not None:
        raise DiptychError(f"{address} is only the {part} part; for {name}, remove 'split={part}'")
    low, high = PARTS[name]
    share = np.frombuffer(digests, ">u8")[::2] / 2**64
    return np.flatnonzero((low <= share) & (share < high))
