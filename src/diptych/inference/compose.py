"""What follows a document of texts and images: the next text, the next image, or both in the order that the model chooses.

A sequence is [BOS] words <image> codes </image> … (``models.decoders.interleaved``). Words are written until the model chooses
<image> or [EOS]; after <image> as many codes follow as an image has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from diptych.core.encodings import IMAGE_CODES
from diptych.core.errors import DiptychError
from diptych.inference.generate import Decoding, draw, generate
from diptych.models.decoders.interleaved import CODE, WORD

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

Parts = list[tuple[int, Tensor]]  # (WORD, ids [t] without [BOS] and [EOS]) or (CODE, codes [N])
Following = Literal["text", "image"] | None
STREAMS = 4096  # random streams of one document: one for each of its parts


class Composer:
    """Continues documents with a decoder over words and image codes.

    images: the pass over a list of images.
    """

    def __init__(self, model: VLM, images: Callable[[Sequence[Any]], Pass], device: torch.device):
        self.model, self.images, self.device = model, images, device

    def read(self, document: Sequence[Any]) -> Parts:
        """A document's parts as words and codes. Raises DiptychError for a text longer than the tokenizer's texts."""
        tokenizer = self.model.tokenizer
        pictures = [part for part in document if not isinstance(part, str)]
        codes = iter(self.images(pictures)[IMAGE_CODES] if pictures else ())
        parts: Parts = []
        for part in document:
            if not isinstance(part, str):
                parts.append((CODE, next(codes)))
                continue
            (ids,) = tokenizer.caption_pieces([part])
            if len(ids) > tokenizer.max_length - 2:
                raise DiptychError(
                    f"compose: a text of {len(ids)} tokens; the model has learned from texts of {tokenizer.max_length - 2} at "
                    f"most (data.tokenizer.max_length): split it into several: {part[:60]}…"
                )
            parts.append((WORD, torch.tensor(ids, dtype=torch.long, device=self.device)))
        return parts

    def shown(self, parts: Parts, pictures: Callable[[Tensor], list[Any]]) -> list[Any]:
        """Parts as texts and images. pictures: images of codes [B, N]."""
        codes = [ids for kind, ids in parts if kind == CODE]
        drawn = iter(pictures(torch.stack(codes)) if codes else ())
        return [next(drawn) if kind == CODE else self.model.tokenizer.decode(ids.tolist()) for kind, ids in parts]

    def text(self, parts: Parts, decoding: Decoding, stream: int = 0) -> tuple[Tensor, bool]:
        """The words that follow [t], and whether the model wants an image after them; without one, the document ends there, or at
        the greatest number of tokens.
        """
        decoder = self.model.part("decoder")
        before, _ = decoder.sequence(parts, ends=False)
        ends = (int(decoder.eos), int(decoder.begin))
        ids = generate(
            decoder.step_text, decoder.start_text(before[None]), decoding, eos=ends, pad=int(decoder.pad), rows=[stream]
        )[0]
        stop = torch.isin(ids, torch.tensor(ends, device=ids.device)).nonzero()[:, 0].tolist()
        end = stop[0] if stop else len(ids)
        return ids[:end], bool(stop) and int(ids[end]) == ends[1]

    def image(self, parts: Parts, decoding: Decoding, guidance: float, stream: int = 0) -> Tensor:
        """The codes [N] of the image that follows."""
        before, _ = self.model.part("decoder").sequence(parts, ends=False)
        return draw(self.model, before[None], decoding, guidance, rows=[stream])[0]

    def follow(
        self, document: Sequence[Any], following: Following, most: int, decoding: Decoding, guidance: float, number: int = 0
    ) -> Parts:
        """Up to ``most`` parts that follow a document: one text or image if ``following`` says which, else what the model chooses,
        until it ends the document. number: of the document, for its random numbers.
        """
        if following not in ("text", "image", None):
            raise DiptychError(f"compose: following is {following!r}; expected 'text', 'image', or None for what the model chooses")
        parts = self.read(document)
        known = len(parts)
        while len(parts) - known < most:
            stream = number * STREAMS + len(parts)
            wants_image = following == "image"
            if not wants_image:
                words, wants_image = self.text(parts, decoding, stream)
                if len(words) or following == "text":
                    parts.append((WORD, words))
                if following == "text" or not wants_image or len(parts) - known >= most:
                    break
            parts.append((CODE, self.image(parts, replace(decoding, repetition_penalty=1.0), guidance, stream + 1)))
            if following == "image":
                break
        return parts[known:]
