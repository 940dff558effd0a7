"""Two towers of transformers: CLIP, SigLIP, SigLIP 2, ALIGN, AltCLIP, Chinese CLIP, MetaCLIP 2, FLAVA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from diptych.core.capabilities import Adapter, Image, Located, one_or_many
from diptych.data.image import as_pixels
from diptych.inference.foreign.hub import Opened, move, pil
from diptych.inference.locating.maps import located_by_maps
from diptych.inference.maps.foreign import DualMaps

FIXED_LENGTH = ("siglip", "siglip2")  # trained on texts padded to full length, without a mask


class DualEncoder(Adapter):
    """A dual encoder of transformers, such as CLIP or SigLIP."""

    capabilities = frozenset({"embed_image", "embed_text", "score", "locate"})
    BESIDE: ClassVar[tuple[str, ...]] = (
        "flava",
    )  # model types that are missing from transformers' list of models that classify by similarity

    def __init__(self, opened: Opened, batch: int):
        from transformers import AutoModel

        self.name = f"hf:{opened.name}"
        self.batch, self.device, self.dtype = batch, opened.device, opened.dtype
        self.model, self.processor = opened.model(AutoModel), opened.processor()
        self.key = opened.key(self.model)
        scale = getattr(self.model, "logit_scale", None)
        self.scale = 100.0 if scale is None else float(scale.detach().float().exp())  # what cosines are multiplied by
        text = getattr(self.model.config, "text_config", self.model.config)
        self.longest = min(text.max_position_embeddings, self.processor.tokenizer.model_max_length)
        self.padding: str | bool = "max_length" if self.model.config.model_type in FIXED_LENGTH else True

    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        return self._embed(
            images, lambda part: self.processor.image_processor(pil(part), return_tensors="pt"), "get_image_features"
        )

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, E]."""
        options: dict[str, Any] = {"padding": self.padding, "truncation": True, "max_length": self.longest}
        tokenise = self.processor.tokenizer
        return self._embed(texts, lambda part: tokenise(list(part), **options, return_tensors="pt"), "get_text_features")

    def image_features(self, images: Sequence[Image], gradient: bool = False) -> torch.Tensor:
        """Vectors of images [N, E], float32, not normalised. gradient: with a graph that begins at the pixels."""
        inputs = move(self.processor.image_processor(pil(images), return_tensors="pt"), self.device, self.dtype)
        if gradient:
            inputs = {n: x.requires_grad_() if x.is_floating_point() else x for n, x in inputs.items()}
        return _vectors(self.model.get_image_features(**inputs))

    @cached_property
    def maps(self) -> DualMaps:
        """Its maps (``inference.maps``)."""
        return DualMaps(self)

    def locate(self, images: Sequence[Image], texts: Sequence[str]) -> list[Located]:
        """Where text i is in image i, by a map."""
        pictures = [as_pixels(image, f"image {i}") for i, image in enumerate(one_or_many(images))]
        return located_by_maps(self.maps, pictures, one_or_many(texts))

    def _embed(self, items: Sequence[Any], prepare: Callable[[Any], Any], method: str) -> np.ndarray:
        result = [np.zeros((0, 0), dtype=np.float32)]
        for start in range(0, len(items), self.batch):
            inputs = move(prepare(items[start : start + self.batch]), self.device, self.dtype)
            with torch.inference_mode():
                vectors = _vectors(getattr(self.model, method)(**inputs))
                result.append(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())
        return np.concatenate(result[1:]) if len(result) > 1 else result[0]


def _vectors(out: Any) -> torch.Tensor:
    """[N, E], float32, from what a model of transformers gives."""
    vectors: torch.Tensor = getattr(out, "pooler_output", out).float()  # older versions give the tensor itself
    return vectors[:, 0] if vectors.ndim == 3 else vectors  # FLAVA projects every token; the first is contrasted
