"""``dci:``: Densely Captioned Images: a description of each part of a picture (Urbanek et al., arXiv:2312.08578)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.core.errors import DiptychError
from diptych.core.sample import Region
from diptych.data.regions.outlines import EncodedPicture
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource, clean
from diptych.data.sources.grounded.regions import region_of
from diptych.data.sources.table import json_object
from diptych.data.storage import files

SPLITS = {"validation": "valid"}  # of ours and of ``splits.json``
UNUSABLE, LABEL_ONLY = 2, 1  # mask_quality


class Dci(ListedSource):
    """A directory with a .json a picture (``complete/``): ``image``, ``short_caption``, ``extra_caption``, ``mask_data`` with
    ``bounds``, ``label``, ``caption``, and ``summaries`` and ``negatives`` by the mask's number.

    A region's phrase is its first summary, else "label: caption", of masks of low quality the label; its wrong versions are all in
    ``negatives``. Captions are the summaries of the whole picture ("base"), else the short caption. images: the directory of the
    pictures; masks: whether regions have their masks. ``splits.json`` next to the directory makes the parts.
    """

    looked_for = "pictures with described parts"

    def __init__(self, place: str, *, images: str | None = None, masks: bool = False):
        self.images, self.masks = images, masks
        super().__init__(place)

    def entries(self) -> Iterator[Entry]:
        """Every picture with a .json."""
        urls = sorted(url for url in files.matching(files.join(self.place, "*.json")) if files.name(url) != "splits.json")
        here = self.place.rstrip("/")
        root = files.places_of(files.join(here, "x"), self.images) if self.images else []
        root = root or [files.join(here, d) for d in (".", "../photos", "../images", "photos", "images")]
        parts = self._parts(here)
        directory = ""
        for url in urls:
            name = files.name(url)
            try:
                content = json_object(files.read_text(url), url)
                image, masks = content["image"], content["mask_data"]
                if not isinstance(image, str) or not isinstance(masks, dict):
                    raise DiptychError("needs image, a path, and mask_data, an object")
            except (DiptychError, KeyError) as error:
                self.problems.append(Problem(name, str(error) if isinstance(error, DiptychError) else f"no field {error}"))
                continue
            directory = directory or next((d for d in root if files.exists(files.join(d, image))), root[0])
            regions = []
            for key, given in masks.items():
                try:
                    region = self._region(key, given, content)
                except ValueError as error:
                    self.problems.append(Problem(f"{name}, mask {key}", str(error)))
                else:
                    regions += [region] if region is not None else []
            captions = texts_of(content.get("summaries"), "base") or [str(content.get("short_caption") or "")]
            extra = {"part": parts[name]} if name in parts else {}
            yield Entry(image, files.join(directory, image), captions, extra, fields={"regions": regions} if regions else {})

    def _region(self, key: str, given: Any, content: Mapping[str, Any]) -> Region | None:
        """The region of a mask; None for one that is unusable. ValueError says what is wrong."""
        if not isinstance(given, Mapping):
            raise ValueError(f"found {type(given).__name__}; expected an object")
        quality = given.get("mask_quality", 0)
        if quality == UNUSABLE:
            return None
        try:
            bounds = given["bounds"]
            box = [bounds[corner][axis] for corner in ("topLeft", "bottomRight") for axis in ("x", "y")]
        except (KeyError, TypeError):
            raise ValueError("no bounds with topLeft and bottomRight") from None
        label, caption = (clean(str(given.get(name) or "")) for name in ("label", "caption"))
        written = label if quality == LABEL_ONLY or not caption else f"{label}: {caption}" if label else caption
        summaries = texts_of(content.get("summaries"), key)
        region = region_of({"box": box, "phrase": summaries[0] if summaries else written})
        wrong = content.get("negatives")
        wrong = wrong.get(key) if isinstance(wrong, Mapping) else None
        found = [
            t for kind in (wrong.values() if isinstance(wrong, Mapping) else ()) for t in (kind if isinstance(kind, list) else [])
        ]
        negatives = tuple(dict.fromkeys(clean(t) for t in found if isinstance(t, str) and clean(t) and clean(t) != region.phrase))
        mask: Any = EncodedPicture(given["outer_mask"]) if self.masks and isinstance(given.get("outer_mask"), str) else None
        return region._replace(negatives=negatives, mask=mask)

    def _parts(self, here: str) -> dict[str, str]:
        place = next((p for p in (f"{here}/splits.json", files.join(here, "../splits.json")) if files.exists(p)), "")
        if not place:
            return {}
        content = json_object(files.read_text(place), place)
        return {str(name): part for part, names in content.items() if isinstance(names, list) for name in names}

    def split(self, name: str) -> ListedSource:
        """The part of ``splits.json``; by hash if there is none."""
        known = {entry.extra.get("part") for entry in self._entries} - {None}
        if not known:
            return super().split(name)
        if self.part == name:
            return self
        wanted = SPLITS.get(name, name)
        chosen = [i for i, entry in enumerate(self._entries) if entry.extra.get("part") == wanted]
        if not chosen:
            raise DiptychError(f"{self.address}: there is no part '{name}'; there are {', '.join(sorted(map(str, known)))}")
        return self._part_of(name, chosen)


def texts_of(summaries: Any, key: str) -> list[str]:
    """The summaries under a key: one text or several."""
    found = summaries.get(key) if isinstance(summaries, Mapping) else None
    many: Sequence[Any] = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [clean(text) for text in many if isinstance(text, str) and clean(text)]
