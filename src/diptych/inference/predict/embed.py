"""The vectors of pictures, and of their captions, in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.capabilities import Model, in_words
from diptych.core.errors import DiptychError
from diptych.inference.predict.parts import Parts, Row, fill
from diptych.inference.predict.pictures import Picture, Pictures
from diptych.inference.predict.table import form_of

ENDINGS = (".parquet", ".npy")


def schema_of(width: int, text: bool, facts: dict[str, str]) -> pa.Schema:
    """The columns: id, with ``text`` the kind of row (image or text) and the caption, the unit vector, and why there is none.

    facts: metadata of the file.
    """
    kinds = [("kind", pa.string()), ("text", pa.string())] if text else []
    fields = [("id", pa.string()), *kinds, ("vector", pa.list_(pa.float32(), width)), ("reason", pa.string())]
    return pa.schema(fields, metadata={f"diptych.{name}": value for name, value in facts.items()})


def embed(
    model: Model,
    address: str,
    pictures: Pictures,
    out: Path,
    *,
    text: bool = False,
    overwrite: bool = False,
    batch: int = 32,
    quiet: bool = False,
    note: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Writes the unit vectors and returns what is known about the file: settings, and the numbers of pictures and ``broken`` ones.

    address: of the model. text: also of each caption, as a row of its own. Raises Interrupted on Ctrl-C.
    """
    lacking = [name for name in ("embed_image", *(["embed_text"] if text else [])) if name not in model.capabilities]
    if lacking:
        raise DiptychError(
            f"{address} cannot {in_words(lacking)}; it can: {', '.join(sorted(model.capabilities)) or 'nothing'}. "
            "Take a model with vectors, such as clip"
        )
    width = int(np.asarray(model.embed_image([np.full((32, 32, 3), 128, np.uint8)])).shape[1])
    key = getattr(model, "key", None)
    settings = {
        "command": "embed",
        "model": address,
        "key": key,
        "data": pictures.address,
        "version": pictures.version,
        "text": text,
        "width": width,
    }
    facts = {"model": address, "key": key or "", "data": pictures.address}
    parts = Parts(out, form_of(out, ENDINGS), schema_of(width, text, facts), settings, pictures, overwrite)
    if parts.finished:
        note(f"{out} is complete already")
        return parts.known()

    def rows_of(shown: Sequence[Picture]) -> list[list[Row]]:
        """A row for each picture, followed by one for each of its captions."""
        read = [p.image for p in shown if p.image is not None]
        captions = [c for p in shown if p.image is not None for c in p.captions] if text else []
        image = iter(np.asarray(model.embed_image(read), np.float32) if read else ())
        words = iter(np.asarray(model.embed_text(captions), np.float32) if captions else ())
        result: list[list[Row]] = []
        for p in shown:
            kind = {"kind": "image"} if text else {}
            if p.image is None:
                result.append([{"id": p.id, **kind, "reason": p.reason}])
                continue
            rows: list[Row] = [{"id": p.id, **kind, "vector": next(image)}]
            if text:
                rows += [{"id": p.id, "kind": "text", "text": caption, "vector": next(words)} for caption in p.captions]
            result.append(rows)
        return result

    with parts.opened():
        fill(parts, pictures, rows_of, "embedding", batch, quiet)
        return parts.close()
