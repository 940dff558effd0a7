"""Vision towers: pixels in, ``Tokens`` out.

``models.part.VisionTower`` describes what every tower has. ``keep`` [B, K] names the only patches that are read (FLIP's patch
dropping, masked image modelling).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.graph import provides
from diptych.models.build import Build
from diptych.models.layers.attention import Activation, AttentionPool, CascadePool, MapPool, Sizes, Transformer
from diptych.models.layers.insertion import Insertion
from diptych.models.part import VisionTower


def sincos_2d(side_y: int, side_x: int, width: int) -> Tensor:
    """Fixed positions [side_y · side_x, width]: a quarter of the width each for sin and cos of y and x (ViT/MAE)."""
    assert width % 4 == 0, width
    frequency = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side_y), torch.arange(side_x), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (y, x)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


class ConvStem(nn.Module):
    """Overlapping convolutions before the transformer: 8 × 8 pixels per token (Xiao et al. 2021, "Early convolutions")."""

    def __init__(self, width: int):
        super().__init__()
        quarter, half = width // 4, width // 2
        self.conv1 = nn.Conv2d(3, quarter, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(quarter, half, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(half, width, 3, stride=2, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, D, H / 8, W / 8]"""
        x: Tensor = F.relu(self.conv1(pixels.contiguous(memory_format=torch.channels_last)))
        x = self.conv3(F.relu(self.conv2(x)))
        return x


class ViT(VisionTower):
    """Vision transformer (Dosovitskiy et al. 2021), with a convolutional stem for small images or plain patches.

    class_tokens: learned tokens before the patches, which collect information from them. positions: fixed waves on the patches, or
    learned ones, of the class tokens too. norm: on the stem's output, on its sum with the positions (CLIP), or none. pool: ``mean``
    or ``max`` of the patches (the greatest of each dimension; CLIPpy), the first ``class`` token, ``attention`` (one learned
    query), ``map`` (SigLIP's: the same, and an MLP) or ``cascade`` (CoCa's: the tokens that it returns are those of ``queries``
    learned queries, which one more query reads; they belong to no place in the picture). queries: of the cascade; default: as many
    as there are patches, which is CoCa's ratio (256 of each). hidden: width of the blocks' MLPs.
    mask_token: replaces patches that are hidden from the tower. bare: tokens are returned before the last norm, the pooled vector
    after it (FLAVA).
    """

    def __init__(
        self,
        build: Build,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        stem: Literal["conv", "patch"] | None = None,
        patch: int | None = None,
        patch_bias: bool = True,
        class_tokens: Annotated[int, Field(ge=0)] = 0,
        positions: Literal["waves", "learned"] = "waves",
        norm: Literal["stem", "sum", "none"] = "stem",
        pool: Literal["mean", "max", "class", "attention", "map", "cascade"] = "mean",
        queries: Annotated[int, Field(ge=1)] | None = None,
        activation: Activation | None = None,
        eps: float = 1e-5,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        mask_token: bool = False,
        bare: bool = False,
    ):
        super().__init__()
        size = build.size
        build.require(not bare or pool in ("mean", "class"), "bare: pooled by mean or class token only")
        self.mask_token = nn.Parameter(torch.randn(width or size.width) * 0.02) if mask_token else None
        self.width, heads = width or size.width, heads or size.heads
        active: str = activation or size.activation
        stem = stem or ("conv" if build.image_size < 128 else "patch")
        self.patch = 8 if stem == "conv" else patch or (8 if build.image_size < 128 else 16)
        build.require(
            build.image_size % self.patch == 0, f"image_size {build.image_size} is not a multiple of the patch size {self.patch}"
        )
        build.require(pool != "class" or class_tokens > 0, "pool: class needs class_tokens: 1")
        cascade = pool == "cascade"
        build.require(queries is None or cascade, f"queries: {queries} are those of a cascade; set pool: cascade")
        build.require(
            not cascade or (not class_tokens and not mask_token),
            "pool: cascade returns no patches: without class_tokens and mask_token",
        )
        self.grid, self.extra = build.image_size // self.patch, class_tokens
        self.tokens = self.grid**2
        plain = nn.Conv2d(3, self.width, self.patch, stride=self.patch, bias=patch_bias)
        self.stem: nn.Module = ConvStem(self.width) if stem == "conv" else plain
        self.classes = nn.Parameter(torch.randn(class_tokens, self.width) * 0.02) if class_tokens else None
        waves = sincos_2d(self.grid, self.grid, self.width)
        self.positions: Tensor
        if positions == "learned":  # from waves: noise would hide the position throughout a small budget
            self.positions = nn.Parameter(torch.cat([torch.zeros(class_tokens, self.width), waves]))
        else:
            self.register_buffer("positions", waves, persistent=False)
        self.learned = positions == "learned"
        # Without it the stem's output starts far smaller than the positions, and the position would dominate the content of a
        # patch.
        self.norm: nn.Module = nn.Identity() if norm == "none" else nn.LayerNorm(self.width, eps)
        self.norm_sum = norm == "sum"
        self.transformer = Transformer(
            self.width, depth or size.depth, heads, activation=active, dropout=dropout, hidden=hidden, eps=eps, bare=bare
        )
        self.pooling = pool
        self.pool: nn.Module | None = None
        if pool == "attention":
            self.pool = AttentionPool(self.width, heads, 1)
        elif pool == "map":
            self.pool = MapPool(self.width, heads, active, hidden, eps)
        elif cascade:
            self.pool = CascadePool(self.width, heads, queries or self.tokens)

    takes_prompts = True
    hides = True

    def forward(self, pixels: Tensor, keep: Tensor | None = None, hidden: Tensor | None = None) -> Tokens:
        """tokens [B, extra + N or K, D], fewer where they are merged: class tokens first; of a cascade [B, queries, D]. hidden
        [B, N] bool: patches that the mask token replaces.
        """
        x = self.stem(pixels).flatten(2).transpose(1, 2) if keep is None else self._stem_at(pixels, keep)  # [B, N or K, D]
        if hidden is not None:
            assert self.mask_token is not None and keep is None
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        if not self.norm_sum:
            x = self.norm(x)
        places = self.positions[self.extra :] if self.learned else self.positions
        x = x + (places if keep is None else places[keep])
        if self.classes is not None:
            classes = self.classes + self.positions[: self.extra] if self.learned else self.classes
            x = torch.cat([classes.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)
        if self.norm_sum:
            x = self.norm(x)
        x, learned, left = self.through(x, keep)
        merging = self.transformer.merging
        bias = None if merging is None else merging.bias()
        if isinstance(self.pool, CascadePool):
            tokens, pooled = self.pool(x, bias)
            return Tokens(tokens, pooled, learned=learned)
        if self.pool is not None:
            return Tokens(x, self.pool(x, bias=bias)[:, 0], learned=learned)
        if self.pooling == "max":
            return Tokens(x, x[:, self.extra :].amax(1), learned=learned)
        if self.pooling == "class":
            pooled = x[:, 0]
        else:
            pooled = x[:, self.extra :].mean(1) if merging is None else merging.mean(x)
        return Tokens(x, self.transformer.norm(pooled) if self.transformer.bare else pooled, learned=learned, places=left)

    def through(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The blocks: tokens [B, extra + N or K, D], what has become of adapters' vectors, and the patches that are left, of a
        tower that leaves some out.
        """
        if not self.prompts:
            return self.transformer(x), None, None
        vectors = Insertion(self.prompts, self.extra)
        x, learned = vectors.leave(self.transformer(vectors.join(x), before=vectors.before))
        return x, learned, None

    def _stem_at(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """The stem's output [B, K, D] at the patches ``keep`` [B, K], from those patches alone."""
        rows, columns = keep // self.grid, keep % self.grid
        batch = torch.arange(len(pixels), device=pixels.device)[:, None]
        if isinstance(self.stem, nn.Conv2d):  # patches do not overlap, so the others are not needed
            cut = pixels.reshape(*pixels.shape[:2], self.grid, self.patch, self.grid, self.patch).permute(0, 2, 4, 1, 3, 5)
            return F.linear(cut[batch, rows, columns].flatten(2), self.stem.weight.flatten(1), self.stem.bias)
        seen = torch.zeros(len(pixels), 1, self.grid, self.grid, device=pixels.device, dtype=pixels.dtype)
        seen[batch, 0, rows, columns] = 1.0  # the others are blanked, otherwise the stem would leak them to their neighbours
        x: Tensor = self.stem(pixels * F.interpolate(seen, scale_factor=self.patch, mode="nearest"))
        return x.permute(0, 2, 3, 1)[batch, rows, columns]


class EfficientNet(VisionTower):
    """EfficientNet-Lite with its ImageNet weights, frozen: an h × w feature map as tokens.

    resolution: the side to which images are scaled before the tower sees them (a multiple of 32). None: 224, the native one, or 128
    for images smaller than that, which have no more detail.
    """

    native_size = 224
    packaged = ("net",)
    weights = "efficientnet-{variant}"

    def __init__(self, build: Build, *, variant: str = "lite0", resolution: int | None = None):
        super().__init__()
        from diptych.models.pretrained import load_efficientnet

        resolution = resolution or (128 if build.image_size < 128 else self.native_size)
        build.require(resolution % 32 == 0, f"resolution {resolution} is not a multiple of 32")
        self.net = load_efficientnet(variant)
        self.width = 1280
        self.resolution, self.tokens = resolution, (resolution // 32) ** 2
        build.licences.append(f"efficientnet-{variant}")

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """pixels [B, 3, H, W] in [−1, 1] → tokens [B, N or K, 1280] and their mean"""
        if pixels.shape[-1] != self.resolution:
            pixels = F.interpolate(pixels, size=(self.resolution, self.resolution), mode="bilinear", antialias=True)
        mean, std = (torch.as_tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.net.mean, self.net.std))
        pixels = ((pixels * 0.5 + 0.5) - mean) / std
        x = self.net.features(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2).float()
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, self.width))
        return Tokens(x, x.mean(1))

    @provides("{image}.class_logits", "{image}.tokens")
    def class_logits(self, tokens: Tokens) -> Tensor:
        """How likely each of ImageNet's classes is: logits [B, 1000], float32."""
        with torch.autocast(tokens.pooled.device.type, enabled=False):
            logits: Tensor = self.net.classifier(tokens.pooled.float())
        return logits


class ClipViT(ViT):
    """The tower of CLIP as in transformers and open_clip (Radford et al. 2021), for runs that are exported as ``CLIPModel``."""

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "quick_gelu",
        eps: float = 1e-5,
        **sizes: Unpack[Sizes],
    ):
        fixed = {"stem": "patch", "patch_bias": False, "class_tokens": 1, "positions": "learned", "norm": "sum", "pool": "class"}
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes, **fixed)  # type: ignore[arg-type]


class ClassViT(ViT):
    """A plain ViT that is read at its class token, as transformers' ViT, FLAVA's and BLIP's image encoders are."""

    projection = "affine"

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-5,
        mask_token: bool = False,
        bare: bool = False,
        **sizes: Unpack[Sizes],
    ):
        fixed = {"stem": "patch", "class_tokens": 1, "positions": "learned", "norm": "none", "pool": "class"}
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes, **fixed, mask_token=mask_token, bare=bare)  # type: ignore[arg-type]


class SiglipViT(ViT):
    """The tower of SigLIP (Zhai et al. 2023) as in transformers. The pooled vector is the embedding: there is no projection."""

    projection = "none"

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "gelu_tanh",
        eps: float = 1e-6,
        **sizes: Unpack[Sizes],
    ):
        fixed = {"stem": "patch", "positions": "learned", "norm": "none", "pool": "map"}
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes, **fixed)  # type: ignore[arg-type]


class HubTower(VisionTower):
    """A vision tower of transformers: ``from: hf:NAME_OR_PATH``, such as CLIP's, SigLIP's, DINOv2, ViT. layer: −2 for the hidden
    state before the last (LLaVA).
    """

    packaged = ("tower",)

    @staticmethod
    def native_size(options: dict[str, Any]) -> int:
        """The side of the images that the tower was trained on, in pixels."""
        from transformers import AutoConfig

        from diptych.models.pretrained.hub import fetch, place
        from diptych.models.pretrained.tower import size_of

        return size_of(fetch(AutoConfig, place(str(options.get("from")))))

    def __init__(self, build: Build, *, from_: str, layer: int = -1):
        super().__init__()
        from diptych.models.pretrained import VisionTower

        self.tower = VisionTower.load(from_, layer)
        self.width, self.tokens, self.extra = self.tower.width, self.tower.tokens, self.tower.extra
        self.grid = int(self.tokens**0.5)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """pixels [B, 3, H, W] in [−1, 1] → tokens [B, extra + N or K, D] and the pooled output"""
        x, pooled = self.tower(pixels)
        if keep is not None:  # the tower reads all of them: only later computation is saved
            patches = x[:, self.extra :].gather(1, keep[..., None].expand(-1, -1, self.width))
            x = torch.cat([x[:, : self.extra], patches], 1)
        return Tokens(x, pooled)


VISION = {
    "hf": HubTower,
    "vit": ViT,
    "clip": ClipViT,
    "class": ClassViT,
    "siglip": SiglipViT,
    "coca": "diptych.models.decoders.coca:CocaViT",
    "efficientnet": EfficientNet,
    "groupvit": "diptych.models.vision.grouping:GroupViT",
    "sparse": "diptych.models.vision.sparse:SparseViT",
    "capped": "diptych.models.vision.capped:CappedViT",
    "tubelets": "diptych.models.vision.tubelets:TubeletViT",
    "joined": "diptych.models.vision.joined:Joined",
    "native": "diptych.models.vision.native:NativeViT",
}
