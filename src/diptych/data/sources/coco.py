"""``coco:``: a COCO captions file, ``images`` and ``annotations`` in one JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.table import json_object
from diptych.data.storage import files


class Coco(ListedSource):
    """Images lie beside the JSON, in ``images/``, or where COCO's own layout puts them; else ``?images=DIRECTORY``."""

    looked_for = "images with captions"

    def __init__(self, place: str, *, images: str | None = None):
        self.images = images
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        content = json_object(files.read_text(self.place), self.place)
        images, annotations = content.get("images"), content.get("annotations")
        if not isinstance(images, list) or not isinstance(annotations, list):
            keys = ", ".join(content)
            raise DiptychError(f"{self.place}: not a COCO file: needs the lists 'images' and 'annotations', has {keys}")
        if annotations and not any("caption" in a for a in annotations):
            raise DiptychError(f"{self.place}: its annotations have no 'caption'; give the captions_*.json")
        captions: dict[Any, list[str]] = defaultdict(list)
        for annotation in annotations:
            captions[annotation.get("image_id")].append(str(annotation.get("caption", "")))
        directory = self._directory(images)
        for image in images:
            image = dict(image)
            name, number = image.pop("file_name", None), image.pop("id", None)
            if not name:
                self.problems.append(Problem(f"{files.name(self.place)}: image {number}", "no file_name"))
                continue
            yield Entry(name, files.join(directory, name), captions.pop(number, []), {"coco_id": number, **image})
        for number in captions:
            self.problems.append(Problem(f"{files.name(self.place)}: image {number}", "captions for an unknown image"))

    def _directory(self, images: list[dict[str, Any]]) -> str:
        """The first likely directory that holds one of the first images."""
        here = files.parent(self.place)
        if self.images:
            places = [files.join(here, self.images), files.normal(self.images)]
        else:
            part = files.name(self.place).removesuffix(".json").rpartition("_")[2]  # captions_val2017.json → val2017
            places = [files.join(here, d) for d in (".", "images", part, "..", "../images", f"../{part}")]
        names = [i["file_name"] for i in images[:20] if i.get("file_name")]
        for place in places:
            if any(files.exists(files.join(place, n)) for n in names):
                return place
        return places[0]
