"""The length of the text."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diptych.curation.operators.base import Columns, Operator


@dataclass(frozen=True, kw_only=True)
class TextLength(Operator):
    """``characters`` and ``words`` (separated by white space) of the caption."""

    name = "text_length"
    inputs = ("text",)
    outputs = {"characters": pa.int32(), "words": pa.int32()}  # noqa: RUF012 - declared, never changed

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        text = batch["text"]
        words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(text)))
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)  # splitting an empty text gives one piece
        return {"characters": pc.utf8_length(text), "words": pc.if_else(empty, 0, words)}
