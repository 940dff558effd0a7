"""Pictures of any shape, whole and at their own size.

A picture keeps its shape as far as sides that are multiples of a patch allow (Qwen2-VL, Wang et al. 2024, arXiv:2409.12191, §2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.core.batch import Images
from diptych.core.errors import DiptychError

if TYPE_CHECKING:
    from torch import Tensor


def native_size(height: int, width: int, multiple: int, least: int, most: int) -> tuple[int, int]:
    """The height and width nearest to those of a picture that are multiples of ``multiple``; of a picture with fewer than ``least``
    or more than ``most`` pixels those of one of its shape that is just large, or small, enough.
    """
    high, wide = round(height / multiple) * multiple, round(width / multiple) * multiple
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        sides = (max(multiple, math.floor(side / shrink / multiple) * multiple) for side in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        sides = (math.ceil(side * grow / multiple) * multiple for side in (height, width))
    else:
        return high, wide
    high, wide = sides
    return high, wide


@dataclass
class Native(Images):
    """Pictures of sizes of their own: pixels [B, 3, H, W] of the highest and the widest, zeros right of and below the others."""

    sizes: Tensor | None = None  # [B, 2] int64: height and width in pixels

    row_wise = ("pixels", "sizes")
    heavy = ("pixels", "sizes")

    @classmethod
    def of(cls, pictures: Sequence[np.ndarray]) -> Native:
        """These pictures, uint8 [height, width, 3], as one batch."""
        import torch

        sizes = torch.tensor([p.shape[:2] for p in pictures])
        high, wide = sizes.amax(0).tolist()
        pixels = torch.zeros(len(pictures), high, wide, 3, dtype=torch.uint8)
        for row, picture in zip(pixels, pictures, strict=True):
            row[: picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture)
        return cls(pixels.permute(0, 3, 1, 2), sizes=sizes)

    @classmethod
    def cat(cls, parts: Sequence[Any], starts: Sequence[int], length: int | None = None) -> Any:
        """This field of consecutive batches as one, as high and as wide as the highest and the widest."""
        import torch.nn.functional as F

        high, wide = (max(p.pixels.shape[axis] for p in parts) for axis in (2, 3))
        room = [(0, wide - p.pixels.shape[3], 0, high - p.pixels.shape[2]) for p in parts]
        grown = [Native(F.pad(p.pixels, r), p.owner, sizes=p.sizes) for p, r in zip(parts, room, strict=True)]
        return super().cat(grown, starts, None)


class Fitting:
    """How pictures are scaled: sides that are multiples of ``multiple`` pixels, an area between ``least`` and ``most`` pixels."""

    def __init__(self, multiple: int = 16, least: int = 1024, most: int = 65536):
        if multiple < 1 or not multiple**2 <= most or least > most:
            raise DiptychError(
                f"data.fields, kind native: multiple {multiple}, least {least} and most {most} leave no picture; least is at most "
                "most, and most at least the square of multiple"
            )
        self.multiple, self.least, self.most = multiple, least, most

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A picture, uint8 [H, W, 3], as the model reads it. Bicubic, antialiased."""
        from PIL import Image

        height, width = image.shape[:2]
        high, wide = native_size(height, width, self.multiple, self.least, self.most)
        if (high, wide) == (height, width):
            return image
        return np.array(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC))

    def stacked(self, pictures: Sequence[np.ndarray]) -> Native:
        """These pictures as one batch."""
        return Native.of(pictures)
