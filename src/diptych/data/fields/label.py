"""One class per sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Labels
from diptych.core.errors import DiptychError
from diptych.core.sample import Label, Sample, class_text, in_template
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.text import tokenized
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import pyarrow as pa


class LabelField(Field):
    """``Label`` → ``Labels``, with the texts of all classes as ``label.classes``. template: how a class name becomes a text, with
    ``{}`` in the name's place.
    """

    kind = "label"
    inner = {"classes": "text"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: Any, classes: Sequence[str], *, template: str = "{}"):
        super().__init__(name)
        if "{}" not in template:
            raise DiptychError(f"data.fields.{name}.template: '{template}' has no {{}} where the class name goes")
        self.classes = tuple(classes)
        self.texts = tokenized(tokenizer, [in_template(template, class_text(c)) for c in classes])

    @classmethod
    def build(cls, name: str, context: Context) -> LabelField:
        """The field of this name for a loader."""
        classes = getattr(context.source, "classes", None)
        if not classes:
            where = getattr(context.source, "address", "the source")
            raise DiptychError(
                f"{where} has no list of classes, which the field 'label' needs; read class folders or a table by classes:PATH"
            )
        return cls(name, context.tokenizer, classes, **context.options)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Label:
        """A sample's value as it is kept until it is collated: decoded, at the model's size, augmented."""
        label: Label | None = sample.fields.get(self.name)
        if label is None:
            raise BrokenItem(sample.id, f"no {self.name}")
        if not 0 <= label.index < len(self.classes):
            raise BrokenItem(sample.id, f"class {label.index} ('{label.name}') of {len(self.classes)}")
        return label

    def collate(self, rows: Sequence[Draw]) -> Labels:
        """A batch of it; None if no sample has any."""
        import torch

        return Labels(torch.tensor([row.fitted[self.name].index for row in rows]), self.texts)

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        """Arrow columns of a packed value, by name; the value's presence is a column of the shard."""
        import pyarrow as pa

        return {"label": pa.int32(), "label_name": pa.string()}

    @classmethod
    def pack(cls, value: Label, scale: Any, store: Any) -> dict[str, Any]:
        """A value as a row of these columns."""
        return {"label": value.index, "label_name": value.name}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> Label:
        """The value again."""
        return Label(row["label"], row["label_name"])

    @classmethod
    def blank(cls, value: Label) -> Label:
        """The same class for all: the blind control."""
        return Label(0, "")

    @classmethod
    def draw(cls, value: Label) -> list[Any]:
        """What to show a person: pictures (uint8 arrays) and lines of text, in order."""
        return [value.name]
