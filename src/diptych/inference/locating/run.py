"""``locate`` of a run of ours: by boxes that it predicts, by heat that it computes, or by a map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from diptych.core.batch import Batch, Images
from diptych.core.capabilities import Image, Located, one_or_many
from diptych.core.errors import DiptychError, counted
from diptych.data.fields.base import stacked
from diptych.data.fields.text import tokenized
from diptych.data.image import as_pixels, resize
from diptych.inference.able import missing_fields
from diptych.inference.locating.maps import located_by_maps
from diptych.inference.maps.geometry import box_of, placed, view_of
from diptych.inference.maps.run import RunMaps, methods_of

CHUNK = 64  # pairs at a time


def ways_of(run: Any) -> tuple[str, ...]:
    """How a run can locate, the way that is used first: ``box`` (its graph gives ``text.box``), ``heat`` (``text.heat``),
    ``map``.
    """
    graph = run.model.graph
    if run.shows != "image":
        return ()
    own = [w for w in ("box", "heat") if graph.gives(f"text.{w}") and not missing_fields(run.model, (f"text.{w}",))]
    return (*own, *(("map",) if methods_of(run) else ()))


class Locates:
    """What ``TrainedModel`` does to say where a phrase is."""

    name: str
    model: Any

    @cached_property
    def maps(self) -> RunMaps:
        """Its maps (``inference.maps``)."""
        return RunMaps(self)

    def locate(self, images: Sequence[Image], texts: Sequence[str], method: str = "") -> list[Located]:
        """Where text i is in image i, exactly one for each pair (``core.capabilities.Located``). method: a map by name instead of
        the way that is used first.
        """
        self._can("locate")
        images, texts = one_or_many(images), one_or_many(texts)
        if len(images) != len(texts):
            raise DiptychError(f"{counted(len(texts), 'text')} for {counted(len(images), 'image')}; give one for each")
        pictures = [as_pixels(image, f"image {i}") for i, image in enumerate(images)]
        way = "map" if method else ways_of(self)[0]
        if way == "map":
            return located_by_maps(self.maps, pictures, texts, method)
        found: list[Located] = []
        for start in range(0, len(pictures), CHUNK):
            found += self._own(pictures[start : start + CHUNK], texts[start : start + CHUNK], way)
        return found

    def _own(self, images: Sequence[Image], texts: Sequence[str], way: str) -> list[Located]:
        """By ``text.box`` or ``text.heat``."""
        device = self.model_device
        with self._inference():
            pixels = stacked([resize(image, self.model.image_size) for image in images]).to(device)
            read = tokenized(self.model.tokenizer, list(texts)).to(device)
            p = self.model.encode(Batch({"image": Images(pixels), "text": read}, len(images)))
            values = p[f"text.{way}"].float().cpu().numpy()
            heats = p["text.heat"].float().cpu().numpy() if way == "box" and "heat" in ways_of(self) else [None] * len(images)
            scores = self._pair_scores(p, len(images))
        return [
            _from_box(value, heat, image, score) if way == "box" else _from_heat(value, image, score)
            for value, heat, image, score in zip(values, heats, images, scores, strict=True)
        ]

    def _pair_scores(self, p: Any, n: int) -> list[float]:
        scorer: Any = getattr(self, "scorer", None)
        if scorer is None or "score" not in self.capabilities:
            return [0.0] * n
        rows = torch.arange(n, device=self.model_device)
        return [float(s) for s in scorer.pair_scores(p, rows, rows)]

    @property
    def model_device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = getattr(self, "device")  # noqa: B009 - an attribute of the class that inherits this one
        return device

    capabilities: frozenset[str]

    def _inference(self) -> Any:
        raise NotImplementedError

    def _can(self, capability: str) -> None:
        raise NotImplementedError


def _from_box(shares: np.ndarray, grid: np.ndarray | None, image: Image, score: float) -> Located:
    """A box in shares of the model's square as pixels of the picture, its edges in order; with the model's heat, if it has one."""
    rows, columns = image.shape[:2]
    left, top, right, bottom = view_of(rows, columns)
    x0, x1 = sorted(float(np.clip(shares[i], 0, 1)) * (right - left) + left for i in (0, 2))
    y0, y1 = sorted(float(np.clip(shares[i], 0, 1)) * (bottom - top) + top for i in (1, 3))
    heat = None if grid is None else placed(grid, rows, columns, (left, top, right, bottom))
    return Located((x0, y0, x1, y1), score, heat, None, "box")


def _from_heat(grid: np.ndarray, image: Image, score: float) -> Located:
    height, width = image.shape[:2]
    heat = placed(grid, height, width, view_of(height, width))
    return Located(box_of(heat), score, heat, None, "heat")
