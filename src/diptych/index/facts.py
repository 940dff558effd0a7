"""What an index knows of a picture, and what an update changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PictureFacts:
    """One picture of an index.

    name: its path from the top of the folder, with ``/``, or its id in the data. address: of the data. folder: of the name, "" at
    the top. bytes: of the file; 0 where the data holds pixels. date: as the camera wrote it, else when the file was changed,
    ``2024-05-01T12:30:00``; "" where the data knows none. caption: a line for each. columns: of the data, by name. duplicate_of:
    the id of the first picture of the same group of near-duplicates, its own id where it is the first or alone. state: ``ok`` or
    ``broken``, with the ``reason``.
    """

    id: int
    name: str
    address: str
    folder: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    date: str = ""
    caption: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    duplicate_of: int = 0
    state: str = "ok"
    reason: str = ""


@dataclass
class Changes:
    """What an update did, in numbers of pictures: each that is there is counted in one of ``new``, ``changed``, ``renamed``,
    ``unchanged`` and ``broken``.

    changed: the content of a known picture is another. renamed: a known content under another name; it keeps its id and its vector.
    deleted: no longer there. described: of the unchanged ones, those with other captions or columns. unchanged: also broken ones
    that were known to be broken. broken: those that this update could not read, by name, with the reason.
    """

    new: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    described: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Pictures that are there now, broken ones too."""
        return self.new + self.changed + self.renamed + self.unchanged + len(self.broken)
