"""A ViT that leaves out patches on its way (SMAUG, Lin et al. 2023, arXiv:2211.11446; EViT, Liang et al. 2022, arXiv:2202.07800).

Shapes: B batch, N patches, D width, H heads.
"""

from __future__ import annotations

from typing import Annotated, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Block, Sizes
from diptych.models.vision.towers import ClassViT
from diptych.models.vision.tubelets import take


def attention_to(block: Block, x: Tensor) -> Tensor:
    """How strongly the first token would attend to each of the others in a block, the mean over its heads: x [B, 1 + N, D] →
    [B, N].
    """
    layer, x = block.attention, block.norm1(x)
    B, L, width = x.shape
    q = layer.q(x[:, :1]).view(B, 1, layer.heads, -1).transpose(1, 2)
    k = F.linear(x, layer.kv.weight[:width], layer.kv.bias[:width]).view(B, L, layer.heads, -1).transpose(1, 2)
    weights: Tensor = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).float().softmax(-1)
    return weights[:, :, 0, 1:].mean(1)


class SparseViT(ClassViT):
    """A plain ViT with a class token. Before each block in ``layers``, counted from 0, the share ``keep`` of the patches stays:
    those to which the class token attends most in that block. ``Tokens.places`` says which patches are left.

    The choice has no gradient. It holds in training and after it.
    """

    takes_prompts = False

    def __init__(
        self,
        build: Build,
        *,
        layers: list[int],
        keep: Annotated[float, Field(gt=0, le=1)] = 0.7,
        patch: int | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        **sizes: Unpack[Sizes],
    ):
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes)
        depth = len(self.transformer.blocks)
        build.require(
            all(0 <= i < depth for i in layers) and len(set(layers)) == len(layers),
            f"layers: {layers} are not different blocks of {depth}, counted from 0",
        )
        self.layers, self.share = frozenset(layers), keep

    def through(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The blocks: tokens [B, 1 + n, D], no vectors of adapters, and the patch of each token that is left [B, n]."""
        places = torch.arange(x.shape[1] - 1, device=x.device).expand(len(x), -1) if keep is None else keep

        def thinned(i: int, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            """What a block reads: the class token and the patches that matter most to it."""
            nonlocal places
            if i in self.layers:
                with torch.no_grad():
                    weights = attention_to(self.transformer.blocks[i], x)  # type: ignore[arg-type]
                    best = weights.topk(max(1, round(self.share * weights.shape[1])), dim=1).indices.sort(1).values
                x, places = torch.cat([x[:, :1], take(x[:, 1:], best)], 1), places.gather(1, best)
            return x, bias

        x = self.transformer(x, before=thinned)
        return x, None, places
