"""Any model of pictures as a model of clips: the mean over its frames. The baseline that a model of time has to beat.

``pooled:runs/clip``, ``pooled:hf:NAME?frames=8``: a clip's vector is the mean of its frames' unit vectors, scaled to length 1; of a
model without vectors, its score is the mean of the frames' scores. Clips that show the same frames in another order have exactly
the same vector and the same scores: each distinct frame is encoded once in a call, and the mean does not depend on the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from diptych.core.capabilities import Adapter, Image, Model, all_pairs, one_or_many
from diptych.core.errors import DiptychError
from diptych.data.clips import as_video

SCHEME = "pooled:"


def split_address(address: str) -> tuple[str, dict[str, int]]:
    """The address of the model of pictures, and the options of the pooling; the others stay with the model."""
    place, _, query = address.removeprefix(SCHEME).partition("?")
    if not place:
        raise DiptychError(f"'{address}' has no model; expected {SCHEME}MODEL, such as {SCHEME}runs/clip or {SCHEME}hf:NAME")
    given = parse_qsl(query, keep_blank_values=True)
    others = [(name, value) for name, value in given if name != "frames"]
    options: dict[str, int] = {}
    for name, value in given:
        if name == "frames":
            if not value.isdigit():
                raise DiptychError(f"'{address}': frames must be a whole number from 1 on, or 0 for all, not '{value}'")
            options["frames"] = int(value)
    return place + (f"?{urlencode(others, safe=':/,')}" if others else ""), options


class PooledModel(Adapter):
    """A model of pictures that is shown clips, uint8 [frames, height, width, 3]; a picture is a clip of one frame.

    base: it must embed images and texts, or score. frames: at most this many of a clip, evenly spread and the same backwards; 0:
    all, so that clips of the same frames in another order are exactly alike.
    """

    shows = "video"

    def __init__(self, base: Model, frames: int = 0):
        if getattr(base, "shows", "image") == "video":
            raise DiptychError(f"{base.name} reads clips itself; pooled: is for models of pictures")
        able = base.capabilities & {"embed_image", "embed_text", "score"}
        self.vectors = {"embed_image", "embed_text"} <= able
        if not self.vectors and "score" not in able:
            raise DiptychError(f"{base.name} neither embeds nor scores; pooled: is for models that do")
        self.base, self.frames, self.name = base, frames, f"{SCHEME}{base.name}" + (f"?frames={frames}" if frames else "")
        self.capabilities = frozenset({"embed_image", "embed_text", "score", "score_all"} if self.vectors else {"score"})
        key = getattr(base, "key", None)
        self.key = None if key is None else f"{key} pooled {frames}"

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors of clips, float32 [N, E]: the means of those of their frames."""
        if not self.vectors:
            self.cannot("embed_image")
        frames, numbers = self._distinct(images)
        vectors = np.asarray(self.base.embed_image(frames), dtype=np.float64)
        means = np.stack([_mean(vectors[of]) for of in numbers])
        units: np.ndarray = (means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        return units

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts, float32 [N, E]: those of the model."""
        return np.asarray(self.base.embed_text(texts))

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """Cosines of clips and texts, or the mean of the frames' scores, float32 [N, M], or [P] for ``pairs``."""
        texts = one_or_many(texts)
        if self.vectors:
            clips, which = np.unique(self.embed_image(images), axis=0, return_inverse=True)
            # equal clips are one row of the product: rows of one product may differ in their last digit
            matrix: np.ndarray = (clips @ self.embed_text(texts).T)[which.ravel()]
            return matrix if pairs is None else matrix[pairs[:, 0], pairs[:, 1]]
        frames, numbers = self._distinct(images)
        wanted = all_pairs(len(numbers), len(texts)) if pairs is None else np.asarray(pairs)
        needed = sorted({(int(f), int(j)) for i, j in wanted for f in numbers[i]})
        at = {pair: k for k, pair in enumerate(needed)}
        scores = np.asarray(self.base.score(frames, texts, np.array(needed)), dtype=np.float64)
        means = [_mean(scores[[at[int(f), int(j)] for f in numbers[i]]]) for i, j in wanted]
        result = np.array(means, dtype=np.float32)
        return result if pairs is not None else result.reshape(len(numbers), len(texts))

    def _distinct(self, clips: Any) -> tuple[list[Image], list[list[int]]]:
        """The distinct frames of all clips, and for each clip the numbers of its frames."""
        known: dict[bytes, int] = {}
        frames: list[Image] = []
        numbers = []
        for k, clip in enumerate(clips if isinstance(clips, (list, tuple)) else [clips]):
            own = []
            shown = as_video(clip, f"clip {k}").frames
            for i in evenly(len(shown), self.frames):
                frame = np.ascontiguousarray(shown[i])
                key = hashlib.blake2b(frame.tobytes(), digest_size=16).digest() + repr(frame.shape).encode()
                if key not in known:
                    known[key] = len(frames)
                    frames.append(frame)
                own.append(known[key])
            numbers.append(own)
        return frames, numbers


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` positions, evenly spread, which are the same read backwards: one fewer where an odd number of
    an even one is wanted. All, if ``wanted`` is 0 or not smaller.
    """
    if not 0 < wanted < count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    first = [int((i + 0.5) * count / wanted) for i in range(wanted // 2)]
    middle = [count // 2] if wanted % 2 and count % 2 else []
    return [*first, *middle, *(count - 1 - i for i in reversed(first))]


def _mean(values: np.ndarray) -> Any:
    """The mean over the first axis, the same in any order of its entries, to the last digit."""
    return np.sort(values, axis=0).mean(axis=0)
