"""Vision towers of transformers alone: DINOv2, ViT, ConvNeXt, the vision half of a dual encoder. They embed images, not texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diptych.core.capabilities import Adapter, Image
from diptych.inference.foreign.hub import Opened, move, pil


class VisionOnly(Adapter):
    """A vision tower: its class token, else its pooled output, else the mean of its tokens or of its feature map."""

    capabilities = frozenset({"embed_image"})

    def __init__(self, opened: Opened, batch: int):
        from transformers import AutoImageProcessor, AutoModel

        self.name = f"hf:{opened.name}"
        self.batch, self.device, self.dtype = batch, opened.device, opened.dtype
        self.model, self.processor = opened.model(AutoModel), opened.get(AutoImageProcessor)
        self.key = opened.key(self.model)

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        result = []
        for start in range(0, len(images), self.batch):
            inputs = move(self.processor(pil(images[start : start + self.batch]), return_tensors="pt"), self.device, self.dtype)
            with torch.inference_mode():
                out = self.model(**inputs)
                vectors = self._pooled(out)
                result.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
        return np.concatenate(result) if result else np.zeros((0, 0), dtype=np.float32)

    def _pooled(self, out: Any) -> torch.Tensor:
        """[B, E]. The class token goes first: checkpoints for classification have no pooling layer, and transformers adds a random
        one.
        """
        tokens: torch.Tensor = out.last_hidden_state
        if hasattr(getattr(self.model, "embeddings", None), "cls_token"):
            return tokens[:, 0]
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)  # type: ignore[no-any-return]
        return tokens.mean((2, 3)) if tokens.ndim == 4 else tokens.mean(1)
