"""Low-rank adapters of which each window of a picture has its own (Monkey, Li et al. 2024, arXiv:2311.06607, §3.1).

Shapes: n tiles of all pictures, L tokens of a tile, K windows, W [out, in], A [K, rank, in], B [K, out, rank].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.adapters.base import Adapter
from diptych.models.adapters.lora import linear_layers

if TYPE_CHECKING:
    from diptych.models.build import Build
    from diptych.models.part import Part, VisionTower

BASE = ".base_layer."


class WindowLinear(nn.Module):
    """W x + (alpha / rank) B_k A_k x for the tokens of window k; W x for those of whole pictures. base_layer: W."""

    def __init__(self, base: nn.Linear, tower: Part, windows: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base_layer, self.alpha, self.rank = base, alpha, rank
        self._tower = [tower]  # not a submodule
        self.window_lora_a = nn.Parameter(torch.empty(windows, rank, base.in_features))
        self.window_lora_b = nn.Parameter(torch.zeros(windows, base.out_features, rank))
        for a in self.window_lora_a.data:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)

    in_features = property(lambda self: self.base_layer.in_features)
    out_features = property(lambda self: self.base_layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[n, L, in] → [n, L, out]"""
        base: Tensor = self.base_layer(x)
        tower: Any = self._tower[0]
        window: Tensor | None = tower.window
        if window is None:
            return base
        own = F.pad(self.window_lora_a, (0, 0, 0, 0, 1, 0))[window].to(x.dtype)  # window 0: none
        up = F.pad(self.window_lora_b, (0, 0, 0, 0, 1, 0))[window].to(x.dtype)
        added: Tensor = self.dropout(x) @ own.transpose(1, 2) @ up.transpose(1, 2)
        return base + added.to(base.dtype) * (self.alpha / self.rank)


class WindowLora(Adapter):
    """Every linear layer of a tower has a low-rank adapter for each window (tile) of a picture; the whole picture is read without.

    windows: the most tiles that a picture is cut into (``data.fields``, kind ``tiles``). Checked with the authors' code: rank 16 in
    attention and 32 beside the MLP, dropout 0.05, alpha = rank. There the MLP has one adapter around both of its layers; here each
    layer has its own. targets: endings of names of layers; None: all linear layers.
    """

    mark = "window_lora_"

    def __init__(
        self,
        part: VisionTower,
        build: Build,
        where: str,
        *,
        windows: Annotated[int, Field(ge=1)] = 4,
        rank: Annotated[int, Field(ge=1)] = 16,
        alpha: Annotated[float, Field(gt=0)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        targets: list[str] | None = None,
    ):
        super().__init__(part, build, where)
        if not hasattr(part, "window"):
            raise DiptychError(f"{where}: windows are those of a vision tower's pictures; set part: vision")
        self.windows = windows
        names = [n for n in linear_layers(part) if not targets or any(n.endswith(t) for t in targets)]
        if not names:
            raise DiptychError(f"{where}: no linear layer is named {' or '.join(targets or ())}")
        for name in names:
            parent, _, child = name.rpartition(".")
            inside = part.adapted_root.get_submodule(parent)
            base = getattr(inside, child)
            setattr(inside, child, WindowLinear(base, part, windows, rank, alpha or rank, dropout))
        part.windows = windows

    def bare(self, name: str) -> str:
        """The name without the layer around each adapted one."""
        return name.replace(BASE, ".")
