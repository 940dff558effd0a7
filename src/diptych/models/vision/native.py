"""A vision transformer for pictures of any size and shape: learned positions scaled to the picture, and rotary ones in 2-D.

Shapes: B pictures, N patches of the largest, R rows of L patches into which pictures are packed, H heads, d width of a head.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.core.batch import Images, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.data.conversations.rows import best_fit
from diptych.data.tiles.native import Native
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Sizes, attend
from diptych.models.layers.rotary import turn
from diptych.models.vision.towers import ViT

Shape = tuple[int, int]  # rows and columns of patches


class NativeViT(ViT):
    """A ViT of plain patches that reads pictures of any size (field kind ``native``), several of them in one row of patches that do
    not see each other.

    Continual rotary positions (CoMP, Chen et al. 2025, arXiv:2503.18931, §3.1): the learned positions of the size on which the
    tower was trained are scaled to each picture's grid of patches, bicubic, and queries and keys are turned by the patch's row and
    column, half of their width each. Its weights are those of a ``vit`` or ``siglip`` with the same options, from which it goes on.

    rotary: whether queries and keys are turned; theta: the base of the angles. pool: ``mean``, of a picture's patches, or ``map``.
    The pooled vector of ``map`` is one that a tower of kind ``siglip`` has.
    """

    hides = False
    takes_prompts = False

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        pool: Any = "mean",
        rotary: bool = True,
        theta: Annotated[float, Field(gt=1)] = 10_000.0,
        **sizes: Unpack[Sizes],
    ):
        build.require(pool in ("mean", "map"), f"pool: {pool}; pictures of any size are pooled by mean or map")
        fixed = {"stem": "patch", "positions": "learned", "norm": "none", "pool": pool}
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes, **fixed)
        first: Any = self.transformer.blocks[0]
        self.head_width = self.width // int(first.attention.heads)
        self.rotary, self.theta = rotary, theta
        build.require(
            not rotary or self.head_width % 4 == 0,
            f"rotary: heads {self.head_width} wide do not divide by 4, for a row and a column of two parts each",
        )

    @provides("{image}.tokens", "{image}")
    def encode(self, image: Images) -> Tokens:
        """tokens [B, N, D], padding on the right; pooled [B, D]; mask if pictures have different numbers of patches."""
        if image.hidden is not None or image.keep is not None:
            raise DiptychError("parts.vision.kind: native reads all patches; set patch_dropout to 0, and no masks")
        return self.read(image.floats, grids_of(image, self.patch))

    def forward(self, pixels: Tensor, keep: Tensor | None = None, hidden: Tensor | None = None) -> Tokens:
        """Pictures of one size, [B, 3, H, W]."""
        assert keep is None and hidden is None
        shape = pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        return self.read(pixels, [shape] * len(pixels))

    def read(self, pixels: Tensor, grids: list[Shape]) -> Tokens:
        """pixels [B, 3, H, W]; grids: rows and columns of patches of each picture, from its upper left corner."""
        x = self.stem(pixels)  # [B, D, H / patch, W / patch]
        parts = [row[:, :r, :c].flatten(1).T for row, (r, c) in zip(x, grids, strict=True)]
        lengths = [len(part) for part in parts]
        x = torch.cat(parts) + torch.cat([self.placed(*grid) for grid in grids]).to(x.dtype)
        longest = max(lengths)
        rows = best_fit(lengths, longest)  # no row is longer than the largest picture
        place = torch.from_numpy(packed(lengths, rows, longest)).to(x.device)  # [R, L]: number of a patch, −1: none
        owner = torch.repeat_interleave(torch.tensor(lengths)).to(x.device)
        held = place.clamp_min(0)
        real, whose = place >= 0, owner[held].masked_fill(place < 0, -1)
        same = whose[:, :, None] == whose[:, None]
        whole = len(rows) == len(lengths) and bool(real.all())  # each row is one picture
        bias = None if whole else torch.zeros(same.shape, dtype=x.dtype, device=x.device).masked_fill(~same, float("-inf"))[:, None]
        angles = None
        if self.rotary:
            turned = torch.cat([torch.from_numpy(rows_and_columns(*grid)) for grid in grids]).to(x.device)
            cos, sin = rotations_2d(turned[held], self.head_width, self.theta)
            angles = cos[:, None], sin[:, None]
        x = x[held]
        for block in self.transformer.blocks:
            if self.transformer.checkpointing and torch.is_grad_enabled():
                x = checkpoint(through, block, x, angles, bias, use_reentrant=False)
            else:
                x = through(block, x, angles, bias)
        x = self.transformer.norm(x)[real]
        x = x[torch.argsort(place[real])]  # picture by picture again
        return self.padded(x, lengths)

    def padded(self, x: Tensor, lengths: list[int]) -> Tokens:
        """Patches of all pictures [n, D] as ``Tokens``."""
        each = torch.split(x, lengths)
        pooled = torch.stack([row.mean(0) for row in each])
        if self.pool is not None:
            pooled = torch.cat([self.pool(row[None])[:, 0] for row in each])
        if len(set(lengths)) == 1:
            return Tokens(x.view(len(lengths), lengths[0], -1), pooled)
        tokens = nn.utils.rnn.pad_sequence(list(each), batch_first=True)
        mask = torch.arange(tokens.shape[1], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
        return Tokens(tokens, pooled, mask)

    def placed(self, rows: int, columns: int) -> Tensor:
        """The learned positions scaled to a grid of patches, [rows · columns, D]."""
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        square = self.positions.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        square = square.to(torch.promote_types(square.dtype, torch.float32))
        scaled = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
        return scaled[0].flatten(1).T.to(self.positions.dtype)


def through(block: Any, x: Tensor, angles: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
    """A block of ``layers.attention`` on x [R, L, D], its queries and keys turned by ``angles``: cos and sin [R, 1, L, d]."""
    own, h = block.attention, block.norm1(x)
    R, L, D = h.shape
    k, v = own.read(h)
    q = own.q(h).view(R, L, own.heads, -1).transpose(1, 2)
    if angles is not None:
        q, k = (turn(t.to(torch.promote_types(t.dtype, torch.float32)), *angles).to(v.dtype) for t in (q, k))
    x = x + block.dropout(own.out(attend(q, k, v, bias).transpose(1, 2).reshape(R, L, D)))
    out: Tensor = x + block.dropout(block.mlp(block.norm2(x)))
    return out


def rotations_2d(places: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [..., width] of the angles of rows and columns ``places`` [..., 2]: a quarter of the pairs' frequencies for each,
    as in Qwen2-VL's vision tower.
    """
    frequency = theta ** (-torch.arange(0, width // 2, 2, device=places.device).float() / (width // 2))
    angles = (places.float()[..., None] * frequency).flatten(-2)  # [..., width / 2]: of the row, then of the column
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


@lru_cache(1024)
def rows_and_columns(rows: int, columns: int) -> np.ndarray:
    """The row and the column of each patch, int64 [rows · columns, 2]."""
    return np.indices((rows, columns)).reshape(2, -1).T.copy()


def packed(lengths: list[int], rows: list[list[int]], room: int) -> np.ndarray:
    """Which patch is at each place, int64 [R, room]: pictures one after the other, −1 where there is none. rows: the pictures of
    each row.
    """
    starts = np.cumsum([0, *lengths])
    place = np.full((len(rows), room), -1)
    for row, pictures in zip(place, rows, strict=True):
        patches = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in pictures])
        row[: len(patches)] = patches
    return place


def grids_of(image: Images, patch: int) -> list[Shape]:
    """Rows and columns of patches of each picture. DiptychError for sides that are no multiples of a patch."""
    if isinstance(image, Native):
        assert image.sizes is not None
        sizes = [(int(h), int(w)) for h, w in image.sizes.tolist()]
    else:
        sizes = [(int(image.pixels.shape[-2]), int(image.pixels.shape[-1]))] * len(image)
    if any(h % patch or w % patch for h, w in sizes):
        raise DiptychError(
            f"sides of pictures are not multiples of the tower's patch of {patch} pixels; set data.fields.image.multiple"
        )
    return [(h // patch, w // patch) for h, w in sizes]
