"""Pictures in tiles: the whole picture, then the large map of all tiles without its padding, a learned vector after each of its
rows (LLaVA-NeXT, Liu et al. 2024). Parity: transformers' ``LlavaNextForConditionalGeneration``.

Shapes: B pictures, G tiles of the picture with the most, n patches of a tile, N tokens of the picture with the most, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core.batch import Images, Tokens
from diptych.core.graph import provides
from diptych.data.tiles.batch import Tiles
from diptych.data.tiles.grid import NEWLINE, Tiled, one_tile, reading_order
from diptych.models.build import Build
from diptych.models.connectors.attending import PlacedQueries
from diptych.models.connectors.mlp import MLP
from diptych.models.layers.ragged import ImageTokens, Ragged


class AnyResolution(MLP):
    """An MLP on each patch of each tile, and a learned vector at the end of a row. Pictures have different numbers of tokens: the
    prefix is ``Ragged``. A picture without tiles (not of a field of kind ``tiles``) is its patches and one such vector.

    Only the patches that the language model reads go through the MLP, those of padding do not. tokens: of a picture without tiles.
    """

    placed = False

    def __init__(self, build: Build, *, depth: int = 2, width: int | None = None, norm: bool = True):
        super().__init__(build, depth=depth, width=width, norm=norm)
        self.patches_each, self.tokens = self.tokens, self.tokens + 1
        # In units of the size of word vectors, by which the language model multiplies it with the rest.
        self.newline = nn.Parameter(torch.randn(self.width))

    @provides("{image}.prefix", "{image}", "{image}.tokens")
    def prefix(self, image: Images, tokens: Tokens) -> ImageTokens:  # type: ignore[override]
        """What the language model reads of pictures: [B, N, D], or ``Ragged`` if they have different numbers of tokens."""
        return self.read(tokens.tokens, orders(image, self.grid))

    def count(self, picture: Tiled) -> int:
        """The number of tokens of a picture."""
        return len(reading_order(picture.size, picture.grid, self.grid))

    def read(self, x: Tensor, each: list[np.ndarray]) -> ImageTokens:
        """x [B, G · (extra + n), D of the tower]; each: the reading order of every picture → [B, N, D of the language model]."""
        B, D = len(x), x.shape[-1]
        patches = torch.unflatten(x, 1, (-1, self.extra + self.patches_each))[:, :, self.extra :].reshape(-1, D)
        per_picture = len(patches) // B
        flat = np.concatenate([np.where(order == NEWLINE, NEWLINE, order + i * per_picture) for i, order in enumerate(each)])
        source = torch.from_numpy(flat).to(x.device)
        lengths = torch.tensor([len(order) for order in each], device=x.device)
        longest = int(lengths.max())
        mask = torch.arange(longest, device=x.device) >= longest - lengths[:, None]  # padding on the left
        ends = source == NEWLINE
        seen = self.layers(self.norm(patches[source[~ends]]))
        tokens = seen.new_zeros(len(source), self.width)
        tokens[~ends] = seen
        tokens[ends] = self.newline.to(seen.dtype)
        if len(set(map(len, each))) == 1:
            dense: Tensor = tokens.view(B, longest, self.width)
            return dense
        return Ragged(tokens.new_zeros(B, longest, self.width).masked_scatter(mask[..., None], tokens), mask)


def orders(image: Images, side: int) -> list[np.ndarray]:
    """The reading order of each picture (``tiles.grid.reading_order``); side: patches of a tile."""
    if not isinstance(image, Tiles):
        return [one_tile(side)] * len(image)
    assert image.grids is not None and image.sizes is not None
    sizes, grids = image.sizes.tolist(), image.grids.tolist()
    return [reading_order((h, w), (r, c), side) for (h, w), (r, c) in zip(sizes, grids, strict=True)]


class Windows(PlacedQueries):
    """Learned queries, the same for all, look at each tile of a picture, and at the whole picture: the tokens of the tiles row by
    row, then those of the whole (Monkey, Li et al. 2024, arXiv:2311.06607, §3.1). tokens: of a tile (256 in the paper).

    Pictures with different numbers of tiles have different numbers of tokens (``Ragged``).
    """

    @provides("{image}.prefix", "{image}", "{image}.tokens")
    def prefix(self, image: Images, tokens: Tokens) -> ImageTokens:  # type: ignore[override]
        """What the language model reads of pictures: [B, (G + 1) · tokens, D], or ``Ragged``."""
        if not isinstance(image, Tiles):
            return self(tokens.tokens)
        real = image.real.to(tokens.tokens.device)
        each = torch.unflatten(tokens.tokens, 1, (-1, tokens.tokens.shape[1] // real.shape[1]))  # [B, G + 1, extra + n, D]
        seen = self(each[real])
        counts = real.sum(1)
        B, most = len(real), real.shape[1]
        place = torch.arange(most, device=real.device) >= most - counts[:, None]  # padding on the left
        # Row by row the tiles are 0 (the whole), 1, 2 …; the whole moves behind the others.
        firsts = counts.cumsum(0) - counts
        turn = torch.cat([torch.arange(1, n + 1) % n for n in counts.tolist()]).to(real.device)
        source = turn + firsts.repeat_interleave(counts)
        ordered = seen[source]
        if bool(real.all()):
            return ordered.reshape(B, most * self.tokens, -1)
        padded = ordered.new_zeros(B, most, *ordered.shape[1:])
        padded[place] = ordered
        return Ragged(padded.flatten(1, 2), place.repeat_interleave(self.tokens, 1))

    def count(self, picture: Tiled) -> int:
        """The number of tokens of a picture."""
        return len(picture.tiles) * self.tokens
