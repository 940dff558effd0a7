"""Captions with location tokens (Kosmos-2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field as Limit

from diptych.core.batch import Texts
from diptych.core.errors import DiptychError
from diptych.core.sample import Captions, Region, Sample
from diptych.data.fields.base import Context, Draw
from diptych.data.fields.regions import RegionsField
from diptych.data.fields.text import TextField, meaning_number, tokenized
from diptych.data.regions.locations import GROUNDING, grounded, written
from diptych.data.text import normalise


class Grounded(NamedTuple):
    """The captions of a sample, and its regions with boxes as shares of the square."""

    texts: list[str]
    meanings: list[str]
    regions: list[Region]


class GroundedField(TextField):
    """One text of each sample: its caption with the boxes of noun chunks as location tokens (``data.regions.locations``), one of
    its regions' phrases with its box, or the caption as it is. The tokenizer must have locations.

    phrases, plain: the shares of phrases and of plain captions; the others are captions with locations.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        size: int = 224,
        augment: Any = "none",
        *,
        phrases: Annotated[float, Limit(ge=0, le=1)] = 0.4,
        plain: Annotated[float, Limit(ge=0, le=1)] = 0.2,
    ):
        super().__init__(name, tokenizer)
        if not hasattr(tokenizer, "bins"):
            raise DiptychError(
                f"data.fields.{name}: grounded texts need a tokenizer with locations; set data.tokenizer.kind to "
                "diptych.data.regions.locations:LocationTokenizer"
            )
        if phrases + plain > 1:
            raise DiptychError(f"data.fields.{name}: phrases and plain are shares, whose sum {phrases + plain:g} is above 1")
        self.phrases, self.plain = phrases, plain
        self.boxes = RegionsField("regions", tokenizer, size, augment)
        self.drawn = self.boxes.drawn

    @classmethod
    def build(cls, name: str, context: Context) -> GroundedField:
        """The field of this name for a loader."""
        return cls(name, context.tokenizer, context.image_size, context.augment, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Any:
        """A sample's captions and the regions that are seen."""
        captions: Captions = super().fit(sample, rng)
        self.boxes.note, self.boxes.sides = self.note, self.sides
        regions = self.boxes.fit(sample, rng) if sample.fields.get("regions") and sample.image is not None else []
        return Grounded(captions.texts, captions.meanings, regions)

    def collate(self, rows: Sequence[Draw]) -> Texts:
        """A batch of it."""
        import torch

        strings, meanings = zip(*(self._text(row) for row in rows), strict=True)
        return tokenized(self.tokenizer, strings, meaning=torch.tensor([meaning_number(m) for m in meanings]))

    def _text(self, row: Draw) -> tuple[str, str]:
        """The text at this position and its meaning."""
        value: Grounded = row.fitted[self.name]
        k, draw, bins = self.drawn_of(row), row.stream(meaning_number("grounded")), self.tokenizer.bins
        caption = value.texts[k]
        meaning = value.meanings[k] if k < len(value.meanings) else normalise(caption)
        kind = draw.random()
        if kind < self.plain or not value.regions:
            return caption, meaning
        if kind < self.plain + self.phrases:
            region = draw.choice(value.regions)
            return GROUNDING + written(region.phrase, [region.box], bins), f"{region.phrase} {region.box}"
        return GROUNDING + self.with_locations(caption, value.regions, draw), meaning

    def with_locations(self, caption: str, regions: Sequence[Region], draw: random.Random) -> str:
        """The caption with the boxes of its noun chunks."""
        return grounded(caption, [(r.phrase, r.box) for r in regions], self.tokenizer.bins)


class AnnotatedField(GroundedField):
    """One text of each sample, a document of all that is annotated: its caption, then each region's phrase with its box, in an
    order drawn at random (MMGiC's template of caption, labels and regions). phrases, plain: as in ``GroundedField``; 0 by default.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        size: int = 224,
        augment: Any = "none",
        *,
        phrases: Annotated[float, Limit(ge=0, le=1)] = 0.0,
        plain: Annotated[float, Limit(ge=0, le=1)] = 0.0,
    ):
        super().__init__(name, tokenizer, size, augment, phrases=phrases, plain=plain)

    def with_locations(self, caption: str, regions: Sequence[Region], draw: random.Random) -> str:
        """The caption, and the list of regions after it."""
        listed = draw.sample(list(regions), len(regions))
        return "; ".join([caption, *(written(r.phrase, [r.box], self.tokenizer.bins) for r in listed)])
