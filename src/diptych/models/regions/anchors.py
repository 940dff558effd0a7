"""Every patch proposes a box, and texts choose among the patches: GLIP with deep fusion, DetCLIP with texts that are read alone.

Shapes: B images, N = grid² patches, T text tokens, n regions of all images, D width, E embedding. Boxes are left, top, right,
bottom, as shares of the square that the model reads.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Texts, Tokens
from diptych.core.graph import provides
from diptych.data.text import SPECIALS
from diptych.models.build import Build
from diptych.models.layers.attention import Block
from diptych.models.layers.masks import attention_bias
from diptych.models.part import Part
from diptych.models.space import unit

RARE = -math.log(99)  # the first log-odds of a match, so that the many wrong ones do not swamp the loss (Lin et al. 2017, §3.3)


def centres(grid: int, device: torch.device) -> Tensor:
    """x, y of the patches' centres, [N, 2]."""
    at = (torch.arange(grid, device=device) + 0.5) / grid
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def responsible(boxes: Tensor, grid: int, radius: float = 1.5) -> Tensor:
    """The patches that have to propose a box, bool [n, N]: those with a centre inside it and at most ``radius`` patches from its
    middle along both axes ("centre sampling", FCOS, Tian et al. 2022); the nearest patch in any case.
    """
    at = centres(grid, boxes.device)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (at - middle[:, None]).abs().amax(-1)  # [n, N]
    inside = ((at > boxes[:, None, :2]) & (at < boxes[:, None, 2:])).all(-1)
    return (inside & (away <= radius / grid)) | F.one_hot(away.argmin(1), grid * grid).bool()


class Proposals(nn.Module):
    """A box for each patch: distances from its centre to the four sides, positive, in shares of the image (FCOS)."""

    def __init__(self, width: int, grid: int):
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        last: Any = self.layers[2]
        nn.init.constant_(last.bias, math.log(math.expm1(0.15)))  # boxes begin with a side of 0.3

    def forward(self, patches: Tensor) -> Tensor:
        """patches [B, N, D] → boxes [B, N, 4], float32"""
        sides = F.softplus(self.layers(patches).float())
        at = centres(self.grid, patches.device)
        return torch.cat([at - sides[..., :2], at + sides[..., 2:]], -1)


def words_among(text: Texts) -> Tensor:
    """[B, T] bool, True at words: no padding and no special token; all real tokens of a text without words."""
    words = text.mask & (text.ids >= len(SPECIALS))
    return torch.where(words.any(1, keepdim=True), words, text.mask)


def best(scores: Tensor, boxes: Tensor) -> Tensor:
    """The box of the patch with the highest score: scores [B, N], boxes [B, N, 4] → [B, 4]."""
    return boxes[torch.arange(len(scores), device=scores.device), scores.argmax(1)]


class _Anchors(Part):
    """Base class: the tower's patches as a square grid."""

    def __init__(self, build: Build):
        super().__init__()
        vision: Any = build.parts.get("vision")
        width = build.width_of("vision")
        build.require(getattr(vision, "pooling", "") != "cascade", "it reads patches; parts.vision.pool: cascade gives none")
        self.extra, self.grid = int(getattr(vision, "extra", 0)), math.isqrt(int(vision.tokens))
        square = self.grid**2 == vision.tokens and getattr(vision, "grid", self.grid) == self.grid
        build.require(square, f"the tower gives {vision.tokens} tokens, which do not form a square of patches")
        self.proposals = Proposals(width, self.grid)


class Glip(_Anchors):
    """Detection as grounding (GLIP, Li et al. 2022, arXiv:2112.03857, §3): patches and the words of a prompt look at each other in
    ``depth`` layers, both at once ("deep fusion"); then each patch is compared with each word.
    """

    def __init__(self, build: Build, *, depth: Annotated[int, Field(ge=1)] = 2, heads: int | None = None, width: int | None = None):
        super().__init__(build)
        seen, read, heads = build.width_of("vision"), build.width_of("text"), heads or build.size.heads
        activation = build.size.activation
        self.image_side = nn.ModuleList(Block(seen, heads, read, activation) for _ in range(depth))
        self.text_side = nn.ModuleList(Block(read, heads, seen, activation) for _ in range(depth))
        self.width = width or min(seen, read)
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in (seen, read))
        self.patch, self.word = nn.Linear(seen, self.width), nn.Linear(read, self.width)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.rare = nn.Parameter(torch.tensor(RARE))

    @provides(("text.anchor_logits", "text.anchor_boxes"), "text.tokens", "image.tokens")
    def anchors(self, text: Tokens, image: Tokens) -> tuple[Tensor, Tensor]:
        """Log-odds [B, N, T] that a word is about what a patch proposes, float32, and the proposed boxes [B, N, 4]."""
        x, y = image.tokens[:, self.extra :], text.tokens
        words = attention_bias(text.mask, y.shape[1], False, y)
        for see, say in zip(self.image_side, self.text_side, strict=True):
            x, y = see(x, None, y, words), say(y, words, x)  # both read the other's state before the layer
        x, y = self.norms[0](x), self.norms[1](y)
        logits = (self.patch(x).float() @ self.word(y).float().transpose(1, 2)) * self.width**-0.5
        return logits * self.log_scale.exp() + self.rare, self.proposals(x)

    @provides("text.anchor_scores", "text.anchor_logits", "text")
    def scores(self, logits: Tensor, text: Texts) -> Tensor:
        """How likely each patch shows the text, the mean over its words: [B, N], 0 … 1."""
        words = words_among(text)[:, None, : logits.shape[2]]
        return (logits.sigmoid() * words).sum(2) / words.sum(2)

    @provides("text.box", "text.anchor_scores", "text.anchor_boxes")
    def box(self, scores: Tensor, boxes: Tensor) -> Tensor:
        """[B, 4]"""
        return best(scores, boxes)

    @provides("text.heat", "text.anchor_scores")
    def heat(self, scores: Tensor) -> Tensor:
        """[B, grid, grid]"""
        return torch.unflatten(scores, 1, (self.grid, self.grid))


class Anchors(_Anchors):
    """Patches against texts that are read alone (DetCLIP, Yao et al. 2022, arXiv:2209.09407, §3.2): each proposes a box and has a
    vector in the shared space, with which any number of concepts is compared.

    depth: blocks over the patches, between the tower and the head.
    """

    def __init__(self, build: Build, *, depth: Annotated[int, Field(ge=0)] = 1, heads: int | None = None):
        super().__init__(build)
        seen, heads = build.width_of("vision"), heads or build.size.heads
        self.blocks = nn.ModuleList(Block(seen, heads, None, build.size.activation) for _ in range(depth))
        self.norm, self.patch = nn.LayerNorm(seen), nn.Linear(seen, build.embed_dim)
        self.width = build.embed_dim
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.rare = nn.Parameter(torch.tensor(RARE))

    @provides(("image.anchor_embedding", "image.anchor_boxes"), "image.tokens")
    def anchors(self, image: Tokens) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, N, E] of what the patches propose, and the boxes [B, N, 4]."""
        x = image.tokens[:, self.extra :]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return unit(self.patch(x)), self.proposals(x)

    def logits(self, cosines: Tensor) -> Tensor:
        """Log-odds of a match, of cosines of any shape."""
        return cosines * self.log_scale.exp() + self.rare

    @provides("text.anchor_scores", "image.anchor_embedding", "text.embedding")
    def scores(self, anchors: Tensor, text: Tensor) -> Tensor:
        """How likely each patch shows the text: [B, N], 0 … 1."""
        return self.logits(torch.einsum("bne,be->bn", anchors, text)).sigmoid()

    @provides("text.box", "text.anchor_scores", "image.anchor_boxes")
    def box(self, scores: Tensor, boxes: Tensor) -> Tensor:
        """[B, 4]"""
        return best(scores, boxes)

    @provides("text.heat", "text.anchor_scores")
    def heat(self, scores: Tensor) -> Tensor:
        """[B, grid, grid]"""
        return torch.unflatten(scores, 1, (self.grid, self.grid))
