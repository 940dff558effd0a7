"""The labels of each picture in a table, each with its probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.inference.predict.parts import Parts, Row, fill
from diptych.inference.predict.pictures import Picture, Pictures
from diptych.inference.predict.table import form_of
from diptych.inference.several.model import LabelledModel

ENDINGS = (".csv", ".parquet", ".jsonl")
BEFORE = "p "  # before the name of a label in the name of its column of probabilities


def schema_of(labels: Sequence[str]) -> pa.Schema:
    """The columns: id, the labels given, the probability of every label, and why a picture could not be read."""
    each = [(f"{BEFORE}{name}", pa.float64()) for name in labels]
    return pa.schema([("id", pa.string()), ("labels", pa.list_(pa.string())), *each, ("reason", pa.string())])


def predict_labels(
    model: LabelledModel,
    address: str,
    pictures: Pictures,
    out: Path,
    *,
    overwrite: bool = False,
    batch: int = 32,
    quiet: bool = False,
    note: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Writes the table and returns what is known about it: settings, and the numbers of pictures and of ``broken`` ones.

    A picture has the labels with a probability of at least their threshold, the surest first. Raises Interrupted on Ctrl-C; the
    same call continues.
    """
    settings = {
        "command": "predict",
        "model": address,
        "key": model.key,
        "data": pictures.address,
        "version": pictures.version,
        "labels": list(model.labels),
    }
    parts = Parts(out, form_of(out, ENDINGS), schema_of(model.labels), settings, pictures, overwrite)
    if parts.finished:
        note(f"{out} is complete already")
        return parts.known()

    def rows_of(shown: Sequence[Picture]) -> list[list[Row]]:
        """One row for each picture."""
        read = [p.image for p in shown if p.image is not None]
        found = iter(model.label(read) if read else ())
        return [[{"id": p.id, "reason": p.reason} if p.image is None else _row(model, p.id, next(found))] for p in shown]

    with parts.opened():
        parts.note(thresholds=model.thresholds.tolist())
        fill(parts, pictures, rows_of, "predicting", batch, quiet)
        return parts.close()


def _row(model: LabelledModel, name: str, p: np.ndarray) -> Row:
    order = np.argsort(-p, kind="stable")
    given = [model.labels[i] for i in order if p[i] >= model.thresholds[i]]
    each = {f"{BEFORE}{label}": float(value) for label, value in zip(model.labels, p, strict=True)}
    return {"id": name, "labels": given, **each}
