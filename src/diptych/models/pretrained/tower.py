"""Vision towers of transformers, of any family: pixels in, all tokens out."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.core.errors import DiptychError
from diptych.models.pretrained.hub import fetch, place, statistics_of


class VisionTower(nn.Module):
    """Any image model that gives tokens or a feature map: CLIP, SigLIP, DINOv2, ViT, ConvNeXt, ResNet, …

    layer: which hidden state is read, −1 the last one after its norm, −2 the one before (LLaVA). ``extra`` tokens (class,
    registers) come before the patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float], layer: int = -1):
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        config = getattr(model.config, "vision_config", model.config)
        self.layer = layer
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)
        self.size = size_of(config)
        self.model.eval()
        with torch.no_grad():
            seen = self._tokens(torch.zeros(1, 3, self.size, self.size))[0]
        side = math.isqrt(seen.shape[1])  # there are fewer class and register tokens than another row would need
        self.tokens, self.width = side**2, int(seen.shape[2])
        self.extra = int(seen.shape[1]) - self.tokens

    @classmethod
    def load(cls, address: str, layer: int = -1, dtype: torch.dtype = torch.float32) -> VisionTower:
        """From ``hf:NAME_OR_PATH``; a checkpoint of a dual encoder gives its vision half."""
        from transformers import AutoModel

        name = place(address)
        model = fetch(AutoModel, name, dtype=dtype)
        if hasattr(model, "language_model") and not hasattr(model, "vision_model"):
            raise DiptychError(f"{address}: a {type(model).__name__} is not a vision tower; give the tower that it is based on")
        return cls(model, *statistics_of(name), layer)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] in [−1, 1] → tokens [B, extra + N, D] and pooled [B, D]: the model's own pooling, else the class
        token, else the mean.
        """
        if pixels.shape[-1] != self.size:
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        tokens, pooled = self._tokens(((pixels * 0.5 + 0.5) - self.mean) / self.std)
        if pooled is None:
            pooled = tokens[:, 0] if self.extra else tokens.mean(1)
        return tokens, pooled

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        dtype = next(self.model.parameters()).dtype
        out = self.model(pixel_values=pixels.to(dtype), output_hidden_states=self.layer != -1)
        x = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        pooled = getattr(out, "pooler_output", None) if self.layer == -1 else None
        if x.ndim == 4:  # a feature map
            x = x.flatten(2).transpose(1, 2)
        return x, None if pooled is None else pooled.flatten(1)


def size_of(config: Any) -> int:
    """The side in pixels of the pictures for which a model of transformers was made."""
    size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    return int(size[0] if isinstance(size, list | tuple) else size)
