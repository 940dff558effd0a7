"""``coco:``: COCO's captions and instances, and what is written like them (Objects365, LVIS)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region, class_text
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.grounded.regions import region_of
from diptych.data.sources.table import check_scheme, json_object
from diptych.data.storage import files


class Coco(ListedSource):
    """Images are next to the JSON, in ``images/``, or where COCO's own layout puts them; otherwise give ``?images=DIRECTORY``.

    instances: a second file of COCO; its boxes become the images' regions, each with its category as phrase. Given alone, as
    ``coco:instances.json``, images have regions and no captions. A file may have both: an annotation with ``caption`` is a caption
    of its image, and one with ``bbox`` a region; one with both is both. Without a category or ``phrase`` its caption is the
    region's phrase, too. Crowds (``iscrowd``) are left out. Entries that cannot be used are problems. masks: regions have the masks
    of ``segmentation``: polygons, run lengths or compressed run lengths.

    LVIS' images have no ``file_name`` but a ``coco_url``, of which the last two parts are the path; its names of categories are
    written with spaces.
    """

    looked_for = "images with captions or boxes"

    def __init__(self, place: str, *, images: str | None = None, instances: str | None = None, masks: bool = False):
        self.images, self.instances, self.masks = images, instances, masks
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every image that the address names."""
        content = read_coco(self.place)
        if any("segments_info" in a for a in content["annotations"] if isinstance(a, dict)):
            raise DiptychError(f"{self.place}: a file of COCO panoptic: give panoptic:{self.place}")
        if not any(key in a for a in content["annotations"] if isinstance(a, dict) for key in ("caption", "bbox")):
            raise DiptychError(
                f"{self.place}: its annotations have no 'caption' and no 'bbox'; give a captions_*.json or instances_*.json"
            )
        content = self._usable_of(content, self.place)
        images, annotations = content["images"], content["annotations"]
        captions: dict[Any, list[str]] = defaultdict(list)
        regions: dict[Any, list[Region]] = {}
        captioned = [a for a in annotations if "caption" in a]
        boxed = [a for a in annotations if "bbox" in a]
        for annotation in captioned:
            if isinstance(annotation["caption"], str):
                captions[annotation["image_id"]].append(annotation["caption"])
            else:
                self._wrong(self.place, "annotation", annotation, f"caption: {_found(annotation['caption'])}; expected a text")
        if self.instances:
            places = files.places_of(self.place, self.instances)
            place = next((p for p in places if files.exists(p)), places[0])
            other = self._usable_of(read_coco(place), place)
            regions = self._regions(place, other, other["annotations"])  # any of these must be a box
        elif boxed:
            regions = self._regions(self.place, content, boxed)
        for annotation in annotations:
            if "caption" not in annotation and "bbox" not in annotation:
                self._wrong(self.place, "annotation", annotation, "no caption and no bbox")
        directory = self._directory(images)
        for image in images:
            image = dict(image)
            name, number = file_name(image), image.pop("id")
            image.pop("file_name", None)
            boxes, texts = regions.pop(number, None), captions.pop(number, [])
            if not name or not isinstance(name, str):
                reason = f"file_name: {_found(name)}; expected a path" if name else "no file_name"
                self._wrong(self.place, "image", {"id": number}, reason)
                continue
            fields = {"regions": boxes} if boxes else {}
            yield Entry(name, files.join(directory, name), texts, {"coco_id": number, **image}, fields=fields)
        for number in captions:
            self._wrong(self.place, "image", {"id": number}, "captions for an unknown image")
        for number in regions:
            self._wrong(self.instances or self.place, "image", {"id": number}, "boxes for an unknown image")

    def _wrong(self, place: str, what: str, entry: Mapping[str, Any], reason: str) -> None:
        self.problems.append(Problem(f"{files.name(place)}: {what} {entry.get('id')}", reason))

    def _usable_of(self, content: dict[str, Any], place: str) -> dict[str, Any]:
        """A file's content without the entries that name no image by its number; those are added to ``problems``."""
        for key, what, number in (("images", "image", "id"), ("annotations", "annotation", "image_id")):
            usable = []
            for at, entry in enumerate(content[key]):
                if not isinstance(entry, dict):
                    self._wrong(place, what, {"id": f"at place {at}"}, f"{_found(entry)}; expected {{{number}, …}}")
                elif not isinstance(entry.get(number), (int, float, str)):
                    reason = f"{number}: {_found(entry[number])}; expected a number" if number in entry else f"no {number}"
                    self._wrong(place, what, {"id": entry.get("id") if what == "annotation" else f"at place {at}"}, reason)
                else:
                    usable.append(entry)
            content[key] = usable
        return content

    def _regions(self, place: str, content: Mapping[str, Any], annotations: list[dict[str, Any]]) -> dict[Any, list[Region]]:
        """The regions of each image, by its number; boxes that cannot be used are added to ``problems``."""
        names = category_names(content, place)
        sizes = {i["id"]: (i.get("width"), i.get("height")) for i in content["images"]}
        regions: dict[Any, list[Region]] = {}
        for annotation in annotations:
            if annotation.get("iscrowd"):
                continue
            category, number = annotation.get("category_id"), annotation["image_id"]
            phrase = annotation.get("phrase") or (names.get(category) if isinstance(category, (int, float, str)) else None)
            if not phrase and isinstance(annotation.get("caption"), str):
                phrase = annotation["caption"]
            try:
                region = region_of({**annotation, "phrase": phrase}, sizes.get(number, (None, None)), masks=self.masks)
            except ValueError as error:
                self._wrong(place, "annotation", annotation, str(error))
            else:
                regions.setdefault(number, []).append(region)
        return regions

    def _directory(self, images: list[dict[str, Any]]) -> str:
        """The first likely directory that holds one of the first images."""
        here = files.parent(self.place)
        if self.images:
            places = files.places_of(self.place, self.images)
        else:
            part = files.name(self.place).removesuffix(".json").rpartition("_")[2]  # captions_val2017.json → val2017
            places = [files.join(here, d) for d in (".", "images", part, "..", "../images", f"../{part}")]
        names = [name for i in images[:20] if isinstance(name := file_name(i), str) and name]
        for place in places:
            if any(files.exists(files.join(place, n)) for n in names):
                return place
        return places[0]


def read_coco(place: str) -> dict[str, Any]:
    """A file with COCO's lists ``images`` and ``annotations``; DiptychError if it is another file."""
    text = files.read_text(place)
    check_scheme(text, place, "COCO's object with the lists 'images' and 'annotations'", "coco")
    content = json_object(text, place)
    if not isinstance(content.get("images"), list) or not isinstance(content.get("annotations"), list):
        keys = ", ".join(content)
        raise DiptychError(f"{place}: not a COCO file: needs the lists 'images' and 'annotations', has {keys}")
    return content


def category_names(content: Mapping[str, Any], place: str) -> dict[Any, str]:
    """The names of a file's categories by their numbers. DiptychError if ``categories`` is not a list of them."""
    categories = content.get("categories")
    if categories is None:
        return {}
    if not isinstance(categories, list):
        raise DiptychError(f"{place}: categories: {_found(categories)}; expected a list of {{id, name}}")
    for at, category in enumerate(categories):
        if not isinstance(category, dict) or not isinstance(category.get("id"), (int, float, str)):
            raise DiptychError(f"{place}: categories, place {at}: {_found(category)}; expected {{id, name}}")
    # with synsets: LVIS', which writes underscores for spaces
    return {c["id"]: (class_text if "synset" in c else str)(str(c.get("name", ""))) for c in categories}


def file_name(image: Mapping[str, Any]) -> Any:
    """The path of an image: its ``file_name``, or of LVIS' images the last two parts of their address,
    ``val2017/000000397133.jpg``.
    """
    url = image.get("coco_url")
    if image.get("file_name") is None and isinstance(url, str):
        return "/".join(url.split("/")[-2:])
    return image.get("file_name")


def _found(value: Any) -> str:
    """A value for a message: its type, and the value itself if it is short."""
    text = repr(value)
    return f"found {type(value).__name__} {text}" if len(text) <= 40 else f"found {type(value).__name__}"
