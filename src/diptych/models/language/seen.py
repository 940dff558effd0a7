"""The images that gated layers look at: several in one sequence, of which a word sees the last one before it (Flamingo, Alayrac et
al. 2022, §2.3).

Shapes: B rows, L positions, M images of the row with the most, N tokens per image, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diptych.models.layers.cache import Indexed
from diptych.models.layers.ragged import ImageTokens, Ragged


def at_end(words: Tensor, image: ImageTokens) -> Tensor:
    """Which positions of words [B, L, D] are those of an image [B, N, D] at their end: bool [B, L]."""
    count = image.counts[:, None] if isinstance(image, Ragged) else image.shape[1]
    return (torch.arange(words.shape[1], device=words.device) >= words.shape[1] - count).expand(len(words), -1)


@dataclass
class Seen(Indexed):
    """The images of each row, and which of them each position sees."""

    images: Tensor  # [B, M, N, D]
    which: Tensor | None = None  # [B, L or 1]: number of the image, −1: none; None: all positions see the only one

    @classmethod
    def one(cls, image: Tensor) -> Seen:
        """One image per row [B, N, D], which every position sees."""
        return cls(image[:, None])

    @classmethod
    def latest(cls, places: Tensor, shown: Tensor | None, width: int, positions: Tensor | None = None) -> Seen:
        """Each position sees the last image at or before it, in its own document.

        places [B, L] bool: the positions of images; shown [I, N, D]: these images, row by row; width: of image tokens, if there are
        no images; positions [B, L]: from 0 in each of the documents that share a row; None: each row is one document.
        """
        count = places.cumsum(1)  # images so far
        which = count - 1
        if positions is not None:
            begun = (torch.arange(places.shape[1], device=places.device) - positions).clamp_min(
                0
            )  # where the document of each position begins
            before = (count - places.long()).gather(1, begun)
            which = which.masked_fill(count <= before, -1)
        if shown is None:
            return cls(torch.zeros(len(places), 1, 1, width, device=places.device), which)
        rows, at = places.nonzero(as_tuple=True)
        images = shown.new_zeros(len(places), max(1, int(count[:, -1].max())), *shown.shape[1:])
        return cls(images.index_put((rows, count[rows, at] - 1), shown), which)

    @cached_property
    def tokens(self) -> Tensor:
        """[B, M·N, D]"""
        return self.images.flatten(1, 2)

    @cached_property
    def looks(self) -> Tensor | None:
        """[B, L or 1, M·N] bool: at which image tokens each position looks; None: at all."""
        if self.which is None:
            return None
        M, N = self.images.shape[1:3]
        return (self.which[..., None] == torch.arange(M, device=self.which.device)).repeat_interleave(N, -1)

    def last(self) -> Seen:
        """What the positions after the last one see, until there is another image."""
        if self.which is None:
            return self
        which = self.which[:, -1]
        rows = torch.arange(len(which), device=which.device)
        return Seen(self.images[rows, which.clamp_min(0)][:, None], which.clamp_max(0)[:, None])

    def expand(self, rows: int) -> Seen:
        """One row repeated, without copying."""
        return Seen(self.images.expand(rows, -1, -1, -1), None if self.which is None else self.which.expand(rows, -1))
