"""The maps of dual encoders of transformers, and of ``conse``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from diptych.core.capabilities import Image
from diptych.inference.maps.base import Maps, arrays, cam_map, flow_map
from diptych.inference.maps.geometry import Box, view_of
from diptych.inference.maps.watching import attends, watching, watching_map


class DualMaps(Maps):
    """model: a ``DualEncoder``."""

    def __init__(self, model: Any):
        self.dual, self.name = model, model.name
        self.tower = vision_of(model.model)
        self.methods = ("gradient", "grad-cam", "legrad", "rollout") if attends(self.tower) else ("grad-cam",)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The vision tower."""
        return [self.tower]

    def view(self, height: int, width: int) -> Box:
        """The part of a picture that the model's own processor keeps."""
        return view_of(height, width, *seen_part(self.dual.processor.image_processor))

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """Cosines of pairs, float32 [n]."""
        return np.asarray((self.dual.embed_image(images) * self.dual.embed_text(texts)).sum(1))

    def _grids(self, images: Sequence[Image], texts: Sequence[str], method: str) -> list[np.ndarray]:
        text = torch.from_numpy(self.dual.embed_text(texts)).to(self.dual.device)
        with torch.enable_grad(), watching(self.tower) if attends(self.tower) else watching_map(self.tower) as seen:
            scores = (F.normalize(self.dual.image_features(images, gradient=True), dim=-1) * text).sum(1)
            extra = self._extra(seen.own[0].shape[-1]) if seen.own else 0
            if method == "grad-cam":
                return arrays(cam_map(seen, scores, extra))
            read = "pool" if seen.pools else "class" if extra else "mean"
            return arrays(flow_map(seen, scores, method, read, extra))

    def _extra(self, tokens: int) -> int:
        """How many tokens before the patches there are among all."""
        return tokens - int(tokens**0.5) ** 2


def vision_of(model: Any) -> nn.Module:
    """The vision tower of a dual encoder of transformers, by the names that its families use."""
    found = next((getattr(model, n) for n in ("vision_model", "image_model", "visual") if hasattr(model, n)), model)
    tower: nn.Module = found
    return tower


def seen_part(processor: Any) -> tuple[Literal["crop", "squash"], float]:
    """The part of a picture that an image processor of transformers keeps: its central square, and which share of it, or all."""
    size, cut = (_as_dict(getattr(processor, name, None)) for name in ("size", "crop_size"))
    if "shortest_edge" not in size:
        return "squash", 1.0
    if not getattr(processor, "do_center_crop", False):
        return "crop", 1.0
    return "crop", min(1.0, float(cut.get("height", size["shortest_edge"])) / float(size["shortest_edge"]))


def _as_dict(size: Any) -> dict[str, Any]:
    if size is None or isinstance(size, int):
        return {} if size is None else {"shortest_edge": size, "height": size}
    return {k: v for k, v in dict(size).items() if v is not None}


class ConseMaps(Maps):
    """model: a ``Conse``. ``dense``: each place of the feature map as an image of its own, its cosine with the text."""

    methods = ("grad-cam", "dense")

    def __init__(self, model: Any):
        self.conse, self.name = model, model.name

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The vision tower."""
        return [self.conse.net]

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """Cosines of pairs, float32 [n]."""
        return np.asarray((self.conse.embed_image(images) * self.conse.embed_text(texts)).sum(1))

    def _grids(self, images: Sequence[Image], texts: Sequence[str], method: str) -> list[np.ndarray]:
        text = torch.from_numpy(self.conse.embed_text(texts)).to(self.conse.device)
        with torch.enable_grad(), watching_map(self.conse.net.head) as seen:
            logits = self.conse.image_logits(images)
            assert seen.given is not None
            if method == "dense":
                places = self.conse.net.classifier(seen.given.detach().flatten(2).transpose(1, 2))  # [B, N, C]
                vectors = self.conse.space.image(places.flatten(0, 1)).unflatten(0, places.shape[:2])
                return arrays(torch.einsum("bne,be->bn", vectors, text))
            scores = (self.conse.space.image(logits) * text).sum(1)
            return arrays(cam_map(seen, scores, 0))
