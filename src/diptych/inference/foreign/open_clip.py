"""``open_clip:ViT-B-32?pretrained=laion2b_s34b_b79k``: dual encoders of open_clip, which the user has installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diptych.core.capabilities import Adapter, Image
from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.inference.foreign.hub import pil
from diptych.training.start.setup import pick_device


class OpenClip(Adapter):
    """A model of open_clip."""

    capabilities = frozenset({"embed_image", "embed_text", "score"})

    def __init__(self, name: str, *, pretrained: str = "", device: str = "auto", batch: int = 64):
        """``pretrained``: a tag that open_clip knows, or a file of weights."""
        open_clip = need("open_clip", extra=None, what=f"open_clip:{name}")
        self.name, self.batch, self.device = f"open_clip:{name}", batch, pick_device(device)
        try:
            made = open_clip.create_model_and_transforms(name, pretrained=pretrained or None, device=str(self.device))
        except (RuntimeError, OSError) as error:
            raise DiptychError(f"open_clip:{name}: {error}; give pretrained=TAG or the path of a downloaded file") from error
        self.model, _, self.prepare = made
        self.model.eval()
        self.tokenise = open_clip.get_tokenizer(name)
        self.key = f"{name}-{pretrained}-{open_clip.__version__}" if pretrained else None  # None: random weights

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        parts = [pil(images[i : i + self.batch]) for i in range(0, len(images), self.batch)]
        with torch.inference_mode():
            result = [self.model.encode_image(torch.stack([self.prepare(p) for p in part]).to(self.device)) for part in parts]
            return torch.nn.functional.normalize(torch.cat(result).float(), dim=-1).cpu().numpy()

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        parts = [list(texts[i : i + self.batch]) for i in range(0, len(texts), self.batch)]
        with torch.inference_mode():
            result = [self.model.encode_text(self.tokenise(part).to(self.device)) for part in parts]
            return torch.nn.functional.normalize(torch.cat(result).float(), dim=-1).cpu().numpy()
