"""The images of the rows of a table, of which an image may be stored once and be named by other rows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from diptych.benchmarks.pictures import ImageRef, Pictures, embedded
from diptych.benchmarks.tables import Row

IDS = ("index", "id", "question_id")
LONGEST_NAME = 200  # characters; a longer text in the column image is an image in base64
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")  # of image files


class RowImages:
    """The image of each row and the name of its cluster. VLMEvalKit's tables (MMBench, SEED, MME, POPE) store an image once; the
    other rows hold the index of a row that has it, or of one that refers further.
    """

    def __init__(self, rows: Sequence[Row], pictures: Pictures, needed: bool = True):
        self.pictures, self.needed = pictures, needed
        cells = {row.text(*IDS): row.get("image") for row in rows if any(row.get(name) is not None for name in IDS)}
        stored = {name: cell for name, cell in cells.items() if is_base64(cell)}
        self.shared = dict(stored)
        if stored:
            for row in rows:
                name, seen = _name(row.get("image")), set[str]()
                while name in cells and name not in stored and name not in seen:
                    seen.add(name)
                    name = _name(cells[name])
                if name in stored:
                    self.shared |= dict.fromkeys(seen, stored[name])

    def holds(self, row: Row) -> bool:
        """Whether the image is in the table: in this row's cell ``image``, or in that of the row that it refers to."""
        value = row.get("image")
        return isinstance(value, bytes | dict) or is_base64(value) or (value is not None and _name(value) in self.shared)

    def of(self, row: Row, *names: str) -> tuple[ImageRef, str]:
        """The image and its name; without ``needed`` both may be empty. ``names``: fields to look in after ``image``."""
        value = row.get("image") if row.get("image") is not None else row.get("image_1")
        name = str(row.get("image_path") or "")
        if isinstance(value, str | int | float) and _name(value) in self.shared:
            value = self.shared[_name(value)]
        elif isinstance(value, str | int | float) and not is_base64(value):
            return self.pictures.path(str(value), row.where), str(value)
        elif value is None:
            fields = names or ("image_path", "img", "file_name", "image_id")
            name = row.text(*fields) if self.needed else name or str(row.get("image_id") or "")
            return self.pictures.path(name, row.where), name
        data = embedded(value, row.where) if self.needed else repr(value).encode()
        return data, name or hashlib.blake2b(data, digest_size=8).hexdigest()


def _name(value: object) -> str:
    """The id in a cell; tables with empty cells write whole numbers as 3.0."""
    return str(value).strip().removesuffix(".0")


def is_base64(value: object) -> bool:
    """Whether a cell holds an image in base64 and not the name of a file: by its length, or by how image files start."""
    if not isinstance(value, str) or len(value) < 60:
        return False
    if len(value) > LONGEST_NAME or value.startswith("data:"):
        return True
    try:
        return base64.b64decode(value, validate=True).startswith(_STARTS)
    except ValueError:
        return False
