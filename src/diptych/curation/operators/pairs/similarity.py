"""The similarity of picture and text by any model that scores pairs, and embeddings for finding items of equal meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from diptych.curation.operators.base import Columns, Operator, arrays
from diptych.curation.operators.models import able, stamp


@dataclass(frozen=True, kw_only=True)
class ClipScore(Operator):
    """``clip_score``: the model's score of each picture with its caption; for CLIP-like models the cosine.

    Hessel et al. 2021, without their factor 2.5. model: a run directory, ``hf:NAME`` or any other address for ``diptych evaluate``;
    by default ``conse``, which needs no training and no hub.
    """

    name = "clip_score"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text")
    outputs = {"clip_score": pa.float32()}  # noqa: RUF012 - declared, never changed
    model: str = "conse"

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        return {"clip_score": score(self.model, arrays(batch["pixels"]), batch["text"].to_pylist())}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)


def score(address: str, pictures: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """The scores of aligned pairs, float32 [N]."""
    each = np.arange(len(texts))
    return able(address, "score").score(pictures, texts, np.stack([each, each], 1))


@dataclass(frozen=True, kw_only=True)
class Embed(Operator):
    """``image_embedding`` and ``text_embedding``: unit vectors of the model; ``of`` names the modalities."""

    name = "embed"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    model: str = ""
    of: tuple[Literal["image", "text"], ...] = ("image",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return tuple({"image": "pixels", "text": "text"}[side] for side in self.of)

    @property
    def outputs(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it adds."""
        return {f"{side}_embedding": pa.list_(pa.float32()) for side in self.of}

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        columns = {}
        for side in self.of:
            model = able(self.model, f"embed_{side}")
            vectors = model.embed_image(arrays(batch["pixels"])) if side == "image" else model.embed_text(batch["text"].to_pylist())
            columns[f"{side}_embedding"] = pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32()))
        return columns

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)
