"""``karpathy:dataset_flickr30k.json``: Karpathy's JSON of Flickr8k, Flickr30k and COCO (Karpathy & Fei-Fei, arXiv:1412.2306)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diptych.core.errors import DiptychError
from diptych.data.source import Problem
from diptych.data.sources.base import Entry, ListedSource
from diptych.data.sources.table import check_scheme, json_object
from diptych.data.storage import files

PARTS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
FIELDS = {"filename": str, "sentences": list, "filepath": str}  # of an image


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
        text = files.read_text(self.place)
        check_scheme(text, self.place, "Karpathy's object with the list 'images'", "karpathy")
        content = json_object(text, self.place)
        images = content.get("images")
        if isinstance(content.get("annotations"), list):
            raise DiptychError(
                f"{self.place}: expected Karpathy's list of images with sentences; it is a COCO file: coco:{self.place}"
            )
        if not isinstance(images, list):
            raise DiptychError(f"{self.place}: not one of Karpathy's files: needs the list 'images', has {', '.join(content)}")
        here = files.parent(self.place)
        places = files.places_of(self.place, self.images) if self.images else [here, files.join(here, "images")]
        for number, image in enumerate(images):
            given = image if isinstance(image, dict) else {}
            given = {**given, "filepath": given.get("filepath") or "."}
            wrong = [field for field, kind in FIELDS.items() if not isinstance(given.get(field), kind)]
            if wrong:
                held = type(given.get(wrong[0])).__name__
                reason = f"field '{wrong[0]}' holds {held}; expected {FIELDS[wrong[0]].__name__}"
                reason = reason if wrong[0] in given else f"no field '{wrong[0]}'"
                self.problems.append(Problem(f"{files.name(self.place)}: image {number}", reason))
                continue
            name, sentences = given["filename"], given["sentences"]
            path = files.join(given["filepath"], name)  # COCO's are in val2014/ …
            where = next((p for d in places if files.exists(p := files.join(d, path))), files.join(places[0], path))
            captions = []
            for place, sentence in enumerate(sentences):
                caption = _caption(sentence)
                if caption is None:
                    reason = f"sentence {place}: expected {{raw: a text}} or {{tokens: a list of texts}}"
                    self.problems.append(Problem(path, reason))
                else:
                    captions.append(caption)
            known: dict[str, Any] = {"part": str(given.get("split", ""))}
            if "cocoid" in given:
                known["coco_id"] = given["cocoid"]
            yield Entry(path, where, captions, known)

    def split(self, name: str) -> ListedSource:
        """The part that the file itself names; DiptychError if it names none."""
        known = {entry.extra["part"] for entry in self._entries}
        if name not in PARTS or not known & {p for parts in PARTS.values() for p in parts}:
            return super().split(name)
        if self.part == name:
            return self
        chosen = [i for i, entry in enumerate(self._entries) if entry.extra["part"] in PARTS[name]]
        if not chosen:
            raise DiptychError(f"{self.address}: the file has no '{name}' part; it has {', '.join(sorted(known))}")
        return self._part_of(name, chosen)


def _caption(sentence: Any) -> str | None:
    """The text of a sentence, or its tokens as a text; None if it has neither."""
    if not isinstance(sentence, dict):
        return None
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if raw and isinstance(raw, str):
        return raw
    if raw or not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return None
    return " ".join(tokens)
