"""Parts that read the frames of a clip in their order (``parts.time``)."""

from __future__ import annotations

from diptych.models.time.embeddings import FrameEmbeddings
from diptych.models.time.tokens import ClipTokens

TIME = {
    "embeddings": FrameEmbeddings,
    "tokens": ClipTokens,
    "sparse": "diptych.models.time.sparse:SparseClip",
    "factorised": "diptych.models.time.factorised:FactorisedTime",
}
