"""The objective of a quantizer: reconstruct the picture from its codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def codebook_loss(features: Tensor, chosen: Tensor, commitment: float) -> Tensor:
    """‖sg[z] − e‖² + β ‖z − sg[e]‖², mean over all entries (van den Oord et al. 2017, eq. 3); features z and chosen codes e [B, N,
    C].
    """
    return F.mse_loss(chosen, features.detach()) + commitment * F.mse_loss(features, chosen.detach())


def psnr(mean_squared_error: float, span: float = 2.0) -> float:
    """Peak signal-to-noise ratio in decibels, of values that span ``span`` (2: pixels from −1 to 1)."""
    return 10 * math.log10(span**2 / max(mean_squared_error, 1e-12))


def perplexity(counts: Tensor) -> float:
    """How many codes are in use, effectively: exp of the entropy of their shares; counts [K]."""
    shares = counts[counts > 0].double() / counts.sum().clamp(min=1)
    return float((-(shares * shares.log()).sum()).exp())


class Reconstruction(Objective):
    """Reconstruction of the pixels, plus terms that pull codes and features towards each other. commitment: β, of the features."""

    parts = ("quantizer",)
    needs = ("image.quantized", "image")

    def __init__(self, model: VLM, *, commitment: Annotated[float, Field(ge=0)] = 0.25):
        super().__init__(model)
        self.commitment = commitment
        self._quantizer = [model.part("quantizer")]  # in a list: shared, not owned
        self._error, self._samples = torch.zeros(()), 0
        self._noted: dict[str, float] = {}

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        images = p[IMAGE]
        if images is None:  # no document of the batch has an image
            nothing: Tensor = 0.0 * self._quantizer[0].codebook.sum()
            return nothing
        made, pixels = p["image.quantized"], images.floats
        error = F.mse_loss(made.pixels.float(), pixels)
        if self._quantizer[0].training:
            self._error = self._error + error.detach().cpu() * len(pixels)
            self._samples += len(pixels)
        return error + codebook_loss(made.features, made.chosen, self.commitment)

    def terms(self, p: Pass) -> float:
        """The number of images, which is not that of the samples if it reads the images of documents."""
        images = p[IMAGE]
        return 0 if images is None else len(images)

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Called after the optimizer's step: unused codes are revived here."""
        quantizer = self._quantizer[0]
        if not quantizer.training:
            return
        error, samples, *counts = total(float(self._error), self._samples, *quantizer.counts.tolist())
        used = torch.tensor(counts, dtype=torch.float64, device=quantizer.counts.device)
        self._noted = {
            "psnr": psnr(error / max(samples, 1.0)),
            "codes_used": float((quantizer.idle == 0).double().mean()),
            "perplexity": perplexity(used),
            "codes_revived": float(quantizer.end_step(used)),
        }
        self._error, self._samples = torch.zeros(()), 0

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return self._noted
