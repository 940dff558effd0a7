"""Parts that read the frames of a clip in their order (``parts.time``)."""

from __future__ import annotations

from diptych.models.time.codebook import ClipCodes
from diptych.models.time.embeddings import FrameEmbeddings
from diptych.models.time.tokens import ClipTokens, SegmentTokens

TIME = {
    "embeddings": FrameEmbeddings,
    "tokens": ClipTokens,
    "segments": SegmentTokens,
    "codes": ClipCodes,
    "sparse": "diptych.models.time.sparse:SparseClip",
    "factorised": "diptych.models.time.factorised:FactorisedTime",
}
