"""``panoptic:``: COCO panoptic: every pixel belongs to a segment, a thing or stuff (Kirillov et al., arXiv:1801.00868)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.regions.outlines import Segment
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.coco import category_names
from diptych.data.sources.grounded.regions import region_of
from diptych.data.sources.table import json_object
from diptych.data.storage import files


class Panoptic(ListedSource):
    """``panoptic_val2017.json`` with ``annotations: [{image_id, file_name, segments_info: [{id, category_id, bbox}]}]``. Each
    segment is a region with its category as phrase and its exact mask.

    images: their directory; default: next to the JSON, ``images/``, or ``val2017/`` where the file is named so. segments: the
    directory of the pictures of numbers; default: named as the JSON. things: only categories that are things. Crowds are left out.
    """

    looked_for = "images with segments"

    def __init__(self, place: str, *, images: str | None = None, segments: str | None = None, things: bool = False):
        self.images, self.segments, self.things = images, segments, things
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the file names."""
        content = json_object(files.read_text(self.place), self.place)
        lists = [content.get(key) for key in ("images", "annotations", "categories")]
        if not all(isinstance(value, list) for value in lists):
            raise DiptychError(f"{self.place}: not a panoptic file: needs the lists images, annotations and categories")
        names = category_names(content, self.place)
        kept = {c["id"] for c in content["categories"] if c.get("isthing", 1) or not self.things}
        stem = files.name(self.place).removesuffix(".json")
        here = files.parent(self.place)
        numbers = files.directory_of(self.place, self.segments) if self.segments else files.join(here, stem)
        known = {image.get("id"): image for image in content["images"] if isinstance(image, dict)}
        directory = self._directory(here, stem, known)
        for at, annotation in enumerate(content["annotations"]):
            item = f"{files.name(self.place)}: annotation at place {at}"
            image = known.get(annotation.get("image_id")) if isinstance(annotation, dict) else None
            if image is None or not isinstance(image.get("file_name"), str):
                self.problems.append(Problem(item, "its image_id is of no image with a file_name"))
                continue
            if not isinstance(annotation.get("file_name"), str) or not isinstance(annotation.get("segments_info"), list):
                self.problems.append(Problem(item, "needs file_name and the list segments_info"))
                continue
            url = files.join(numbers, annotation["file_name"])
            regions = [r for s in annotation["segments_info"] if (r := self._region(item, s, names, kept, image, url)) is not None]
            if not files.exists(url):
                self.problems.append(Problem(item, f"there is no file {url}; name its directory: ?segments=DIR"))
                regions = [r._replace(mask=None) for r in regions]
            extra = {"coco_id": image["id"], **{k: image[k] for k in ("width", "height") if k in image}}
            fields = {"regions": regions} if regions else {}
            yield Entry(image["file_name"], files.join(directory, image["file_name"]), [], extra, fields=fields)

    def _region(
        self, item: str, segment: Any, names: Mapping[Any, str], kept: set[Any], image: Mapping[str, Any], url: str
    ) -> Region | None:
        try:
            if not isinstance(segment, dict) or not isinstance(segment.get("id"), int):
                raise ValueError("a segment without a number as id")
            if segment.get("iscrowd") or segment.get("category_id") not in kept:
                return None
            size = image.get("width"), image.get("height")
            region = region_of({"bbox": segment.get("bbox"), "phrase": names.get(segment.get("category_id"))}, size)
        except ValueError as error:
            self.problems.append(
                Problem(f"{item}, segment {segment.get('id') if isinstance(segment, dict) else segment}", str(error))
            )
            return None
        return region._replace(mask=Segment(url, segment["id"]))  # type: ignore[arg-type]  # drawn when the sample is read

    def _directory(self, here: str, stem: str, known: Mapping[Any, Any]) -> str:
        part = stem.rpartition("_")[2]  # panoptic_val2017 → val2017
        places = files.places_of(self.place, self.images) if self.images else []
        places = places or [files.join(here, d) for d in (".", "images", part, f"../{part}", "../images")]
        names = [i["file_name"] for i in list(known.values())[:20] if isinstance(i.get("file_name"), str)]
        return next((p for p in places if any(files.exists(files.join(p, n)) for n in names)), places[0])
