"""``karpathy:dataset_flickr30k.json``: Karpathy's JSON of Flickr8k, Flickr30k and COCO (Karpathy & Fei-Fei, arXiv:1412.2306)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.table import json_object
from diptych.data.storage import files

PARTS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


class Karpathy(ListedSource):
    """Images are next to the JSON or in ``images/``; otherwise give ``?images=DIRECTORY``. The file's own splits are used, not
    those by hash.
    """

    looked_for = "images with sentences"

    def __init__(self, place: str, *, images: str | None = None):
        self.images = images
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        content = json_object(files.read_text(self.place), self.place)
        images = content.get("images")
        if not isinstance(images, list):
            raise DiptychError(f"{self.place}: not one of Karpathy's files: needs the list 'images', has {', '.join(content)}")
        here = files.parent(self.place)
        places = [files.join(here, self.images), files.normal(self.images)] if self.images else [here, files.join(here, "images")]
        for number, image in enumerate(images):
            name = image.get("filename") if isinstance(image, dict) else None
            sentences = image.get("sentences") if isinstance(image, dict) else None
            if not name or not isinstance(sentences, list):
                lacking = "filename" if not name else "sentences"
                self.problems.append(Problem(f"{files.name(self.place)}: image {number}", f"no field '{lacking}'"))
                continue
            path = files.join(image.get("filepath") or ".", name)  # COCO's are in val2014/ …
            where = next((p for d in places if files.exists(p := files.join(d, path))), files.join(places[0], path))
            captions = [str(s.get("raw") or " ".join(s.get("tokens", []))) for s in sentences if isinstance(s, dict)]
            known: dict[str, Any] = {"part": str(image.get("split", ""))}
            if "cocoid" in image:
                known["coco_id"] = image["cocoid"]
            yield Entry(path, where, captions, known)

    def split(self, name: str) -> ListedSource:
        """The part that the file itself names; DiptychError if it names none."""
        told = {entry.extra["part"] for entry in self._entries}
        if name not in PARTS or not told & {p for parts in PARTS.values() for p in parts}:
            return super().split(name)
        if self.part == name:
            return self
        chosen = [entry for entry in self._entries if entry.extra["part"] in PARTS[name]]
        if not chosen:
            raise DiptychError(f"{self.address}: the file has no '{name}' part; it has {', '.join(sorted(told))}")
        part = copy.copy(self)
        part.part, part._entries, part._digests = name, chosen, None
        part.address = f"{self.address}{'&' if '?' in self.address else '?'}split={name}"
        return part
