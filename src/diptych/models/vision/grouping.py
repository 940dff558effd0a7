"""GroupViT's tower (Xu et al. 2022, arXiv:2202.11094): patches are merged into groups, stage by stage, and the groups are the
image.

Shapes: B images, N tokens, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Images, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Attention, Block
from diptych.models.part import Part, VisionTower
from diptych.models.space import LinearSpace
from diptych.models.vision.towers import sincos_2d

PLUS = 1.0  # added to the size of a group, as in the published model: an empty group is 0, and its gradient stays small


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers with GELU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def one_hot_straight(soft: Tensor) -> Tensor:
    """1 at the largest of dimension −2 and 0 elsewhere, with the gradient of ``soft`` ("straight through"). Any shape [..., G,
    N]."""
    hard = torch.zeros_like(soft).scatter_(-2, soft.argmax(-2, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def gumbel(logits: Tensor) -> Tensor:
    """Logits plus noise, of which the largest is a draw from their softmax. Any shape."""
    return logits - torch.empty_like(logits).exponential_().clamp(min=1e-20).log()


class Assignment(nn.Module):
    """Every token joins one group: the group most similar to it, drawn with Gumbel noise in training (§3.2, equations 4 and 5). A
    group is the sum of its members' values over their number plus one.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, groups: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """groups [B, G, D], x [B, N, D] → the new groups [B, G, D], and how likely each token is in each group [B, G, N]."""
        logits = self.query(groups) @ self.key(x).transpose(1, 2) * groups.shape[-1] ** -0.5
        soft = logits.softmax(-2)
        members = one_hot_straight(gumbel(logits).softmax(-2) if self.training else soft)
        share = members / (members.sum(-1, keepdim=True) + PLUS)
        return self.out(share @ self.value(x)), soft


class GroupingBlock(nn.Module):
    """Group tokens become groups of the tokens of an image: mixed into as many as there are groups, informed by the tokens, then
    each token is assigned to one of them.
    """

    def __init__(self, width: int, heads: int, tokens: int, groups: int, hidden: int | None, eps: float):
        super().__init__()
        self.norm_tokens, self.norm_x = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.mix, self.norm_mixed = mlp(tokens, width // 2, groups), nn.LayerNorm(width, eps)
        self.attention, self.norm_mlp = Attention(width, heads), nn.LayerNorm(width, eps)
        self.mlp, self.norm_informed = mlp(width, hidden or 4 * width, width), nn.LayerNorm(width, eps)
        self.assignment = Assignment(width)
        self.norm_new, self.mlp_new = nn.LayerNorm(width, eps), mlp(width, 4 * width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, N, D], group tokens [B, g, D] → groups [B, G, D] and the assignment [B, G, N]."""
        x = self.norm_x(x)
        groups = self.norm_mixed(self.mix(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2))
        groups = groups + self.attention(groups, x)
        groups = self.norm_informed(groups + self.mlp(self.norm_mlp(groups)))
        new, members = self.assignment(groups, x)
        new = new + groups
        return new + self.mlp_new(self.norm_new(new)), members


class Stage(nn.Module):
    """Blocks over tokens and group tokens together, then a grouping block; without group tokens: blocks alone. before: groups of
    the stage before, whose group tokens are added to these.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        before: int,
        tokens: int,
        groups: int,
        activation: str,
        hidden: int | None,
        eps: float,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, None, activation, 0.0, hidden, eps) for _ in range(depth))
        self.tokens = nn.Parameter(torch.randn(tokens, width) * 0.02) if tokens else None
        self.grouping = GroupingBlock(width, heads, tokens, groups, hidden, eps) if tokens else None
        carried = bool(before and tokens)
        self.norm: nn.Module | None = nn.LayerNorm(width, eps) if carried else None
        self.carry: nn.Module | None = mlp(before, width // 2, tokens) if carried else None

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, N, D], the group tokens of the stage before → tokens or groups, group tokens, assignment."""
        if self.tokens is None or self.grouping is None:
            for block in self.blocks:
                x = block(x)
            return x, None, None
        tokens = self.tokens.to(x.dtype).expand(len(x), -1, -1)
        if self.carry is not None and self.norm is not None and before is not None:
            tokens = tokens + self.carry(self.norm(before).transpose(1, 2)).transpose(1, 2)
        n = x.shape[1]
        x = torch.cat([x, tokens], 1)
        for block in self.blocks:
            x = block(x)
        x, tokens = x[:, :n], x[:, n:]
        groups, members = self.grouping(x, tokens)
        return groups, tokens, members


class GroupViT(VisionTower):
    """The tokens that it returns are the groups of the last stage, its pooled vector is their mean.

    depths: blocks of each stage. group_tokens: learned tokens of each stage (0: it does not group). groups: into which a stage
    groups. Paper: 6, 3 and 3 blocks, 64, 8 and 0 tokens, 64 and 8 groups, for patches of 16.
    """

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depths: Sequence[int] = (2, 1, 1),
        heads: int | None = None,
        hidden: int | None = None,
        group_tokens: Sequence[int] = (16, 8, 0),
        groups: Sequence[int] = (16, 8, 8),
        patch: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        size = build.size
        self.width, heads = width or size.width, heads or size.heads
        patch = patch or (8 if build.image_size < 128 else 16)
        build.require(build.image_size % patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {patch}")
        build.require(
            len(depths) == len(group_tokens) == len(groups), "depths, group_tokens and groups need an entry for each stage"
        )
        build.require(any(group_tokens), "group_tokens are all 0, so nothing is grouped; use kind: vit")
        self.grid, self.tokens = build.image_size // patch, groups[-1]
        self.stem = nn.Conv2d(3, self.width, patch, stride=patch)
        self.norm = nn.LayerNorm(self.width, eps)
        self.positions = nn.Parameter(sincos_2d(self.grid, self.grid, self.width))
        before, stages = 0, []
        for depth, n, out in zip(depths, group_tokens, groups, strict=True):
            stages.append(Stage(self.width, depth, heads, before, n, out, activation or size.activation, hidden, eps))
            before = n
        self.stages = nn.ModuleList(stages)
        self.norm_out = nn.LayerNorm(self.width, eps)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """pixels [B, 3, H, W] in [−1, 1] → groups [B, G, D] and their mean"""
        return self._read(pixels, keep)[0]

    def _read(self, pixels: Tensor, keep: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """The groups, and how likely each patch is in each of them, [B, G, grid²]."""
        if keep is not None:
            raise DiptychError("parts.vision: groupvit reads whole images; set patch_dropout: 0, and leave masked patches out")
        x = self.norm(self.stem(pixels).flatten(2).transpose(1, 2)) + self.positions
        tokens, assigned = None, None
        for stage in self.stages:
            x, tokens, members = stage(x, tokens)
            if members is not None:
                assigned = members if assigned is None else members @ assigned
        x = self.norm_out(x)
        assert assigned is not None
        return Tokens(x, x.mean(1)), assigned

    @provides("{image}.assignment", "{image}")
    def assignment(self, image: Images) -> Tensor:
        """How likely each patch is in each group of the last stage, [B, G, grid²]; sums to 1 over the groups."""
        return self._read(image.floats)[1]


class DeepSpace(LinearSpace):
    """A map of two layers for each tower, with a norm and ReLU between them (GroupViT). hidden: the width inside; None: four times
    that of the space. norm: ``layer``, so that micro-batches and processes change nothing; ``batch``, as in the published model.
    """

    def __init__(self, build: Build, *, hidden: int | None = None, norm: Literal["layer", "batch"] = "layer"):
        super().__init__(build)
        hidden = hidden or 4 * self.width
        self.image, self.text = (
            nn.Sequential(
                nn.Linear(build.width_of(part), hidden),
                nn.LayerNorm(hidden) if norm == "layer" else BatchNorm(hidden),
                nn.ReLU(),
                nn.Linear(hidden, self.width),
            )
            for part in ("vision", "text")
        )


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of vectors in any number of dimensions, [..., D]."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D]"""
        return super().forward(x.flatten(0, -2)).view(x.shape)


class SegmentHeat(Part):
    """Where a text is, by the groups of an image: the cosine of the text and each group's vector, spread over the group's patches
    (GroupViT, §3.4).
    """

    def __init__(self, build: Build):
        super().__init__()
        vision: Any = build.parts.get("vision")
        build.require(hasattr(vision, "assignment"), "needs a tower that groups patches; set parts.vision.kind: groupvit")
        self.width, self.grid = build.embed_dim, int(vision.grid)

    @provides("text.heat", "image.token_embedding", "image.assignment", "text.embedding")
    def heat(self, groups: Tensor, members: Tensor, text: Tensor) -> Tensor:
        """[B, grid, grid]"""
        cosines = torch.einsum("bge,be->bg", groups, text)
        return torch.unflatten(torch.einsum("bg,bgn->bn", cosines, members.float()), 1, (self.grid, self.grid))


class PatchHeat(Part):
    """Where a text is, by the cosine of its vector and each patch's (CLIPpy and others whose patches are in the shared space)."""

    def __init__(self, build: Build):
        super().__init__()
        vision: Any = build.parts.get("vision")
        self.width, self.extra = build.embed_dim, int(getattr(vision, "extra", 0))
        self.grid = round(int(getattr(vision, "tokens", 0)) ** 0.5)
        build.require(self.grid**2 == getattr(vision, "tokens", -1), "the tower's patches do not form a square")

    @provides("text.heat", "image.token_embedding", "text.embedding")
    def heat(self, patches: Tensor, text: Tensor) -> Tensor:
        """[B, grid, grid]"""
        patches = F.normalize(patches, dim=-1)[:, self.extra :]
        return torch.unflatten(torch.einsum("bne,be->bn", patches, text), 1, (self.grid, self.grid))
