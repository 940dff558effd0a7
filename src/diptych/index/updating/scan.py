"""What there is to index: the pictures of a folder, with the texts next to them, or the items of any data address."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from diptych.core.capabilities import Model
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.clips import clips_as_images
from diptych.data.image import CONVERT, SUFFIXES, UNREAD
from diptych.data.inspect import ENDLESS
from diptych.data.source import BrokenItem, Problem, Source
from diptych.data.sources import SCHEMES, open_source
from diptych.data.sources.base import ListedSource, Names, clean
from diptych.data.sources.folder import by_file_or_in_table
from diptych.data.sources.video import CLIPS, frame_folders
from diptych.data.storage import files
from diptych.data.videos.single import read_clip

LONGEST = 2000  # characters of a column's text
NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,9})?")  # a text that is one; 007 is a name
PLACES = ("images", "instances")  # options of addresses that are paths
RECENT = 2.0  # seconds: a file that was written so shortly before may change again without another time


@dataclass(slots=True)
class Item:
    """A picture that is there. stamp: changes when it does; "" if that is not known before it is read. size: of its file, -1 if it
    has none of its own. path: of its file. reason: why it cannot be read, known from its name. raw: the name as it is on the disk,
    where that is not UTF-8.
    """

    name: str
    stamp: str
    size: int = -1
    mtime_ns: int = 0
    path: str = ""
    position: int = -1
    captions: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    raw: bytes | None = None

    @property
    def folder(self) -> str:
        """The folder of the name, "" at the top."""
        parent = str(PurePosixPath(self.name).parent)
        return "" if parent == "." else parent


class Collection(Protocol):
    """The pictures of one address."""

    address: str
    of_clips: bool  # whether the items are clips, [frames, height, width, 3], which only some models read

    def items(self) -> Iterator[Item]:
        """All that are there, in a fixed order, each name once."""
        ...

    def content(self, item: Item) -> bytes | np.ndarray:
        """The file of an item that has none of its own, or its pixels. Raises ``BrokenItem``."""
        ...

    def path_of(self, name: str, raw: bytes | None, position: int) -> str:
        """The path of an item's file by what the catalog holds of it; "" if it has none of its own."""
        ...


def absolute(address: str) -> str:
    """An address with the place of a folder or a file on this machine as an absolute path, so that it holds in any directory."""
    scheme, mark, rest = address.partition(":")
    known = bool(mark) and scheme in SCHEMES
    place, query, options = (rest if known else address).partition("?")
    local = files.normal(place)
    if not files.is_local(place) or scheme in ("openmoji", "repeated", "control", "shots", "facts"):
        return address
    head = f"{scheme}:" if known else ""
    if not known and os.path.isdir(local) and not os.path.isfile(os.path.join(local, "manifest.json")):
        head = "folder:"
    if os.path.exists(local) or (known and scheme != "folder" and os.path.exists(os.path.dirname(local) or ".")):
        given = "&".join(_absolute_option(option, os.path.dirname(local)) for option in options.split("&"))
        return f"{head}{os.path.abspath(local)}{query}{given}"
    return address


def _absolute_option(option: str, folder: str) -> str:
    """An option of an address that names a place as seen from here, not from the folder of the data."""
    name, _, value = option.partition("=")
    here = name in PLACES and files.is_local(value) and os.path.exists(value) and not os.path.exists(os.path.join(folder, value))
    return f"{name}={os.path.abspath(value)}" if here else option


def shown_path(address: str, name: str) -> str:
    """The path of a picture as it is shown: of its file, if it is one below a folder; else its name in the data."""
    place = files.normal(address.removeprefix("folder:"))
    path = os.path.join(place, name)
    return os.path.relpath(path) if files.is_local(place) and os.path.isfile(path) else name


def collection(address: str, limit: int | None = None) -> Collection:
    """The pictures of an address. limit: at most so many. DiptychError if it cannot be opened, or has no end and no limit."""
    films = files.normal(address.removeprefix("video:"))
    if address.startswith("video:") and files.is_local(films) and Path(films).is_dir():
        return Films(address, Path(films), limit)
    place = files.normal(address.removeprefix("folder:"))
    plain = files.is_local(place) and Path(place).is_dir()
    packed = not address.startswith("folder:") and (Path(place) / "manifest.json").is_file()
    if plain and not packed:
        return Files(address, Path(place), limit)
    return Items(address, limit)


def check_clips(collections: Sequence[Collection], model: Model) -> None:
    """Raises DiptychError if there are clips and the model reads pictures."""
    clips = next((each for each in collections if each.of_clips), None)
    if clips is not None and getattr(model, "shows", "image") != "video":
        raise DiptychError(
            f"{clips.address} has clips, and {model.name} reads pictures: --model pooled:MODEL reads clips frame by frame, "
            "or take a model that learned from clips, such as one of clip4clip"
        )


class Files:
    """All pictures below a folder, by their paths; captions and columns from the files next to them or from tables, as ``folder:``
    reads them.
    """

    of_clips = False

    def __init__(self, address: str, folder: Path, limit: int | None = None):
        self.address, self.folder, self.limit = address, folder, limit

    def items(self) -> Iterator[Item]:
        """The pictures in the order of their paths."""
        known = (*SUFFIXES, *UNREAD)
        found = [p for p in files.find(str(self.folder)) if not _in_index(p, self.folder)]
        paths = [path for path in found if path.lower().endswith(known)][: self.limit]
        texts = self._texts(paths, found) if len(found) > len(paths) else {}
        for path in paths:
            try:
                status = os.stat(self.folder / path)
            except OSError:
                continue  # deleted since
            name = path.encode("utf-8", "backslashreplace").decode()
            captions, columns = texts.get(path, ([], {}))
            kind = UNREAD.get(PurePosixPath(path.lower()).suffix)
            yield Item(
                name, stamp_of(status), status.st_size, status.st_mtime_ns, str(self.folder / path),
                captions=captions, columns=columns, reason=f"{kind} {CONVERT}" if kind else "",
                raw=None if name == path else os.fsencode(path),
            )  # fmt: skip

    def _texts(self, paths: list[str], found: list[str]) -> dict[str, tuple[list[str], dict[str, Any]]]:
        """Captions and columns of each picture that has any."""
        problems: list[Problem] = []
        result: dict[str, tuple[list[str], dict[str, Any]]] = {}
        for entry in by_file_or_in_table(str(self.folder), paths, found, problems):
            captions, columns = result.setdefault(entry.id, ([], {}))
            captions += [c for c in map(clean, entry.captions) if c and c not in captions]
            columns.update(plain_columns(entry.extra))
        return result

    def content(self, item: Item) -> bytes | np.ndarray:
        """Never used: all items are files."""
        raise BrokenItem(item.name, "is not a file")

    def path_of(self, name: str, raw: bytes | None, position: int) -> str:
        """The path of a picture's file."""
        return str(self.folder / (name if raw is None else os.fsdecode(raw)))


class Films(Files):
    """All clips below a folder: files, and folders of numbered pictures; captions and columns as for pictures. Of each 32 frames
    are read, as ``video:`` reads them.
    """

    of_clips = True

    def items(self) -> Iterator[Item]:
        """The clips in the order of their paths."""
        found = [p for p in files.find(str(self.folder)) if not _in_index(p, self.folder)]
        folders = frame_folders(found)
        paths = sorted([*(path for path in found if path.lower().endswith(CLIPS)), *folders])[: self.limit]
        texts = self._texts(paths, found) if len(found) > len(paths) else {}
        for path in paths:
            try:
                held = [os.stat(self.folder / each) for each in folders.get(path, (path,))]
            except OSError:
                continue  # deleted since
            captions, columns = texts.get(path, ([], {}))
            stamp = ";".join([stamp_of(held[0]), *([] if len(held) == 1 else [f"{len(held)}", stamp_of(held[-1])])])
            latest = max(status.st_mtime_ns for status in held)
            yield Item(
                path.encode("utf-8", "backslashreplace").decode(), stamp, sum(status.st_size for status in held), latest,
                captions=captions, columns=columns,
            )  # fmt: skip

    def content(self, item: Item) -> bytes | np.ndarray:
        """The frames of a clip. Raises ``BrokenItem``."""
        return read_clip(self.folder / item.name)

    def path_of(self, name: str, raw: bytes | None, position: int) -> str:
        """ "": what is indexed of a clip is its frames, not its file."""
        return ""


class Items:
    """The items of a data source, by their ids."""

    def __init__(self, address: str, limit: int | None = None):
        self.address = address
        self.source: Source = open_source(address)
        if len(self.source) >= ENDLESS and limit is None:
            raise DiptychError(f"{address} has no end; say how many pictures: --limit 1000")
        self.length = len(self.source) if limit is None else min(len(self.source), limit)
        fields = getattr(self.source, "fields", ())
        self.of_clips = "video" in fields and "image" not in fields
        # Whether the entries say by themselves when they change, so that nothing must be read to know.
        self._by_file = isinstance(self.source, ListedSource) and all(
            e.stamp or (isinstance(e.where, str) and files.is_local(e.where)) for e in self.source._entries
        )

    def items(self) -> Iterator[Item]:
        """The items in the order of the source; what it lists as unusable because of its picture comes last."""
        names = Names()
        listed: Callable[[int], Sample] | None = getattr(self.source, "listed", None)
        common = "" if self._by_file else f"data:{self.source.fingerprint()}"
        for position in range(self.length):
            try:
                sample = listed(position) if listed else self.source[position]
            except BrokenItem as broken:
                yield Item(names.new(broken.problem.item), common, position=position, reason=broken.problem.reason)
                continue
            item = Item(names.new(sample.id), common and f"{common}:{position}", position=position)
            item.captions, item.columns = list(sample.captions), columns_of(sample)
            if self._by_file:
                assert isinstance(self.source, ListedSource)
                entry = self.source._entries[position]
                if isinstance(entry.where, str) and files.is_local(entry.where):
                    try:
                        status = os.stat(entry.where)
                        item.size, item.mtime_ns = status.st_size, status.st_mtime_ns
                        item.path = "" if self.of_clips else entry.where
                        item.stamp = stamp_of(status)
                    except OSError:
                        item.reason = f"there is no file {entry.where}"
                else:
                    item.stamp = f"entry:{entry.stamp}" if entry.stamp else ""
            yield item
        for problem in self.source.problems:  # an empty caption, or a text without a picture, is no picture
            if problem.reason.startswith("there is no file") or CONVERT in problem.reason:
                yield Item(names.new(problem.item), "missing", reason=problem.reason)

    def content(self, item: Item) -> bytes | np.ndarray:
        """The file of an item as it is stored, or its pixels where the source has no files. Raises ``BrokenItem``."""
        if self.of_clips:
            clip: np.ndarray = clips_as_images(self.source)[item.position].image  # type: ignore[assignment]
            return clip
        encoded = getattr(self.source, "encoded", None)
        data = encoded(item.position) if encoded else None
        if isinstance(data, bytes):
            return data
        image = self.source[item.position].image
        if image is None:
            raise BrokenItem(item.name, "has no image")
        return image

    def path_of(self, name: str, raw: bytes | None, position: int) -> str:
        """The path of an item's file, if it has one."""
        if self.of_clips or not isinstance(self.source, ListedSource) or not 0 <= position < self.length:
            return ""
        where = self.source._entries[position].where
        return where if isinstance(where, str) and files.is_local(where) else ""


def stamp_of(status: os.stat_result) -> str:
    """What a file's size and time of change say of its content."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def columns_of(sample: Sample) -> dict[str, Any]:
    """The facts of a sample that can be filtered by: its class as ``label``, and the numbers and texts of ``extra``."""
    label = sample.fields.get("label")
    own = {} if label is None else {"label": label.name}
    return {**plain_columns(sample.extra), **own}


def plain_columns(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, truth values and texts among facts; a text that is a number counts as one."""
    return {str(k): value for k, v in extra.items() if (value := _plain(v)) is not None}


def _plain(value: Any) -> str | int | float | bool | None:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool | int):
        return value if -(2**63) <= value < 2**63 else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, str) or not value.strip():
        return None
    text = value.strip()
    if NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text if len(text) <= LONGEST else text[:LONGEST]


def _in_index(path: str, folder: Path) -> bool:
    """Whether a file lies in an index, such as one in the folder that it is of."""
    parts = path.split("/")[:-1]
    return any(
        part.endswith(".index") and (folder / "/".join(parts[: i + 1]) / "catalog.sqlite").is_file() for i, part in enumerate(parts)
    )
