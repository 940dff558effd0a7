"""Pictures in tiles, as a batch has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diptych.core.batch import Images, Tokens
from diptych.data.tiles.grid import Tiled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Tiles(Images):
    """Pictures with a number of tiles of their own; G: that of the picture with the most. A row is a picture, as in ``Images``."""

    # pixels: [B, G, 3, S, S], zeros where a picture has fewer tiles
    grids: Tensor | None = None  # [B, 2] int64: rows and columns of tiles
    sizes: Tensor | None = None  # [B, 2] int64: height and width of the picture, in pixels

    row_wise = ("pixels", "grids", "sizes")
    padded = ("pixels",)
    heavy = ("pixels", "grids", "sizes")

    @classmethod
    def of(cls, pictures: Sequence[Tiled]) -> Tiles:
        """These pictures as one batch."""
        import torch

        most = max(len(p.tiles) for p in pictures)
        pixels = torch.zeros(len(pictures), most, *pictures[0].tiles.shape[1:], dtype=torch.uint8)
        for row, picture in zip(pixels, pictures, strict=True):
            row[: len(picture.tiles)] = torch.from_numpy(picture.tiles)
        grids, sizes = (torch.tensor(x) for x in ([p.grid for p in pictures], [p.size for p in pictures]))
        return cls(pixels.permute(0, 1, 4, 2, 3), grids=grids, sizes=sizes)

    @property
    def real(self) -> Tensor:
        """Which tiles there are, [B, G] bool."""
        import torch

        assert self.grids is not None
        return torch.arange(self.pixels.shape[1], device=self.pixels.device) < 1 + self.grids.prod(1)[:, None]

    def encoded(self, tower: Callable[[Images, Tensor], Tokens]) -> Tokens:
        """What a tower makes of the tiles, and of no padding: tokens [B, G · n, D] with a mask if some are missing; pooled: of the
        whole picture. tower: of tiles and their numbers in their pictures, 0 the whole.
        """
        real = self.real
        seen = tower(Images(self.pixels[real]), real.nonzero()[:, 1])
        (B, G), (n, D) = real.shape, seen.tokens.shape[1:]
        firsts = (real.sum(1).cumsum(0) - real.sum(1)).to(seen.pooled.device)
        if bool(real.all()):
            return Tokens(seen.tokens.reshape(B, G * n, D), seen.pooled[firsts])
        tokens = seen.tokens.new_zeros(B, G, n, D)
        tokens[real] = seen.tokens
        return Tokens(tokens.flatten(1, 2), seen.pooled[firsts], real.repeat_interleave(n, 1))

    def shapes(self) -> tuple[Any, ...]:
        """What determines the cost of encoding it, but for the padding that is not read: the number of tiles, and their size."""
        return (int(self.real.sum()), *self.pixels.shape)

    def count(self, image_tokens: int) -> int:
        """How many tokens of it a model reads; ``image_tokens``: those of one tile."""
        return int(self.real.sum()) * image_tokens

    @classmethod
    def cat(cls, parts: Sequence[Any], starts: Sequence[int], length: int | None = None) -> Any:
        """This field of consecutive batches as one, with as many tiles as the picture with the most has."""
        return super().cat(parts, starts, None)
