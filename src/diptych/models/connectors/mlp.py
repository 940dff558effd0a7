"""Linear, GELU, linear, token by token (LLaVA 1.5, Liu et al. 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from diptych.models.build import Build


class MLP(nn.Module):
    def __init__(self, build: Build, *, depth: int = 2, width: int | None = None):
        super().__init__()
        build.require(depth >= 1, f"depth must be at least 1, got {depth}")
        image_width, lm_width = build.width_of("vision"), build.width_of("lm")
        self.norm = nn.LayerNorm(image_width)  # feature maps of convolutional towers have no fixed scale
        layers: list[nn.Module] = [nn.Linear(image_width, width or lm_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(layers[-1].out_features, lm_width)]  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)
        self.width = lm_width

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D of the tower] → [B, N, D of the language model]"""
        return self.layers(self.norm(x))
