"""Captions of a captioning model next to those of the web: Sieve, recaptioning, CapFilt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from diptych.core.arrays import unit_rows
from diptych.curation.operators.base import Columns, Operator, arrays
from diptych.curation.operators.models import able, stamp
from diptych.curation.operators.pairs.similarity import score

# Phrases that name the medium, not the content; longer ones first, so that no part of them remains.
MEDIUM = (
    "there is a picture of", "there is a photo of", "there is an image of", "this is a picture of", "this is a photo of",
    "this is an image of", "a close up picture of", "a close up photo of", "a black and white photo of",
    "a black and white photograph of", "a close-up of", "a close up of", "a picture of", "a photo of", "an image of",
    "a photograph of", "a drawing of", "a painting of", "a screenshot of", "an illustration of", "a view of",
    "picture of", "photo of", "image of", "photograph of", "illustration of",
    "stock photo", "stock image", "royalty free", "there is", "there are",
)  # fmt: skip
_MEDIUM = re.compile(r"\b(?:" + "|".join(re.escape(p) for p in sorted(MEDIUM, key=len, reverse=True)) + r")\b", re.IGNORECASE)


def without_medium(text: str) -> str:
    """The text without medium phrases, at word boundaries ("photo office" is unchanged); the whole text if nothing else is left."""
    return " ".join(_MEDIUM.sub(" ", text).split()).strip(" ,;:.-") or text


def views(picture: np.ndarray, k: int) -> list[np.ndarray]:
    """k views of a picture: the whole, then its corners and centre at four fifths, then those mirrored."""
    height, width = picture.shape[:2]
    h, w = max(1, height * 4 // 5), max(1, width * 4 // 5)
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w), ((height - h) // 2, (width - w) // 2)]
    crops = [picture, *(picture[y : y + h, x : x + w] for y, x in corners)]
    return [np.ascontiguousarray(v) for v in [*crops, *(c[:, ::-1] for c in crops)][:k]]


@cache
def _sentences() -> Any:
    from diptych.models.pretrained.minilm import load_minilm

    return load_minilm()


def sentence_vectors(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of MiniLM, float32 [N, 384]."""
    return unit_rows(_sentences().embed(list(texts)).numpy())


@dataclass(frozen=True, kw_only=True)
class Sieve(Operator):
    """``sieve_score``: the similarity of the caption to the nearest of k generated captions.

    Mahmoud et al. 2024, arXiv:2310.02110. Medium phrases are removed from both. The k captions are greedy ones of k views of the
    picture; the paper samples k captions of one view, which would give other scores each time. The paper's score is ``fuse`` with
    ``{sieve_score: 0.5, clip_score: 0.5}``.
    """

    name = "sieve"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text")
    outputs = {"sieve_score": pa.float32(), "sieve_caption": pa.string()}  # noqa: RUF012 - declared, never changed
    model: str = ""
    k: int = 4
    max_tokens: int = 32

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        pictures, n = arrays(batch["pixels"]), batch.num_rows
        captions = able(self.model, "generate").generate([v for p in pictures for v in views(p, self.k)], "", self.max_tokens)
        web = sentence_vectors([without_medium(text) for text in batch["text"].to_pylist()])
        caption_vectors = sentence_vectors([without_medium(text) for text in captions]).reshape(n, -1, web.shape[1])
        similarity = np.einsum("ne,nke->nk", web, caption_vectors)
        best = similarity.argmax(1)
        return {
            "sieve_score": similarity.max(1),
            "sieve_caption": [captions[i * caption_vectors.shape[1] + int(b)] for i, b in enumerate(best)],
        }

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)


def shear(extended: str, original: str) -> str:
    """The extended caption cut to the number of words of the original: "text shearing" (Liu et al. 2023, arXiv:2311.18765)."""
    return " ".join(extended.split()[: max(1, len(original.split()))])


@dataclass(frozen=True, kw_only=True)
class Recaption(Operator):
    """``synthetic_text``: a generated caption of the picture; ``sheared_text``: the same, no longer than the original caption.

    prompt: for models that follow one.
    """

    name = "recaption"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text")
    outputs = {"synthetic_text": pa.string(), "sheared_text": pa.string()}  # noqa: RUF012 - declared, never changed
    model: str = ""
    prompt: str = ""
    max_tokens: int = 32

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        made = able(self.model, "generate").generate(arrays(batch["pixels"]), self.prompt, self.max_tokens)
        return {"synthetic_text": made, "sheared_text": [shear(m, t) for m, t in zip(made, batch["text"].to_pylist(), strict=True)]}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)


@dataclass(frozen=True, kw_only=True)
class CapFilt(Operator):
    """BLIP's filter (Li et al. 2022, arXiv:2201.12086): keeps each of the web's and the generated caption that matches the picture.

    ``web_match``, ``synthetic_match``: scores of the matching model; ``matched_captions``: those of at least ``threshold``
    (log-odds for a matching head: 0 is even odds), the web's first; null if none. After ``recaption``.
    """

    name = "capfilt"
    resources: ClassVar[Literal["cpu", "model"]] = "model"
    inputs = ("pixels", "text", "synthetic_text")
    outputs = {  # noqa: RUF012 - declared, never changed
        "web_match": pa.float32(),
        "synthetic_match": pa.float32(),
        "matched_captions": pa.list_(pa.string()),
    }
    model: str = ""
    threshold: float = 0.0

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        pictures, web, made = arrays(batch["pixels"]), batch["text"].to_pylist(), batch["synthetic_text"].to_pylist()
        matches = [score(self.model, pictures, texts) for texts in (web, made)]
        kept = [
            [text for text, match in ((a, m), (b, n)) if match >= self.threshold] or None
            for a, b, m, n in zip(web, made, *matches, strict=True)
        ]
        return {"web_match": matches[0], "synthetic_match": matches[1], "matched_captions": kept}

    def depends(self) -> str:
        """Anything else that the result depends on, such as a hash of a model's files; part of the result's address."""
        return stamp(self.model)
