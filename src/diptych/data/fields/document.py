"""Documents: texts and images in order, any number of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diptych.core.batch import Documents, Images
from diptych.core.sample import Document, Sample, flat
from diptych.data.augment import augmenter
from diptych.data.fields.base import Context, Draw, Field, grey, stacked
from diptych.data.fields.text import tokenized, valid
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import pyarrow as pa


class Captioned(NamedTuple):
    """The image of a sample without a document; its caption is drawn when a batch is made."""

    image: np.ndarray


class DocumentField(Field):
    """``Document`` → ``Documents``: the order of the parts, all texts, all images; each with owner rows. Of a sample without
    a document: its image and one of its captions, so that captioned images and documents can be mixed.
    """

    kind = "document"
    made_of = ("image", "text")
    inner = {"texts": "text", "images": "image"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: Any, size: int, augment: Any = "none"):
        super().__init__(name)
        self.tokenizer, self.size, self.augment = tokenizer, size, augmenter(augment, size)
        self.drawn = self.augment.draws

    @classmethod
    def build(cls, name: str, context: Context) -> DocumentField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, context.image_size, context.augment)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Document | Captioned:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        document: Document | None = sample.fields.get(self.name)
        if document is None and sample.image is not None and sample.captions:
            return Captioned(self.augment(sample.image, rng(), sample.captions))
        if document is None or not document.parts:
            raise BrokenItem(sample.id, f"no {self.name}, and no image with a caption")
        numbers, words = rng(), [p for p in document.parts if isinstance(p, str)]
        return Document([p if isinstance(p, str) else self.augment(p, numbers, words) for p in document.parts])

    def collate(self, rows: Sequence[Draw]) -> Documents:
        """A batch of it; None if no sample has any."""
        import torch

        parts, owners = flat([self._parts(row) for row in rows])
        kind = torch.tensor([0 if isinstance(p, str) else 1 for p in parts])
        owner = torch.tensor(owners)
        words, pictures = [p for p in parts if isinstance(p, str)], [p for p in parts if not isinstance(p, str)]
        texts = tokenized(self.tokenizer, words, owner=owner[kind == 0]) if words else None
        images = Images(stacked(pictures), owner[kind == 1]) if pictures else None
        return Documents(kind, texts, images, owner)

    def _parts(self, row: Draw) -> list[Any]:
        """The parts of a document in order; of a captioned image: the image, then the caption that is read at this position."""
        value = row.fitted[self.name]
        return [value.image, row.sample.captions[row.caption]] if isinstance(value, Captioned) else value.parts

    def memory(self) -> int:
        """Roughly how many bytes one fitted value takes."""
        return 2 * 3 * self.size**2

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        part = pa.struct({"text": pa.string(), "image": pa.large_binary(), "height": pa.int32(), "width": pa.int32()})
        return {"document": pa.list_(part)}

    @classmethod
    def pack(
        cls, value: Document, scale: Callable[[np.ndarray], np.ndarray], store: Callable[[np.ndarray], bytes | None]
    ) -> dict[str, Any]:
        """A value as a row of these columns."""
        parts: list[dict[str, Any]] = []
        for p in value.parts:
            if isinstance(p, str):
                parts.append({"text": valid(p), "image": None, "height": 0, "width": 0})
            else:
                image = scale(p)
                parts.append({"text": None, "image": store(image), "height": image.shape[0], "width": image.shape[1]})
        return {"document": parts}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Callable[[bytes | None, int, int], np.ndarray]) -> Document:
        """The value again."""
        return Document([load(p["image"], p["height"], p["width"]) if p["text"] is None else p["text"] for p in row["document"]])

    @classmethod
    def blank(cls, value: Document) -> Document:
        """A value of the same shape that says nothing: the blind control."""
        return Document([p if isinstance(p, str) else grey(p) for p in value.parts])

    @classmethod
    def draw(cls, value: Document) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return list(value.parts)
