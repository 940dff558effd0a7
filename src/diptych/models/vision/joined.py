"""Several vision towers as one: their maps lie on one grid, and their channels are joined.

Shapes: B images, g patches a side of the common grid, N = g² patches, D width of one tower.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.core.errors import DiptychError
from diptych.core.registry import check_options, resolve
from diptych.models.build import Build
from diptych.models.part import VisionTower
from diptych.models.vision.towers import VISION

OWN = ("kind", "side", "neck", "frozen")  # of the specification of a tower; everything else are options of its kind


class Joined(VisionTower):
    """Each tower looks at the image; its patches, resized to one grid, are joined with those of the others, channel by channel
    (Eagle, Shi et al. 2024, arXiv:2408.15998, §2.3). The pooled vectors are joined too.

    towers: {name: {kind: vit, …}}, the options of each kind, and besides: side, of the picture that this tower sees, in pixels
    (without it: as it is); neck: true for a tower with a finer map, whose channels become four times as many by two convolutions of
    stride 2 (DeepSeek-VL, Lu et al. 2024, arXiv:2403.05525, §3.1) instead of being averaged; frozen: true for a tower that never
    learns, whatever the stage trains, while its neck does. grid: patches a side; None: those of
    the first tower without a neck. Maps are resized bilinearly.
    """

    def __init__(self, build: Build, *, towers: dict[str, dict[str, Any]], grid: Annotated[int, Field(ge=1)] | None = None):
        super().__init__()
        build.require(len(towers) > 1, f"towers: {len(towers)} of them; a single tower is a part of its own kind")
        self.towers, self.necks = nn.ModuleDict(), nn.ModuleDict()
        self.sides: dict[str, int | None] = {}
        self.still = frozenset(name for name, spec in towers.items() if spec.get("frozen"))
        for name, spec in towers.items():
            self.towers[name], self.sides[name] = made(name, spec, build)
        whole = [name for name, spec in towers.items() if not spec.get("neck")]
        build.require(bool(whole) or grid is not None, "grid: every tower has a neck, so none says how fine the map is; set grid")
        self.grid = grid or round(int(self._tower(whole[0]).tokens) ** 0.5)
        for name, spec in towers.items():
            if spec.get("neck"):
                self.necks[name] = Neck(int(self._tower(name).width), self.grid)
        self.widths = [int(self._tower(name).width) * (4 if name in self.necks else 1) for name in towers]
        self.width, self.tokens = sum(self.widths), self.grid**2
        self.packaged = tuple(f"towers.{name}.{p}" for name in towers for p in self._tower(name).packaged)

    def _tower(self, name: str) -> Any:
        return self.towers[name]

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tokens:
        """pixels [B, 3, H, W] in [−1, 1] → tokens [B, N or K, sum of the widths], pooled: all towers' pooled vectors side by side,
        of one with a neck the mean of its patches
        """
        maps, pooled = [], []
        for name, tower in self.towers.items():
            side = self.sides[name]
            own = pixels
            if side is not None and pixels.shape[-1] != side:
                own = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
            with torch.no_grad() if name in self.still else nullcontext():
                seen: Tokens = tower(own)
            x = seen.tokens[:, int(getattr(tower, "extra", 0)) :]
            x = on_grid(x, self.grid) if name not in self.necks else self.necks[name](x)
            maps.append(x)
            pooled.append(x.mean(1) if name in self.necks else seen.pooled)
        tokens = torch.cat([m.to(maps[0].dtype) for m in maps], 2)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, self.width))
        return Tokens(tokens, torch.cat([v.to(pooled[0].dtype) for v in pooled], 1))

    def train(self, mode: bool = True) -> Joined:
        """Training or evaluation mode; towers that never learn stay in evaluation mode."""
        super().train(mode)
        for name in self.still:
            self.towers[name].eval()
        return self


def made(name: str, spec: dict[str, Any], build: Build) -> tuple[nn.Module, int | None]:
    """One of the towers, and the side of the pictures that it sees. DiptychError for what does not fit."""
    where = f"{build.where}.towers.{name}"
    if not isinstance(spec.get("kind"), str):
        raise DiptychError(f"{where}: missing 'kind', such as vit or efficientnet")
    side = spec.get("side")
    if not (side is None or (isinstance(side, int) and side >= 16)):
        raise DiptychError(f"{where}.side: expected pixels from 16 on, got {side!r}")
    cls = resolve(spec["kind"], VISION, "vision tower")
    inner = replace(build, where=where, image_size=side or build.image_size)
    tower: nn.Module = cls(inner, **check_options(cls, {k: v for k, v in spec.items() if k not in OWN}, where))
    patches = int(tower.tokens)  # type: ignore[arg-type]
    inner.require(getattr(tower, "pooling", "") != "cascade", "pool: cascade gives no patches to join")
    inner.require(round(patches**0.5) ** 2 == patches, f"it gives {patches} patches, which do not form a square")
    return tower, side


def on_grid(x: Tensor, grid: int) -> Tensor:
    """Patches [B, n, D] of a square map on another grid: [B, grid², D], bilinear; smaller maps are averages of larger ones."""
    side = round(x.shape[1] ** 0.5)
    if side == grid:
        return x
    whole = torch.unflatten(x.transpose(1, 2), 2, (side, side))
    return F.interpolate(whole, size=(grid, grid), mode="bilinear", antialias=side > grid).flatten(2).transpose(1, 2)


class Neck(nn.Module):
    """A map of any size on ``grid`` × ``grid`` places with four times the channels: resized to four times the grid, then two 3 × 3
    convolutions of stride 2, each of which doubles the channels (as in DeepSeek-VL's code).
    """

    def __init__(self, width: int, grid: int):
        super().__init__()
        self.grid = grid
        self.first = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] → [B, grid², 4 D]"""
        side = round(x.shape[1] ** 0.5)
        x = torch.unflatten(x.transpose(1, 2), 2, (side, side))
        x = F.interpolate(x, size=(4 * self.grid, 4 * self.grid), mode="bilinear", align_corners=False)
        x = self.second(self.first(x)).flatten(2).transpose(1, 2)
        return x
