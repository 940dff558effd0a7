"""``genome:``: Visual Genome's files (Krishna et al., arXiv:1602.07332): regions, objects, attributes, relationships."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.grounded.regions import region_of
from diptych.data.storage import files

LISTS = ("regions", "objects", "attributes", "relationships")
FOLDERS = (".", "images", "VG_100K", "VG_100K_2")


class Genome(ListedSource):
    """``region_descriptions.json``, ``objects.json``, ``attributes.json`` or ``relationships.json``: a list with an entry an image.

    A region's phrase is its description; an object's its name; of ``attributes.json`` the name with its first attribute ("green
    clock"), or with all (``?attributes=all``); of a relationship "subject predicate object" with the box around both. Boxes are x,
    y, width and height. Images are ``ID.jpg`` in ``?images=DIR`` or where ``image_data.json`` next to the file says
    (``VG_100K_2/1.jpg``).
    """

    looked_for = "images with regions"

    def __init__(self, place: str, *, images: str | None = None, attributes: str = "first"):
        if attributes not in ("first", "all"):
            raise DiptychError(f"{place}: attributes is '{attributes}'; expected first or all")
        self.images, self.attributes = images, attributes
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the file names."""
        content = _read_list(self.place)
        kind = next((k for k in LISTS for e in content[:20] if isinstance(e, dict) and isinstance(e.get(k), list)), "")
        if not kind:
            raise DiptychError(f"{self.place}: not a file of Visual Genome: its entries have none of the lists {', '.join(LISTS)}")
        here = files.parent(self.place)
        table = files.join(here, "image_data.json")
        known = {e.get("image_id", e.get("id")): e for e in _read_list(table)} if files.exists(table) else {}
        root = files.directory_of(self.place, self.images)
        folders = [files.join(root, folder) for folder in FOLDERS]
        for at, entry in enumerate(content):
            number = entry.get("image_id", entry.get("id")) if isinstance(entry, dict) else None
            if not isinstance(number, int) or not isinstance(entry.get(kind), list):
                self.problems.append(Problem(f"{files.name(self.place)}: entry {at}", f"needs image_id and the list {kind}"))
                continue
            facts = known.get(number, {})
            size = facts.get("width"), facts.get("height")
            regions = []
            for place, given in enumerate(entry[kind]):
                try:
                    regions.append(self._region(kind, given, size))
                except ValueError as error:
                    self.problems.append(Problem(f"{files.name(self.place)}: image {number}, {kind} {place}", str(error)))
            name = "/".join(str(facts["url"]).split("/")[-2:]) if facts.get("url") else f"{number}.jpg"
            where = next((p for p in _places(folders, name) if files.exists(p)), files.join(root, name))
            extra = {k: v for k in ("coco_id", "flickr_id") if (v := facts.get(k)) is not None}
            yield Entry(f"{number}.jpg", where, [], {"image_id": number, **extra}, fields={"regions": regions} if regions else {})

    def _region(self, kind: str, given: Any, size: tuple[Any, Any]) -> Region:
        """One region, object or relationship. ValueError says what is wrong."""
        if not isinstance(given, Mapping):
            raise ValueError(f"found {type(given).__name__}; expected an object")
        if kind == "relationships":
            subject, other = (self._region("objects", given.get(key), size) for key in ("subject", "object"))
            (a, b, c, d), (e, f, g, h) = subject.box, other.box
            predicate = str(given.get("predicate", "")).lower()
            return Region((min(a, e), min(b, f), max(c, g), max(d, h)), f"{subject.phrase} {predicate} {other.phrase}")
        words = given.get("phrase") if kind == "regions" else _name(given)
        if kind == "attributes" and words:
            found = [str(a).strip() for a in given.get("attributes") or [] if str(a).strip()]
            words = " ".join([*(found if self.attributes == "all" else found[:1]), words])
        box = [given.get(key, given.get(other)) for key, other in (("x", "x"), ("y", "y"), ("w", "width"), ("h", "height"))]
        if kind == "regions":
            box = [given.get(key) for key in ("x", "y", "width", "height")]
        return region_of({"bbox": box, "phrase": words}, size)


def _name(given: Mapping[str, Any]) -> str | None:
    """The first of an object's names, or its name in relationships of the first version."""
    names = given.get("names") or [given.get("name")]
    return names[0] if isinstance(names, list) and isinstance(names[0], str) else None


def _places(folders: list[str], name: str) -> Iterator[str]:
    for folder in folders:
        yield files.join(folder, name)
        yield files.join(folder, name.rpartition("/")[2])


def _read_list(place: str) -> list[Any]:
    try:
        content = json.loads(files.read_text(place))
    except (ValueError, RecursionError) as error:
        raise DiptychError(f"{place}: broken JSON: {error}") from error
    if not isinstance(content, list):
        raise DiptychError(f"{place}: expected a list with an entry for each image, found {type(content).__name__}")
    return content
