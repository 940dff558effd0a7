"""``coco:``: COCO's captions and instances; ``regions:``: a table of boxes with phrases, as of Flickr30k Entities or RefCOCO."""

from __future__ import annotations

import math
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.source import Problem
from diptych.data.sources.base import CAPTION_COLUMNS, IMAGE_COLUMNS, Entry, ListedSource, clean, column, texts
from diptych.data.sources.table import json_object, read_jsonl
from diptych.data.storage import files

PHRASES = ("phrase", "phrases", "expression", "sentence", "sentences", "label", "category", "name")


class Coco(ListedSource):
    """Images are next to the JSON, in ``images/``, or where COCO's own layout puts them; otherwise give ``?images=DIRECTORY``.

    instances: a second file of COCO; its boxes become the images' regions, each with its category as phrase. Given alone, as
    ``coco:instances.json``, images have regions and no captions. Crowds (``iscrowd``) are left out.
    """

    looked_for = "images with captions or boxes"

    def __init__(self, place: str, *, images: str | None = None, instances: str | None = None):
        self.images, self.instances = images, instances
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        content = read_coco(self.place)
        images, annotations = content["images"], content["annotations"]
        captions: dict[Any, list[str]] = defaultdict(list)
        regions: dict[Any, list[Region]] = {}
        if any("caption" in a for a in annotations):
            for annotation in annotations:
                captions[annotation.get("image_id")].append(str(annotation.get("caption", "")))
        elif any("bbox" in a for a in annotations):
            regions = self._regions(self.place, content)
        elif annotations:
            raise DiptychError(
                f"{self.place}: its annotations have no 'caption' and no 'bbox'; give a captions_*.json or instances_*.json"
            )
        if self.instances:
            place = next((p for p in beside(self.place, self.instances) if files.exists(p)), beside(self.place, self.instances)[0])
            regions = self._regions(place, read_coco(place))
        directory = self._directory(images)
        for image in images:
            image = dict(image)
            name, number = image.pop("file_name", None), image.pop("id", None)
            if not name:
                self.problems.append(Problem(f"{files.name(self.place)}: image {number}", "no file_name"))
                continue
            boxes = regions.pop(number, None)
            fields = {"regions": boxes} if boxes else {}
            yield Entry(name, files.join(directory, name), captions.pop(number, []), {"coco_id": number, **image}, fields=fields)
        for number in captions:
            self.problems.append(Problem(f"{files.name(self.place)}: image {number}", "captions for an unknown image"))
        for number in regions:
            self.problems.append(
                Problem(f"{files.name(self.instances or self.place)}: image {number}", "boxes for an unknown image")
            )

    def _regions(self, place: str, content: Mapping[str, Any]) -> dict[Any, list[Region]]:
        """The regions of each image, by its number; boxes that cannot be used are added to ``problems``."""
        names = {c.get("id"): str(c.get("name", "")) for c in content.get("categories") or []}
        sizes = {i.get("id"): (i.get("width"), i.get("height")) for i in content["images"]}
        regions: dict[Any, list[Region]] = {}
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            phrase = annotation.get("phrase") or names.get(annotation.get("category_id"))
            try:
                region = region_of({**annotation, "phrase": phrase}, sizes.get(annotation.get("image_id"), (None, None)))
            except ValueError as error:
                self.problems.append(Problem(f"{files.name(place)}: annotation {annotation.get('id')}", str(error)))
            else:
                regions.setdefault(annotation.get("image_id"), []).append(region)
        return regions

    def _directory(self, images: list[dict[str, Any]]) -> str:
        """The first likely directory that holds one of the first images."""
        here = files.parent(self.place)
        if self.images:
            places = beside(self.place, self.images)
        else:
            part = files.name(self.place).removesuffix(".json").rpartition("_")[2]  # captions_val2017.json → val2017
            places = [files.join(here, d) for d in (".", "images", part, "..", "../images", f"../{part}")]
        names = [i["file_name"] for i in images[:20] if i.get("file_name")]
        for place in places:
            if any(files.exists(files.join(place, n)) for n in names):
                return place
        return places[0]


class RegionTable(ListedSource):
    """A .jsonl (globs allowed) with rows ``{image, regions: [{box or bbox, phrase}], caption}``, or rows that hold one ``box`` or
    ``bbox`` and a ``phrase``.

    box: left, top, right, bottom; bbox: left, top, width, height; in pixels. Rows of the same image are one sample; captions may be
    missing. Paths are relative to ``?images=DIR``, else to the file. Boxes that cannot be used are problems.
    """

    looked_for = "rows with an image and regions"

    def __init__(self, place: str, *, images: str | None = None, image: str | None = None):
        self.images, self.image = images, image
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        urls = files.expand(self.place)
        if not urls:
            raise DiptychError(f"{self.place}: no file has such a name")
        for url in urls:
            columns, rows = read_jsonl(url)
            image = column(columns, IMAGE_COLUMNS, self.image, "image", url)
            caption = next((c for c in CAPTION_COLUMNS if c in columns), "")
            places = beside(url, self.images) if self.images else [files.parent(url)]
            directory = next((p for p in places if files.is_directory(p)), places[0])
            for line, row in rows:
                path = row.pop(image, None)
                item = f"{files.name(url)}:{line}"
                if not isinstance(path, str) or not path.strip():
                    self.problems.append(Problem(item, f"no path in column '{image}'"))
                    continue
                path = path.strip() if "://" in path else posixpath.normpath(path.strip())
                regions = self._regions(item, row)
                fields = {"regions": regions} if regions else {}
                yield Entry(path, files.join(directory, path), texts(row.pop(caption, None)), row, fields=fields)

    def _regions(self, item: str, row: dict[str, Any]) -> list[Region]:
        size = row.get("width"), row.get("height")
        given = row.pop("regions", None)
        if given is None:  # one region per row
            keys = ("box", "bbox", *PHRASES)
            given = [{k: row.pop(k) for k in keys if k in row}]
        regions = []
        for number, region in enumerate(given if isinstance(given, list) else [given]):
            try:
                regions.append(region_of(region, size))
            except ValueError as error:
                self.problems.append(Problem(f"{item}, region {number + 1}", str(error)))
        return regions


def read_coco(place: str) -> dict[str, Any]:
    """A file with COCO's lists ``images`` and ``annotations``; DiptychError if it is another file."""
    content = json_object(files.read_text(place), place)
    if not isinstance(content.get("images"), list) or not isinstance(content.get("annotations"), list):
        keys = ", ".join(content)
        raise DiptychError(f"{place}: not a COCO file: needs the lists 'images' and 'annotations', has {keys}")
    return content


def beside(place: str, path: str) -> list[str]:
    """Where a path may be: relative to the directory of a file, or to the current directory."""
    return [files.join(files.parent(place), path), files.normal(path)]


def region_of(given: Any, size: tuple[Any, Any] = (None, None)) -> Region:
    """A region from ``{box or bbox, phrase}``, its box cut to the image. size: the image's width and height, where known.
    ValueError says what is wrong.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"a region given as {type(given).__name__}; expected {{box, phrase}}")
    box, extent = given.get("box"), given.get("bbox")
    try:
        edges = [float(edge) for edge in (box if box is not None else extent)]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise ValueError("no box: expected box: [left, top, right, bottom] or bbox: [left, top, width, height]") from None
    if len(edges) != 4 or not all(map(math.isfinite, edges)):
        raise ValueError(f"a box of {len(edges)} numbers, {edges}; expected four")
    left, top, right, bottom = edges
    if box is None:
        right, bottom = left + right, top + bottom
    if all(isinstance(side, (int, float)) for side in size):
        left, right = (min(max(edge, 0.0), float(size[0])) for edge in (left, right))
        top, bottom = (min(max(edge, 0.0), float(size[1])) for edge in (top, bottom))
    if right <= left or bottom <= top:
        raise ValueError(f"an empty box: {edges}")
    phrases = [p for key in PHRASES for p in map(clean, texts(given.get(key))) if p]
    if not phrases:
        raise ValueError("no phrase")
    return Region((left, top, right, bottom), phrases[0])
