"""A picture from its file to what the catalog holds of it, in a thread of its own."""

from __future__ import annotations

import io
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from diptych.core.errors import DiptychError
from diptych.data.clips import strip
from diptych.data.hashes.perceptual import colours, phashes, pixel_hash
from diptych.data.image import decode
from diptych.data.source import BrokenItem
from diptych.data.storage.digests import digest
from diptych.index.updating.scan import RECENT, Collection, Item, stamp_of

ATTEMPTS = 3  # of reading a file that changes meanwhile
SIDE = 96  # pixels from which near-duplicates are known
UNSTABLE = "unstable"  # the stamp of a file that may change again: it is compared by content at the next update
_TAKEN = (0x9003, 0x9004, 0x0132)  # EXIF: when the picture was taken, digitised, changed
_EXIF = 0x8769


@dataclass(slots=True)
class Read:
    """What reading an item gave. pixels: uint8 [height, width, 3], upright, of a clip [frames, height, width, 3];
    None if it is broken, for the ``reason``.

    stamp: of the content that was read. size: of its file, in bytes. colours: mean colours of 4 × 4 fields, 48 bytes.
    """

    item: Item
    stamp: str
    digest: bytes = b""
    pixels: np.ndarray | None = None
    reason: str = ""
    date: str = ""
    size: int = 0
    mtime_ns: int = 0
    phash: bytes = b""
    colours: bytes = b""


class Changing(Exception):  # noqa: N818 - an outcome of reading
    """A file that has changed again each time that it was read."""


def content_of(item: Item, collection: Collection) -> tuple[bytes | np.ndarray, str, int]:
    """The content of an item, its stamp, and the time of its last change. Raises ``BrokenItem``, ``OSError`` and ``Changing``."""
    if not item.path:
        return collection.content(item), item.stamp, item.mtime_ns
    for _ in range(ATTEMPTS):
        with open(item.path, "rb") as file:
            before = os.fstat(file.fileno())
            data = file.read()
        after = os.stat(item.path)
        same = (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
        if same and len(data) == after.st_size:
            # Two changes within the resolution of the clock have one time: what was written just now is compared by content later.
            recent = abs(time.time() - after.st_mtime) < RECENT
            return data, f"{UNSTABLE}:{stamp_of(after)}" if recent else stamp_of(after), after.st_mtime_ns
        time.sleep(0.05)
    raise Changing(f"changed while it was read, {ATTEMPTS} times; index again when it is complete")


def digest_of(item: Item, collection: Collection) -> tuple[bytes, str]:
    """The hash of an item's content, and its stamp. b"" if it cannot be read."""
    try:
        content, stamp, _ = content_of(item, collection)
    except (BrokenItem, OSError, Changing, DiptychError):
        return b"", UNSTABLE
    return hash_of(content), stamp


def hash_of(content: bytes | np.ndarray) -> bytes:
    """16 bytes: of a file, or of pixels."""
    return pixel_hash(content) if isinstance(content, np.ndarray) else digest(content)


def read(item: Item, collection: Collection) -> Read:
    """Reads and decodes an item. Never raises for a broken one."""
    if item.reason:
        return Read(item, item.stamp, reason=item.reason, size=max(item.size, 0), mtime_ns=item.mtime_ns)
    try:
        content, stamp, mtime_ns = content_of(item, collection)
    except BrokenItem as broken:
        return Read(item, item.stamp, reason=broken.problem.reason)
    except Changing as problem:
        return Read(item, UNSTABLE, reason=str(problem))
    except OSError as error:
        return Read(item, UNSTABLE, reason=f"cannot be read: {error.strerror or error}")
    except DiptychError as error:
        return Read(item, item.stamp, reason=str(error))
    result = Read(item, stamp, hash_of(content), mtime_ns=mtime_ns)
    if isinstance(content, np.ndarray):
        result.pixels = content
    else:
        result.size = len(content)
        try:
            result.pixels = decode(content, item.name)
            result.date = date_of(content)
        except BrokenItem as broken:
            result.reason = broken.problem.reason
            return result
    if not result.date and mtime_ns:
        with suppress(ValueError, OverflowError, OSError):  # a time that no calendar has
            result.date = datetime.fromtimestamp(mtime_ns // 10**9).isoformat(timespec="seconds")
    small = reduced(picture_of(result.pixels))
    result.phash, result.colours = phashes([small]).astype(">u8").tobytes(), colours(small)
    return result


def picture_of(pixels: np.ndarray) -> np.ndarray:
    """A picture as it is; of a clip, [frames, height, width, 3], eight of its frames in two rows, so that its order counts."""
    return pixels if pixels.ndim == 3 else strip(pixels, height=SIDE * 2, columns=4)[0]


def reduced(pixels: np.ndarray) -> np.ndarray:
    """A picture divided by a whole number, so that its shorter side is at least ``SIDE``: enough for hashes, in half the time."""
    from PIL import Image

    factor = min(pixels.shape[:2]) // SIDE
    return pixels if factor < 2 else np.asarray(Image.fromarray(pixels).reduce(factor))


def date_of(data: bytes) -> str:
    """When a picture was taken, by its EXIF data: ``2024-05-01T12:30:00``; "" if it does not say, or says it wrongly."""
    if data.find(b"Exif", 0, 65536) < 0 and data.find(b"eXIf", 0, 65536) < 0 and data.find(b"EXIF", max(0, len(data) - 65536)) < 0:
        return ""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            exif = image.getexif()
            known = {**dict(exif), **dict(exif.get_ifd(_EXIF))}
    except Exception:  # hostile or damaged data raise anything
        return ""
    for tag in _TAKEN:
        match = re.match(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", str(known.get(tag, "")))
        if match:
            try:
                return datetime(*map(int, match.groups())).isoformat(timespec="seconds")  # type: ignore[arg-type]
            except ValueError:
                continue
    return ""
