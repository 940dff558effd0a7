"""Regions of an image as tokens: what the region says, pooled from the patches of an image that is read once.

Shapes: B images, N patches, n regions of all images together, K tokens of a region, D width.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.batch import Images, Regions, Tokens
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.part import Part
from diptych.models.regions.weights import align_weights, box_masks, mask_weights, owners, pool, touched


class RegionPart(Part):
    """Base class: ``regions.tokens``, whose pooled vector the shared space maps to ``regions.embedding`` by the map of images."""

    def __init__(self, build: Build):
        super().__init__()
        vision: Any = build.parts.get("vision")
        self.width = build.width_of("vision")
        build.require(getattr(vision, "pooling", "") != "cascade", "it reads patches; parts.vision.pool: cascade gives none")
        self.grid, self.extra = math.isqrt(int(vision.tokens)), int(getattr(vision, "extra", 0))
        square = self.grid**2 == vision.tokens and getattr(vision, "grid", self.grid) == self.grid
        build.require(square, f"the tower gives {vision.tokens} tokens, which do not form a square of patches")


class DenseRegionPart(RegionPart):
    """Base class of parts that pool dense features, ``image.dense``.

    features: ``value``, the tower's last block with the value path alone in place of its attention, so that a patch stays what it
    shows (MaskCLIP, Zhou et al. 2022, §3.2; with residual and MLP as in CLIPSelf, Wu et al. 2024, and FG-CLIP): for towers of the
    kinds vit, clip, class and siglip. ``tokens``: what the tower gives.
    """

    borrows = True  # the tower's last block
    at_once = True  # tokens and dense features come from one run of the tower

    def __init__(self, build: Build, *, features: Literal["value", "tokens"]):
        super().__init__(build)
        vision: Any = build.parts["vision"]
        build.require(
            features == "tokens" or hasattr(vision, "transformer"),
            f"features: {features} needs a tower of the kind vit (or clip, class, siglip); set features: tokens",
        )
        self.features = features
        self._vision = [vision]  # in a list: shared, not owned

    @provides("image.dense", "image")
    def dense(self, image: Images) -> Tensor:
        """What is pooled: [B, N, D], without class tokens."""
        return self.tokens_and_dense(image)[1]

    @provides(("image.tokens", "image.dense"), "image", together="at_once")
    def tokens_and_dense(self, image: Images) -> tuple[Tokens, Tensor]:
        """The tower's tokens and the dense features, from one run of it."""
        vision = self._vision[0]
        if self.features == "tokens":
            tokens: Tokens = vision.encode(image)
            return tokens, tokens.tokens[:, self.extra :]
        if image.keep is not None:
            raise DiptychError("parts.regions pools all patches of an image; set patch_dropout of the stage to 0")
        kept: list[Tensor] = []
        vision.transformer.kept = kept
        try:
            tokens = vision.encode(image)
        finally:
            vision.transformer.kept = None
        if not kept:
            raise DiptychError("parts.regions: this tower does not run its blocks as one stack; set parts.regions.features: tokens")
        x = kept[0][:, -(self.grid**2) :]  # class tokens and learned ones come first
        return tokens, vision.transformer.norm(value_path(vision.transformer.blocks[-1], x))


def value_path(block: Any, x: Tensor) -> Tensor:
    """A block without its attention: every token reads its own value alone. x [B, N, D] → [B, N, D]."""

    def own(x: Tensor) -> Tensor:
        """The value of each token through the output layer."""
        _, value = block.attention.read(x)  # [B, H, N, d]
        result: Tensor = block.attention.out(value.transpose(1, 2).flatten(2))
        return result

    if block.post_norm:
        x = block.norm1(x + own(x))
        result: Tensor = block.norm2(x + block.mlp(x))
        return result
    x = x + own(block.norm1(x))
    result = x + block.mlp(block.norm2(x))
    return result


class RoIAlign(DenseRegionPart):
    """RoIAlign (He et al. 2017) of the dense features: out × out tokens a region and their mean (RegionCLIP, Zhong et al. 2022;
    FG-CLIP, Xie et al. 2025: 1 × 1).

    out: cells per side. sampling: points per side of a cell; 0: as many as it spans patches.
    """

    def __init__(
        self,
        build: Build,
        *,
        features: Literal["value", "tokens"] = "value",
        out: Annotated[int, Field(ge=1)] = 1,
        sampling: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__(build, features=features)
        self.out, self.sampling = out, sampling

    @provides("regions.tokens", "image.dense", "regions")
    def tokens(self, dense: Tensor, regions: Regions) -> Tokens:
        """tokens [n, out², D], pooled [n, D]"""
        weights = align_weights(regions.boxes, self.grid, self.out, self.sampling)
        x = pool(weights, dense, owners(regions.owner, len(regions), dense.device))
        return Tokens(x, x.mean(1))


class MaskedPool(DenseRegionPart):
    """The mean of the dense features over a region's mask, each patch by the share of it that the mask covers; over the box where
    there is no mask. One token a region.
    """

    def __init__(self, build: Build, *, features: Literal["value", "tokens"] = "value"):
        super().__init__(build, features=features)
        self.size = build.image_size

    @provides("regions.tokens", "image.dense", "regions")
    def tokens(self, dense: Tensor, regions: Regions) -> Tokens:
        """tokens [n, 1, D], pooled [n, D]"""
        masks = getattr(regions, "masks", None)
        masks = box_masks(regions.boxes, self.size) if masks is None else masks
        x = pool(mask_weights(masks, self.grid)[:, None], dense, owners(regions.owner, len(regions), dense.device))
        return Tokens(x, x[:, 0])


class BoxPatches(RegionPart):
    """A region as all patches that its box touches, after their mean as its class token (X-VLM, Zeng et al. 2022, §3.1).

    The tower reads the image once. tokens [n, 1 + N, D] hold all patches of the image, of which ``mask`` admits those of the
    region.
    """

    @provides("regions.tokens", "image.tokens", "regions")
    def tokens(self, image: Tokens, regions: Regions) -> Tokens:
        """tokens [n, 1 + N, D], pooled [n, D], mask [n, 1 + N]"""
        dense = image.tokens[:, self.extra :]
        owner = owners(regions.owner, len(regions), dense.device)
        inside = touched(regions.boxes, self.grid)
        weights = inside / inside.sum(1, keepdim=True)
        mean = pool(weights[:, None], dense, owner)
        mask = torch.cat([torch.ones_like(inside[:, :1]), inside], 1)
        return Tokens(torch.cat([mean, dense[owner]], 1), mean[:, 0], mask)
