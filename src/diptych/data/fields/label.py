"""A class a sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Labels
from diptych.core.errors import DiptychError
from diptych.core.sample import Label, Sample
from diptych.data.fields.base import Context, Draw, Field
from diptych.data.fields.text import tokenized
from diptych.data.source import BrokenItem

if TYPE_CHECKING:
    import pyarrow as pa


class LabelField(Field):
    """``Label`` → ``Labels``, with the texts of all classes as ``label.classes``. template: how a class name becomes a text."""

    kind = "label"
    inner = {"classes": "text"}  # noqa: RUF012 - never changed

    def __init__(self, name: str, tokenizer: Any, classes: Sequence[str], template: str = "{}"):
        super().__init__(name)
        self.classes = tuple(classes)
        self.texts = tokenized(tokenizer, [template.format(c.replace("_", " ")) for c in classes])

    @classmethod
    def build(cls, name: str, context: Context) -> LabelField:
        classes = getattr(context.source, "classes", None)
        if not classes:
            where = getattr(context.source, "address", "the source")
            raise DiptychError(
                f"{where} has no list of classes, which the field 'label' needs; read class folders or a table by classes:PATH"
            )
        return cls(name, context.tokenizer, classes)

    def fit(self, sample: Sample, rng: Callable[[], random.Random]) -> Label:
        label: Label | None = sample.fields.get(self.name)
        if label is None:
            raise BrokenItem(sample.id, f"no {self.name}")
        if not 0 <= label.index < len(self.classes):
            raise BrokenItem(sample.id, f"class {label.index} ('{label.name}') of {len(self.classes)}")
        return label

    def collate(self, rows: Sequence[Draw]) -> Labels:
        import torch

        return Labels(torch.tensor([row.fitted[self.name].index for row in rows]), self.texts)

    @classmethod
    def schema(cls) -> dict[str, pa.DataType]:
        import pyarrow as pa

        return {"label": pa.int32(), "label_name": pa.string()}

    @classmethod
    def pack(cls, value: Label, scale: Any, store: Any) -> dict[str, Any]:
        return {"label": value.index, "label_name": value.name}

    @classmethod
    def unpack(cls, row: Mapping[str, Any], load: Any) -> Label:
        return Label(row["label"], row["label_name"])

    @classmethod
    def draw(cls, value: Label) -> list[Any]:
        return [value.name]
