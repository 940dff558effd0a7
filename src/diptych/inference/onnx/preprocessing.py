"""From pictures and texts to what the graphs read, without torch: the same pixels and token ids that torch's model gets.

preprocessing.json has two entries, ``pictures`` and ``texts``, which are the arguments of ``Pictures`` and ``Texts`` here.
Shapes: B batch, H and W of the square that the model reads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diptych.core.errors import DiptychError
from diptych.data.image import as_pixels, resize
from diptych.data.text import Tokenizer


class Pictures:
    """Pixels at the size that the model reads.

    kind: ``square``: the central square, scaled to ``size`` (``data.image.resize``); ``steps``: as image processors of transformers
    do, by Pillow: ``{"shorter": pixels}`` or ``{"size": [H, W]}`` with a ``filter`` of Pillow, then ``{"crop": [H, W]}``.
    """

    def __init__(self, kind: Literal["square", "steps"], size: int = 0, steps: Sequence[dict[str, Any]] = ()):
        if kind not in ("square", "steps") or (kind == "square") != bool(size):
            raise DiptychError(
                f"preprocessing.json: pictures of kind '{kind}' and size {size} are not known; export the model again"
            )
        self.kind, self.size, self.steps = kind, size, list(steps)

    def __call__(self, images: Sequence[Any]) -> np.ndarray:
        """uint8 [B, H, W, 3]. images: arrays, Pillow images, paths."""
        return np.stack([self.one(image, f"image {i}") for i, image in enumerate(images)])

    def one(self, image: Any, name: str) -> np.ndarray:
        """uint8 [H, W, 3]. name: of the picture, in messages."""
        pixels = as_pixels(image, name)
        return resize(pixels, self.size) if self.kind == "square" else _through(pixels, self.steps)


def _through(pixels: np.ndarray, steps: Sequence[dict[str, Any]]) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(pixels)
    for step in steps:
        if "crop" in step:
            height, width = step["crop"]
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))  # beyond the picture: black
            continue
        if "shorter" in step:
            side, short, long = step["shorter"], min(picture.size), max(picture.size)
            longer = int(side * long / short)
            size = (side, longer) if picture.width <= picture.height else (longer, side)
        else:
            size = tuple(step["size"][::-1])
        picture = picture.resize(size, Image.Resampling(step["filter"]))
    return np.asarray(picture)


class Texts:
    """Token ids of texts.

    kind: ``captions``: Diptych's own tokenizer (``data.text.Tokenizer``); ``pieces``: one as transformers saves it, with the
    special tokens that it adds. length: the most tokens of a text. padding: ``longest`` of the batch, or to the ``full`` length.
    inputs: which of ids and mask the graph reads.
    """

    def __init__(
        self,
        tokenizer: str,
        kind: Literal["captions", "pieces"],
        length: int,
        padding: Literal["longest", "full"] = "longest",
        pad: int = 0,
        inputs: Sequence[str] = ("ids", "mask"),
    ):
        if kind not in ("captions", "pieces"):
            raise DiptychError(f"preprocessing.json: texts of kind '{kind}' are not known; export the model again")
        self.kind, self.length, self.padding, self.pad, self.inputs = kind, length, padding, pad, tuple(inputs)
        if kind == "captions":
            self.own = Tokenizer(tokenizer, length)
        else:
            import tokenizers

            self.pieces = tokenizers.Tokenizer.from_str(tokenizer)
            self.pieces.no_padding()
            self.pieces.enable_truncation(max_length=length)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without those that mark beginning and end."""
        if self.kind == "captions":
            return self.own.caption_pieces(texts)
        sound = [text.encode("utf-8", "replace").decode() for text in texts]
        return [e.ids for e in self.pieces.encode_batch(sound, add_special_tokens=False)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens. DiptychError for a number that is no token."""
        most = len(self.own) if self.kind == "captions" else self.pieces.get_vocab_size()
        for i in ids:
            if not 0 <= i < most:
                raise DiptychError(f"there is no token {i}; tokens are 0 to {most - 1}")
        return self.own.decode(ids) if self.kind == "captions" else str(self.pieces.decode(list(ids)))

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [B, T] and mask bool [B, T]."""
        if self.kind == "captions":
            return self.own.encode_batch(texts)
        sound = [text.encode("utf-8", "replace").decode() for text in texts]  # no lone surrogates: the tokenizer raises on them
        rows = [e.ids for e in self.pieces.encode_batch(sound)]
        longest = self.length if self.padding == "full" else max(map(len, rows), default=1)
        ids = np.full((len(rows), longest), self.pad, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        return ids, mask

    def cut(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a larger batch without the padding that none of them needs, as if they had been a batch of their own."""
        if self.padding == "full":
            return ids, mask
        longest = max(int(mask.sum(1).max(initial=1)), 1)
        if self.kind == "captions":  # whole fours
            longest = min(-(-longest // 4) * 4, self.length)
        return ids[:, :longest], mask[:, :longest]
