"""Alignment without negatives: predict a text's embedding from views of its image, and keep all embeddings from collapsing by
their distribution.

Shapes: B batch, V views, D width, E embedding, S random directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
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
    """From several augmented views of an image the embedding of its caption, and SIGReg on the space that both share (NOVA).

    (1 − λ) · mean over views of (predictor(view) − text)² + λ · SIGReg, λ = ``regularity`` being the only hyperparameter. SIGReg
    grows with the number of samples that it sees, so λ belongs to a batch size. No negatives, no temperature.
    views, least: crops of ``least`` to all of the image's area; local, reach: further crops of ``reach[0]`` to ``reach[1]`` of it.
    Crops are never flipped, since captions say left and right.
    regularise: ``joint`` is the paper's form: SIGReg sees the predictions of all views and the projected texts, and keeps the
    learned projection of the texts from collapsing. ``tower`` regularises what the tower says of the views, and sums the squares
    over dimensions; texts then have to be fixed (``parts.text: {frozen: true, project: false}``).
    """

    trains = ("image.embedding", "text.embedding")
    needs = ("text",)
    parts = ("vision", "text")

    def __init__(
        self,
        model: VLM,
        *,
        views: Annotated[int, Field(ge=1)] = 2,
        least: Annotated[float, Field(gt=0, le=1)] = 0.3,
        local: Annotated[int, Field(ge=0)] = 6,
        reach: tuple[float, float] = (0.05, 0.3),
        regularity: float = 0.02,
        directions: int = 256,
        regularise: Literal["joint", "tower"] = "joint",
    ):
        super().__init__(model)
        space = model.part("space")
        if "text" not in model.fixed:
            raise DiptychError("objective text_prediction: the text tower must be frozen; set parts.text.frozen: true")
        learned = any(True for _ in space.text.parameters())
        if learned and regularise == "tower":
            raise DiptychError(
                "objective text_prediction: with regularise: tower, texts that can change would collapse to one point with the "
                "images; set parts.text: {kind: minilm, frozen: true, project: false}, or regularise: joint"
            )
        self._space = [space]  # in a list: shared, not owned
        self.views, self.local, self.least, self.reach = views, local, least, reach
        self.regularity, self.n, self.regularise = regularity, directions, regularise
        self.couples = ("crops.pooled", "text.pooled" if regularise == "joint" else "text.embedding")

    @provides("crops", "image", kind="image")
    def crop(self, image: Images) -> Images:
        """Random crops of each image, drawn anew each time: all views of an image one after the other."""
        V = self.views + self.local
        owner = torch.arange(len(image), device=image.pixels.device).repeat_interleave(V)
        pixels = image.floats
        drawn = [random_crops(pixels, self.least) for _ in range(self.views)]
        drawn += [random_crops(pixels, *self.reach) for _ in range(self.local)]
        return Images(torch.stack(drawn, 1).flatten(0, 1), owner)

    @provides("crops.pooled", "crops.tokens")
    def pooled(self, tokens: Tokens) -> Tensor:
        """[B, V, D]"""
        return torch.unflatten(tokens.pooled, 0, (-1, self.views + self.local))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        views = p["crops.pooled"]  # [B, V, D]
        meaning = p[TEXT].meaning
        seed = 0 if meaning is None else int(meaning[0]) & 0xFFFF_FFFF
        predicted = self._space[0].image(views).float()  # [B, V, E]
        if self.regularise == "joint":
            text = self._space[0].text(p["text.pooled"]).float()
            seen = torch.cat([predicted.flatten(0, 1), text])
        else:
            text, seen = p[TEXT_EMBEDDING], views.float().flatten(0, 1)
        along = directions(seen.shape[-1], self.n, seed).to(views.device)
        with torch.autocast(text.device.type, enabled=False):
            squares = (predicted - text[:, None]).square()
            error = squares.mean() if self.regularise == "joint" else squares.sum(-1).mean()
            loss: Tensor = (1 - self.regularity) * error + self.regularity * sigreg(seen, along)
        return loss
