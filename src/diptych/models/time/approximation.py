"""One embedding from any number of tokens, by latents that attend to them again and again (GEXIA, Wang et al. 2025).

Shapes: B rows, S tokens, L latents, D width, E embedding.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Block
from diptych.models.layers.masks import padding_bias
from diptych.models.part import Part
from diptych.models.space import unit


class Approximation(nn.Module):
    """Learned latents, and one block that is applied to them several times: attention among the latents, attention to the tokens,
    an MLP. The weights are the same each time. reads: tokens a time; a row with S real tokens takes ⌈S / reads⌉ times, at most
    ``iterations``. The result is the mean of the latents, through a linear layer.
    """

    def __init__(self, given: int, width: int, out: int, heads: int, latents: int, iterations: int, reads: int, activation: str):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width) * width**-0.5)
        self.norm_in, self.norm = nn.LayerNorm(given), nn.LayerNorm(width)
        self.block = Block(width, heads, given, activation)
        self.out = nn.Linear(width, out)
        self.iterations, self.reads = iterations, reads

    def times(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """How often the latents attend to each row's tokens, int64 [B]."""
        real = tokens.new_full((len(tokens),), tokens.shape[1], dtype=torch.long) if mask is None else mask.sum(1)
        return (-(-real // self.reads)).clamp(1, self.iterations)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens [B, S, given], mask [B, S] bool → [B, out]"""
        times, x, bias = self.times(tokens, mask), self.norm_in(tokens), padding_bias(mask)
        latents = self.latents.expand(len(tokens), -1, -1)
        for turn in range(int(times.max()) if len(times) else 0):
            again = self.block(latents, None, x, bias)
            latents = torch.where((turn < times)[:, None, None], again, latents.to(again.dtype))
        embedding: Tensor = self.out(self.norm(latents).mean(1))
        return embedding


class IterativeSpace(Part):
    """A shared space for pictures, clips and texts of any length: one ``Approximation`` for what is seen and one for what is read,
    at every granularity. latents: their number; iterations: the most; reads: tokens an iteration. The paper's abstract gives the
    idea; the block, and how the number of iterations follows from the length, are ours.
    """

    can = frozenset({"embed_image", "embed_text"})

    def __init__(
        self,
        build: Build,
        *,
        latents: Annotated[int, Field(ge=1)] = 8,
        iterations: Annotated[int, Field(ge=1)] = 4,
        reads: Annotated[int, Field(ge=1)] = 32,
        heads: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation | None = None,
    ):
        super().__init__()
        self.width, size = build.embed_dim, build.size
        heads = heads or size.heads
        build.require(size.width % heads == 0, f"heads: {heads} does not divide the width {size.width}")
        sizes: Any = (size.width, self.width, heads, latents, iterations, reads, activation or size.activation)
        self.image, self.text = (Approximation(build.width_of(part), *sizes) for part in ("vision", "text"))

    @provides("{image}.embedding", "{image}.tokens")
    @provides("{video}.embedding", "{video}.tokens")
    @provides("{video}.long_embedding", "{video}.long_tokens")
    def image_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.image(tokens.tokens, tokens.mask))

    @provides("{text}.embedding", "{text}.tokens")
    def text_embedding(self, tokens: Tokens) -> Tensor:
        """[B, E]"""
        return unit(self.text(tokens.tokens, tokens.mask))
