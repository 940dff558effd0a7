"""``entities:``: Flickr30k Entities: boxes for the phrases of captions (Plummer et al., arXiv:1505.04870).

``Sentences/ID.txt`` holds a caption a line, with phrases marked as ``[/EN#283585/people Two young guys]``; ``Annotations/ID.xml``
the boxes of each number. Boxes there are numbers of pixels from 1 on, both ends included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource, clean
from diptych.data.sources.grounded.regions import region_of
from diptych.data.storage import files

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s\]/]+)+)\s+([^\]]*)\]")
FOLDERS = ("flickr30k-images", "flickr30k_images", "images", ".", "../flickr30k-images", "../flickr30k_images", "../images")


class Entities(ListedSource):
    """The directory with ``Sentences`` and ``Annotations``; images: that of the pictures. A phrase with several boxes is a region
    for each of them, or with ``boxes=union`` one around all, as phrase localisation is measured. Extra: ``kinds``, parallel to the
    regions (people, clothing, …), and ``chains``, the numbers by which phrases of different captions mean the same.

    A file ``train.txt``, ``val.txt`` or ``test.txt`` with numbers of pictures, as the data set has them, makes the parts.
    """

    looked_for = "sentences with boxes"

    def __init__(self, place: str, *, images: str | None = None, boxes: str = "each"):
        if boxes not in ("each", "union"):
            raise DiptychError(f"{place}: boxes is '{boxes}'; expected each or union")
        self.images, self.boxes = images, boxes
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every picture with sentences."""
        texts = sorted(files.matching(files.join(self.place, "Sentences/*.txt")))
        root = [files.join(self.place, d) for d in FOLDERS]
        if self.images:
            root = files.places_of(files.join(self.place, "x"), self.images)
        parts = self._parts()
        directory = next((d for d in root if any(files.exists(files.join(d, f"{_stem(t)}.jpg")) for t in texts[:5])), root[0])
        for url in texts:
            name = _stem(url)
            sentences = [line for line in files.read_text(url).splitlines() if line.strip()]
            captions = [plain(line) for line in sentences]
            regions, kinds, chains = self._regions(name, sentences)
            extra: dict[str, Any] = {"kinds": kinds, "chains": chains, **({"part": parts[name]} if name in parts else {})}
            fields = {"regions": regions} if regions else {}
            yield Entry(f"{name}.jpg", files.join(directory, f"{name}.jpg"), captions, extra, fields=fields)

    def _regions(self, name: str, sentences: list[str]) -> tuple[list[Region], list[str], list[str]]:
        place = files.join(self.place, f"Annotations/{name}.xml")
        try:
            boxes, size = read_boxes(place)
        except (OSError, DiptychError) as error:
            self.problems.append(Problem(name, str(error)))
            return [], [], []
        found: dict[tuple[Any, ...], tuple[Region, str, str]] = {}
        for sentence in sentences:
            for chain, kind, words in _PHRASE.findall(sentence):
                given = boxes.get(chain, [])
                if self.boxes == "union" and given:
                    given = [
                        [min(b[0] for b in given), min(b[1] for b in given), max(b[2] for b in given), max(b[3] for b in given)]
                    ]
                for box in given:
                    try:
                        region = region_of({"box": box, "phrase": clean(words)}, size)
                    except ValueError as error:
                        self.problems.append(Problem(f"{name}, phrase {chain}", str(error)))
                    else:
                        found[region.box, region.phrase] = (region, kind.strip("/"), chain)
        return [r for r, _, _ in found.values()], [k for _, k, _ in found.values()], [c for _, _, c in found.values()]

    def _parts(self) -> dict[str, str]:
        result: dict[str, str] = {}
        for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
            url = files.join(self.place, f"{name}.txt")
            if files.exists(url):
                result |= {line.strip(): part for line in files.read_text(url).splitlines() if line.strip()}
        return result

    def split(self, name: str) -> ListedSource:
        """The part that the data set's lists name; by hash if there are no lists."""
        name = "validation" if name == "val" else name
        known = {entry.extra.get("part") for entry in self._entries} - {None}
        if not known:
            return super().split(name)
        if self.part == name:
            return self
        chosen = [i for i, entry in enumerate(self._entries) if entry.extra.get("part") == name]
        if not chosen:
            raise DiptychError(
                f"{self.address}: no picture is in the part '{name}'; there are {', '.join(sorted(map(str, known)))}"
            )
        return self._part_of(name, chosen)


def plain(sentence: str) -> str:
    """A sentence without the marks of its phrases."""
    return clean(_PHRASE.sub(lambda match: match[3], sentence))


def read_boxes(place: str) -> tuple[dict[str, list[list[float]]], tuple[int | None, int | None]]:
    """The boxes of each number (left, top, right, bottom in pixels), and the picture's width and height. DiptychError for a file
    that is no such XML, or declares entities.
    """
    text = files.read_text(place)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DiptychError(f"{place}: an XML file that declares a document type or entities is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DiptychError(f"{place}: broken XML: {error}") from error
    width, height = (int(n) if (n := root.findtext(f"size/{side}", "").strip()).isdigit() else None for side in ("width", "height"))
    boxes: dict[str, list[list[float]]] = {}
    for thing in root.findall("object"):
        corners = thing.find("bndbox")
        if corners is None:  # the whole scene, or not to be seen
            continue
        try:
            left, top, right, bottom = (float(corners.findtext(k, "")) for k in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            left = top = right = bottom = float("nan")  # refused with the phrase that needs it
        for name in thing.findall("name"):
            boxes.setdefault((name.text or "").strip(), []).append([left - 1, top - 1, right, bottom])
    return boxes, (width, height)


def _stem(url: str) -> str:
    return files.name(url).removesuffix(".txt")
