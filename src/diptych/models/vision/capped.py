"""A plain ViT with capped attention: the encoder of single frames of VideoPrism (Zhao et al. 2024, arXiv:2402.13217, §3.3)."""

from __future__ import annotations

from typing import Annotated, Unpack

from pydantic import Field

from diptych.models.build import Build
from diptych.models.layers.attention import Activation, Sizes
from diptych.models.layers.capped import capped
from diptych.models.vision.towers import ViT


class CappedViT(ViT):
    """Patches by one linear layer, learned positions, no class token; pooled as the mean. cap: of the logits of attention."""

    takes_prompts = False

    def __init__(
        self,
        build: Build,
        *,
        patch: int | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        cap: Annotated[float, Field(gt=0)] = 50.0,
        **sizes: Unpack[Sizes],
    ):
        fixed = {"stem": "patch", "positions": "learned", "norm": "none", "pool": "mean"}
        super().__init__(build, patch=patch, activation=activation, eps=eps, **sizes, **fixed)  # type: ignore[arg-type]
        self.transformer = capped(self.transformer, cap)
