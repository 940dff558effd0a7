"""The length of the text."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diptych.core.words import count_words
from diptych.curation.operators.base import Columns, Operator


@dataclass(frozen=True, kw_only=True)
class TextLength(Operator):
    """``characters`` and ``words`` of the caption; ``core.words`` says what a word is, in any script."""

    name = "text_length"
    version = 2
    inputs = ("text",)
    outputs = {"characters": pa.int32(), "words": pa.int32()}  # noqa: RUF012 - declared, never changed

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        text = batch["text"]
        return {"characters": pc.utf8_length(text), "words": count_words(text)}
