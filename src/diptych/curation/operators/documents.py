"""Interleaved documents of pictures and paragraphs: OBELICS' filters, and MMC4's assignment of pictures to sentences."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from diptych.core.extras import need
from diptych.core.registry import resolve
from diptych.curation.operators.base import Columns, Operator
from diptych.curation.operators.text.language import IDENTIFIERS
from diptych.curation.operators.text.quality import character_repetition, word_repetition
from diptych.data.negatives import FUNCTION_WORDS

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SPECIAL = frozenset(string.punctuation + string.digits)


@dataclass(frozen=True)
class TextLimits:
    """Limits of one text; ``None``: not applied."""

    least_words: int
    most_words: int
    character_repetition: float  # runs of 10 characters
    word_repetition: float  # runs of 5 words
    special_characters: float  # marks and digits, of all characters
    least_stop_words: float  # of all words
    least_punctuation: float  # punctuation marks for each word, of texts of at least 12 words
    language_probability: float | None  # of English


@dataclass(frozen=True)
class Limits:
    """The limits of OBELICS (Laurençon et al. 2023, arXiv:2306.16527) that need no word list or model outside of packages."""

    image_side: tuple[int, int] = (150, 20_000)  # pixels
    image_aspect: float = 2.0
    images: tuple[int, int] = (1, 30)
    paragraph: TextLimits = TextLimits(4, 1_000, 0.1, 0.1, 0.3, 0.3, 0.001, None)
    document: TextLimits = TextLimits(10, 2_000, 0.1, 0.2, 0.275, 0.35, 0.03, 0.8)


OBELICS = Limits()


def text_reason(text: str, limits: TextLimits, english: float | None = None) -> str | None:
    """The name of the first limit that a text violates; None if it violates none."""
    words = _WORD.findall(text.lower())
    n = len(words)
    if n < limits.least_words:
        return "too few words"
    if n > limits.most_words:
        return "too many words"
    measured = {
        "character repetition": character_repetition(text, 10) > limits.character_repetition,
        "word repetition": word_repetition(" ".join(words), 5) > limits.word_repetition,
        "special characters": sum(c in _SPECIAL for c in text) / len(text) > limits.special_characters,
        "few stop words": sum(w in STOP_WORDS for w in words) / n < limits.least_stop_words,
        "no punctuation": n >= 12 and sum(c in string.punctuation for c in text) / n < limits.least_punctuation,
        "not English": english is not None and limits.language_probability is not None and english < limits.language_probability,
    }
    return next((reason for reason, broken in measured.items() if broken), None)


STOP_WORDS = FUNCTION_WORDS - {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


def image_reason(width: int, height: int, limits: Limits = OBELICS) -> str | None:
    """The name of the first limit that an image violates; None if it violates none."""
    low, high = limits.image_side
    if min(width, height) < low:
        return "picture too small"
    if max(width, height) > high:
        return "picture too large"
    if max(width, height) > limits.image_aspect * min(width, height):
        return "picture too long"
    return None


@dataclass(frozen=True, kw_only=True)
class DocumentLimits(Operator):
    """OBELICS' filters: pictures and paragraphs that violate a limit are removed, then the rest of the document is checked.

    texts: a column of lists of paragraphs; images: a column of lists of {width, height}. ``kept_texts``, ``kept_images``: positions
    of those that are kept; ``document_reason``: the limit that the document violates, null if it is kept. identifier: as in
    ``language``.
    """

    name = "document_limits"
    outputs = {  # noqa: RUF012 - declared, never changed
        "kept_texts": pa.list_(pa.int32()),
        "kept_images": pa.list_(pa.int32()),
        "document_reason": pa.string(),
    }
    texts: str = "extra.texts"
    images: str = "extra.images"
    identifier: str = "py3langid"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (self.texts, self.images)

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        identify = resolve(self.identifier, IDENTIFIERS, "language identifier")
        rows = [
            self.filter_document(texts, images, identify)
            for texts, images in zip(batch[self.texts].to_pylist(), batch[self.images].to_pylist(), strict=True)
        ]
        return dict(zip(self.outputs, map(list, zip(*rows, strict=True)), strict=True)) if rows else {k: [] for k in self.outputs}

    def filter_document(
        self, texts: Sequence[str | None], images: Sequence[dict[str, Any]], identify: Any, limits: Limits = OBELICS
    ) -> tuple[list[int], list[int], str | None]:
        """Positions of the kept texts and images, and the limit that the document violates (None: it is kept)."""
        kept = [i for i, text in enumerate(texts) if text and text_reason(text, limits.paragraph) is None]
        shown = [i for i, image in enumerate(images) if image and image_reason(image["width"], image["height"], limits) is None]
        low, high = limits.images
        if not low <= len(shown) <= high:
            return kept, shown, "too few pictures" if len(shown) < low else "too many pictures"
        whole = "\n\n".join(str(texts[i]) for i in kept)
        code, probability = identify([whole])[0] if whole else ("", 0.0)
        return kept, shown, text_reason(whole, limits.document, probability if code == "en" else 0.0)


def assign(similarity: np.ndarray, least: float = -np.inf) -> np.ndarray:
    """The sentence of each picture, int64 [I]; −1: none. ``similarity`` [I pictures, S sentences].

    The assignment with the greatest sum in which no sentence has two pictures (Zhu et al. 2023, arXiv:2304.06939), by
    ``scipy.optimize``. Pictures with a best similarity below ``least``, and surplus pictures, get none.
    """
    similarity = np.asarray(similarity, np.float64)
    place = np.full(len(similarity), -1, np.int64)
    if similarity.size:
        takes_part = np.flatnonzero(similarity.max(1) >= least)
        optimize = need("scipy.optimize", extra="curate", what="the operator assign_images")
        rows, columns = optimize.linear_sum_assignment(similarity[takes_part], maximize=True)
        place[takes_part[rows]] = columns
    return place


@dataclass(frozen=True, kw_only=True)
class AssignImages(Operator):
    """MMC4's assignment. images, sentences: columns with a list of unit vectors for each document, from one model.

    ``sentence_of_image``: the position of each picture's sentence, −1 for none; ``image_similarity``: their cosine. least: the
    smallest similarity of an assigned pair (MMC4: 0.15 with CLIP ViT-L/14).
    """

    name = "assign_images"
    outputs = {  # noqa: RUF012 - declared, never changed
        "sentence_of_image": pa.list_(pa.int32()),
        "image_similarity": pa.list_(pa.float32()),
    }
    images: str = "extra.image_embeddings"
    sentences: str = "extra.sentence_embeddings"
    least: float = 0.15

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that it reads: a class attribute, or a property that depends on parameters."""
        return (self.images, self.sentences)

    def compute(self, batch: pa.RecordBatch) -> Columns:
        """The outputs for the rows of ``batch``, which holds ``row``, ``id``, ``hash`` and the declared inputs."""
        places, values = [], []
        for images, sentences in zip(batch[self.images].to_pylist(), batch[self.sentences].to_pylist(), strict=True):
            similarity = np.array(images) @ np.array(sentences).T if images and sentences else np.empty((len(images), 0))
            place = assign(similarity, self.least)
            places.append(place.tolist())
            values.append([float(similarity[i, s]) if s >= 0 else None for i, s in enumerate(place)])
        return {"sentence_of_image": places, "image_similarity": pa.array(values, pa.list_(pa.float32()))}


def table() -> list[tuple[str, str]]:
    """(name, value) of every limit, for reports."""
    rows = [
        (f.name.replace("_", " "), str(getattr(OBELICS, f.name))) for f in fields(Limits) if f.name not in ("paragraph", "document")
    ]
    for part in ("paragraph", "document"):
        rows += [(f"{part}: {f.name.replace('_', ' ')}", str(getattr(getattr(OBELICS, part), f.name))) for f in fields(TextLimits)]
    return rows
