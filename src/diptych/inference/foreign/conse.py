"""ConSE (Norouzi et al. 2014) as a model: two packaged towers and the names of ImageNet's classes, without training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diptych.core.capabilities import Adapter, Image, Located, one_or_many
from diptych.data.image import as_pixels, resize
from diptych.inference.locating.maps import located_by_maps
from diptych.inference.maps.foreign import ConseMaps
from diptych.models.pretrained import load_efficientnet, load_minilm
from diptych.models.pretrained.conse import LIKELIEST, RESOLUTION, TEMPERATURE, TEMPLATE, ClassSpace, class_texts, class_vectors
from diptych.training.start.setup import pick_device

CHUNK = 64  # images or texts at a time


class Conse(Adapter):
    """An image is the mean of the sentence vectors of its likeliest ImageNet classes, weighted by probability; a text is its
    sentence vector; both minus the mean of all class vectors.

    variant: of EfficientNet-Lite. classes: how many of the likeliest count; temperature: divides their logits, so that more than
    one counts; template: the text of a class, with {name}, {names} (with synonyms) and {kind}; resolution: the side to which the
    central square of an image is scaled, in pixels.
    """

    capabilities = frozenset({"embed_image", "embed_text", "score", "locate"})

    def __init__(
        self,
        *,
        variant: Literal["lite0", "lite1", "lite2"] = "lite0",
        classes: Annotated[int, Field(ge=1, le=1000)] = LIKELIEST,
        temperature: Annotated[float, Field(gt=0)] = TEMPERATURE,
        template: str = TEMPLATE,
        resolution: Annotated[int, Field(ge=32)] = RESOLUTION,
        device: str = "auto",
    ):
        settings = {
            "variant": (variant, "lite0"),
            "classes": (classes, LIKELIEST),
            "temperature": (temperature, TEMPERATURE),
            "template": (template, TEMPLATE),
            "resolution": (resolution, RESOLUTION),
        }
        changed = "&".join(f"{name}={value}" for name, (value, usual) in settings.items() if value != usual)
        self.name = f"conse?{changed}" if changed else "conse"
        texts = class_texts(template)  # a wrong template is refused before weights are loaded
        self.device, self.resolution = pick_device(device), resolution
        self.vision = f"efficientnet-{variant}"  # its weights' package (``models.pretrained.packages``)
        self.net = load_efficientnet(variant).to(self.device)
        self.encoder = load_minilm().to(self.device)
        self.space = ClassSpace(class_vectors(self.encoder, template), classes, temperature).to(self.device)
        # All that its vectors depend on, apart from the packages' weights, of which there is one version.
        self.key = blake2b(repr((variant, classes, temperature, resolution, texts)).encode(), digest_size=16).hexdigest()

    @torch.inference_mode()
    def logits(self, images: Sequence[Image]) -> np.ndarray:
        """The logits of ImageNet's classes, float32 [N, 1000]; ``models.pretrained.conse.imagenet_classes`` names them."""
        images = one_or_many(images)
        rows = [self._logits(images, start).cpu().numpy() for start in range(0, len(images), CHUNK)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.space.vectors)), dtype=np.float32)

    def _logits(self, images: Sequence[Image], start: int) -> Tensor:
        chunk = images[start : start + CHUNK]
        squares = [resize(as_pixels(image, f"image {start + i}"), self.resolution) for i, image in enumerate(chunk)]
        pixels = torch.from_numpy(np.stack(squares)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.as_tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.net.mean, self.net.std))
        return self.net.logits(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def embed_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors, float32 [N, 384]. images: uint8 arrays [height, width, 3], Pillow images or paths."""
        images = one_or_many(images)
        rows = [self.space.image(self._logits(images, start)).cpu().numpy() for start in range(0, len(images), CHUNK)]
        return np.concatenate(rows) if rows else np.zeros((0, self.encoder.width), dtype=np.float32)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 384]."""
        vectors: np.ndarray = self.space.text(self.encoder.embed(list(one_or_many(texts)), self.device)).cpu().numpy()
        return vectors

    def image_logits(self, images: Sequence[Image]) -> Tensor:
        """``logits`` as a tensor [N, 1000], with a graph if gradients are wanted."""
        return torch.cat([self._logits(images, start) for start in range(0, len(images), CHUNK)])

    @cached_property
    def maps(self) -> ConseMaps:
        """Its maps (``inference.maps``)."""
        return ConseMaps(self)

    def locate(self, images: Sequence[Image], texts: Sequence[str]) -> list[Located]:
        """Where text i is in image i, by a map."""
        pictures = [as_pixels(image, f"image {i}") for i, image in enumerate(one_or_many(images))]
        return located_by_maps(self.maps, pictures, one_or_many(texts))

    def score(self, images: Sequence[Image], texts: Sequence[str], pairs: np.ndarray | None = None) -> np.ndarray:
        """Cosines, float32 [N, M], or [P] for ``pairs``."""
        return super().score(one_or_many(images), one_or_many(texts), pairs)
