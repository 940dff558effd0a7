"""``refcoco:``: RefCOCO, RefCOCO+ and RefCOCOg: phrases for one object of a picture of COCO (Yu et al. 2016, arXiv:1608.00272).

The files are ``refs(unc).p`` (or ``refs(google).p``, ``refs(umd).p``) and ``instances.json``. A pickle can run code; this reader
takes plain lists, texts and numbers alone from it and refuses a file with anything else. The same list as .json is read too.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource, clean
from diptych.data.sources.coco import category_names, read_coco
from diptych.data.sources.grounded.regions import region_of
from diptych.data.storage import files

PARTS = {"validation": "val"}  # of ours and the files' names
REMEDY = "save the list as JSON on a machine where you trust it: json.dump(pickle.load(open(FILE, 'rb')), open('refs.json', 'w'))"


class _Plain(pickle.Unpickler):
    """Reads containers, texts and numbers; whatever would call or import anything is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Always refused."""
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")

    def persistent_load(self, pid: Any) -> Any:
        """Always refused."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


class Refs(ListedSource):
    """Each object that is referred to is one region for each of its phrases. instances: COCO's file with the boxes, next to the
    references by default; images: the directory of COCO's ``train2014``. masks: regions have the objects' masks.

    Parts are the file's own: train, val (or validation), test, testA, testB.
    """

    looked_for = "references with a phrase and a box"

    def __init__(self, place: str, *, images: str | None = None, instances: str = "instances.json", masks: bool = False):
        self.images, self.instances, self.masks = images, instances, masks
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every picture with references; one that has references of several parts is several entries."""
        refs = read_refs(self.place)
        places = files.places_of(self.place, self.instances)
        place = next((p for p in places if files.exists(p)), places[0])
        if not files.exists(place):
            raise DiptychError(f"{self.place}: the boxes are in another file: there is no {place}; name it: ?instances=FILE")
        content = read_coco(place)
        names = category_names(content, place)
        boxes = {a["id"]: a for a in content["annotations"] if isinstance(a, dict) and "id" in a}
        pictures = {i["id"]: i for i in content["images"] if isinstance(i, dict) and "id" in i}
        directory = self._directory(pictures)
        found: dict[tuple[str, str], Entry] = {}
        for at, ref in enumerate(refs):
            item = f"{files.name(self.place)}: reference {ref.get('ref_id', at) if isinstance(ref, dict) else at}"
            try:
                image, part, regions, category = self._reference(ref, boxes, pictures, names)
            except ValueError as error:
                self.problems.append(Problem(item, str(error)))
                continue
            name = str(image["file_name"])
            entry = found.get((name, part))
            if entry is None:
                extra = {"coco_id": image["id"], "part": part, "categories": []}
                entry = found[name, part] = Entry(name, files.join(directory, name), [], extra, fields={"regions": []})
            entry.fields["regions"] += regions
            entry.extra["categories"] += [category] * len(regions)
        parts: dict[str, int] = {}
        for name, _ in found:
            parts[name] = parts.get(name, 0) + 1
        for (name, part), entry in found.items():
            if parts[name] > 1:  # RefCOCOg by Google has pictures in two parts
                entry.id = f"{name}#{part}"
            yield entry

    def _reference(self, ref: Any, boxes: Any, pictures: Any, names: Any) -> tuple[Any, str, list[Region], str]:
        """The picture, the part, a region for each phrase, and the category. ValueError says what is wrong."""
        if not isinstance(ref, dict):
            raise ValueError(f"found {type(ref).__name__}; expected an object")
        number = ref.get("ann_id")
        if isinstance(number, list):  # gRefCOCO: any number of objects
            if len(number) != 1 or number[0] == -1:
                raise ValueError(f"refers to {0 if number == [-1] else len(number)} objects; only single ones are read")
            number = number[0]
        annotation, image = boxes.get(number), pictures.get(ref.get("image_id"))
        if annotation is None or image is None or not isinstance(image.get("file_name"), str):
            what = "ann_id" if annotation is None else "image_id"
            raise ValueError(f"{what} {ref.get(what)} is not in the file of instances")
        sentences = ref.get("sentences")
        phrases = [s for s in map(_sentence, sentences if isinstance(sentences, list) else []) if s]
        if not phrases:
            raise ValueError("no sentence")
        size = image.get("width"), image.get("height")
        regions = [region_of({**annotation, "phrase": p}, size, masks=self.masks) for p in dict.fromkeys(phrases)]
        return image, str(ref.get("split", "")), regions, names.get(annotation.get("category_id"), "")

    def _directory(self, pictures: Any) -> str:
        here = files.parent(self.place)
        places = files.places_of(self.place, self.images) if self.images else []
        places = places or [files.join(here, d) for d in ("images", "train2014", "../train2014", "../images/train2014", ".", "..")]
        names = [i["file_name"] for i in list(pictures.values())[:20] if isinstance(i.get("file_name"), str)]
        return next((p for p in places if any(files.exists(files.join(p, n)) for n in names)), places[0])

    def split(self, name: str) -> ListedSource:
        """The part that the file names so. DiptychError if it has no such part."""
        known = sorted({entry.extra["part"] for entry in self._entries} - {""})
        if not known:
            return super().split(name)
        if self.part == name:
            return self
        wanted = PARTS.get(name, name)
        chosen = [i for i, entry in enumerate(self._entries) if entry.extra["part"] == wanted]
        if not chosen:
            raise DiptychError(f"{self.address}: the file has no part '{name}'; it has {', '.join(known)}")
        return self._part_of(name, chosen)


def read_refs(place: str) -> list[Any]:
    """The list of references of a .p or .json. DiptychError for a pickle that holds more than plain data."""
    data = files.read(place)
    try:
        content = json.loads(data) if place.lower().endswith(".json") else _Plain(io.BytesIO(data), encoding="utf-8").load()
    except pickle.UnpicklingError as error:
        raise DiptychError(f"{place}: this pickle is refused, since it can run code: {error}; {REMEDY}") from error
    except (ValueError, EOFError, RecursionError, IndexError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise DiptychError(f"{place}: cannot be read: {error}") from error
    if not isinstance(content, list):
        raise DiptychError(f"{place}: expected a list of references, found {type(content).__name__}")
    return content


def _sentence(given: Any) -> str:
    words = given.get("raw") or given.get("sent") if isinstance(given, dict) else given
    return clean(words) if isinstance(words, str) else ""
