"""What an address holds, picture by picture: a folder of pictures, with or without captions, or any data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diptych.core.capabilities import Image
from diptych.core.errors import DiptychError
from diptych.core.sample import Sample
from diptych.data.image import CONVERT, SUFFIXES, UNREAD, decode
from diptych.data.inspect import ENDLESS
from diptych.data.source import BrokenItem, Source
from diptych.data.storage import files


@dataclass(frozen=True)
class Picture:
    """One of them: its id, and what could be read, or the reason why nothing could."""

    id: str
    image: Image | None
    captions: tuple[str, ...] = ()
    label: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Pictures:
    """The pictures of an address. ``read(i)`` never raises for a broken picture.

    keys: a name of each that is the same whenever the address is opened. version: changes when the data does; "" for a folder,
    where pictures are known by their paths, so that new ones can be added. named: whether the key is the picture's id.
    """

    address: str
    keys: list[str]
    read: Callable[[int], Picture]
    version: str
    named: bool

    def __len__(self) -> int:
        return len(self.keys)


def pictures_of(address: str, split: str = "all", limit: int | None = None, captions: bool = False) -> Pictures:
    """The pictures of an address. captions: texts are needed, so a folder is read as ``folder:`` does.

    split: a part of the data, ``all`` for everything. DiptychError if there is none.
    """
    place = files.normal(address.removeprefix("folder:"))
    plain = split == "all" and not captions and files.is_local(place) and Path(place).is_dir()
    packed = not address.startswith("folder:") and (Path(place) / "manifest.json").is_file()
    result = _of_folder(Path(place), address) if plain and not packed else _of_source(address, split, limit)
    if limit is not None and len(result) > limit:
        result = Pictures(result.address, result.keys[:limit], result.read, result.version, result.named)
    if not len(result):
        raise DiptychError(f"{address}: no pictures{'' if split == 'all' else f' in its part {split}'}")
    return result


def _of_folder(folder: Path, address: str) -> Pictures:
    """All pictures below a folder, those that are not decoded too, by their paths from it."""
    known = (*SUFFIXES, *UNREAD)
    found = [path for path in files.find(str(folder)) if path.lower().endswith(known)]
    if not found:
        raise DiptychError(f"{folder}: no pictures in it ({' '.join(SUFFIXES)})")
    names = [path.encode("utf-8", "backslashreplace").decode() for path in found]  # names that are not UTF-8

    def read(index: int) -> Picture:
        """The picture of a file."""
        name = names[index]
        if kind := UNREAD.get(PurePosixPath(name.lower()).suffix):
            return Picture(name, None, reason=f"{kind} {CONVERT}")
        try:
            return Picture(name, decode((folder / found[index]).read_bytes(), name))
        except BrokenItem as broken:
            return Picture(name, None, reason=broken.problem.reason)
        except OSError as error:
            return Picture(name, None, reason=f"cannot be read: {error.strerror}")

    return Pictures(address, names, read, "", True)


def _of_source(address: str, split: str, limit: int | None) -> Pictures:
    from diptych.data.sources import open_source

    source = open_source(address)
    if split != "all":
        source = source.split(split)
    if len(source) >= ENDLESS and limit is None:
        raise DiptychError(f"{address} has no end; say how many pictures: --limit 1000")
    # What a source lists as unusable may also be an empty caption, or a text without a picture: only pictures become rows.
    lost = [p for p in source.problems if p.reason.startswith("there is no file") or CONVERT in p.reason]
    number = len(source) if limit is None else min(len(source), limit)

    def read(index: int) -> Picture:
        """The picture of an item, or of a problem of the source after the items."""
        if index >= number:
            return Picture(lost[index - number].item, None, reason=lost[index - number].reason)
        return picture_of(source, index)

    fingerprint = hashlib.blake2b(f"{source.fingerprint()} {split} {limit}".encode(), digest_size=8).hexdigest()
    return Pictures(address, [str(i) for i in range(number + len(lost))], read, fingerprint, False)


def picture_of(source: Source, index: int) -> Picture:
    """An item of a source."""
    try:
        sample: Sample = source[index]
    except BrokenItem as broken:
        return Picture(broken.problem.item, None, reason=broken.problem.reason)
    label = sample.fields.get("label")
    if sample.image is None:
        return Picture(sample.id, None, reason="has no image")
    return Picture(sample.id, sample.image, tuple(sample.captions), None if label is None else label.name)
