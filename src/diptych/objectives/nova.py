"""Alignment without negatives: predict a frozen text embedding, and keep the image's embeddings from collapsing by their
distribution.

Shapes: B batch, V views, D width, E embedding, S random directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.core.batch import Images, Tokens
from diptych.core.encodings import TEXT, TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.core.graph import provides
from diptych.models.vision.drawn import random_crops
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

REACH, POINTS = 5.0, 17  # where the characteristic functions are compared


def directions(width: int, n: int, seed: int) -> Tensor:
    """Random unit vectors [width, n]; a function of the seed, so that pieces of a batch and processes draw the same."""
    drawn: Tensor = torch.randn(width, n, generator=torch.Generator().manual_seed(seed))
    drawn = drawn / drawn.norm(dim=0)
    return drawn


def epps_pulley(x: Tensor) -> Tensor:
    """How far one-dimensional samples are from a standard normal distribution (Epps & Pulley 1983): x [N, S] → [S].

    N ∫ |φ_N(t) − e^{−t²/2}|² e^{−t²/2} dt by trapezoids over [−5, 5]; φ_N is the samples' characteristic function.
    """
    t = torch.linspace(-REACH, REACH, POINTS, dtype=x.dtype, device=x.device)
    normal = torch.exp(-0.5 * t**2)
    angles = x[..., None] * t  # [N, S, T]
    gap = (angles.cos().mean(0) - normal) ** 2 + angles.sin().mean(0) ** 2
    return len(x) * torch.trapezoid(gap * normal, t, dim=-1)


def sigreg(x: Tensor, along: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularisation: the mean of ``epps_pulley`` of embeddings [N, D] along directions [D, S] (LeJEPA,
    Balestriero & LeCun 2025).
    """
    return epps_pulley(x @ along).mean()


class TextPrediction(Objective):
    """Predict the frozen embedding of the caption from several augmented views of the image, with SIGReg on the tower's output for
    the views (NOVA).

    (1 − λ) · mean over views of ‖projection(view) − text‖² + λ · SIGReg, λ = ``regularity`` being the only hyperparameter. No
    negatives, no temperature.
    views: random crops of ``least`` to all of the image's area, never flipped, since captions say left and right. Small crops lose
    the content of the captions.
    """

    couples = ("crops.pooled", "text.embedding")
    trains = ("image.embedding",)
    needs = ("text",)
    parts = ("vision", "text")

    def __init__(self, model: VLM, *, views: int = 2, least: float = 0.8, regularity: float = 0.01, directions: int = 256):
        super().__init__(model)
        space = model.part("space")
        if "text" not in model.fixed or any(True for _ in space.text.parameters()):
            raise DiptychError(
                "objective text_prediction: text embeddings that are trained would collapse to one point with the images; "
                "use a frozen text tower with its own space: parts.text: {kind: minilm, frozen: true, project: false}"
            )
        self._space = [space]  # in a list: shared, not owned
        self.views, self.least = views, least
        self.regularity, self.n = regularity, directions

    @provides("crops", "image", kind="image")
    def crop(self, image: Images) -> Images:
        """Random crops of each image, drawn anew each time: V of them one after the other, for each image."""
        V = self.views
        owner = torch.arange(len(image), device=image.pixels.device).repeat_interleave(V)
        return Images(random_crops(image.floats.repeat_interleave(V, 0), self.least), owner)

    @provides("crops.pooled", "crops.tokens")
    def pooled(self, tokens: Tokens) -> Tensor:
        """[B, V, D]"""
        return torch.unflatten(tokens.pooled, 0, (-1, self.views))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        views, text = p["crops.pooled"], p[TEXT_EMBEDDING]  # [B, V, D], [B, E]
        meaning = p[TEXT].meaning
        along = directions(views.shape[-1], self.n, 0 if meaning is None else int(meaning[0]) & 0xFFFF_FFFF).to(views.device)
        predicted: Tensor = self._space[0].image(views).float()
        with torch.autocast(text.device.type, enabled=False):
            error = (predicted - text[:, None]).square().sum(-1).mean()
            shape = sigreg(views.float().flatten(0, 1), along)
        return (1 - self.regularity) * error + self.regularity * shape
