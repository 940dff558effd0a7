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
    """From several augmented views of an image the embedding of its caption, and SIGReg on the space that both share (NOVA, Kuhn et
    al. 2026).

    (1 − λ) · mean over views of (predictor(view) − text)² + λ · SIGReg, λ = ``regularity`` being the only hyperparameter. SIGReg
    grows with the number of samples that it sees, so λ belongs to a batch size. No negatives, no temperature.
    views, least: crops of ``least`` to all of the image's area; local, reach: further crops of ``reach[0]`` to ``reach[1]`` of it.
    Crops are never flipped, since captions say left and right.
    regularise: which samples SIGReg sees. ``joint`` is the paper's: the predictions of all views and the projected texts as one
    set, which keeps the learned projection of the texts from collapsing. ``apart``: the predictions of each view and the texts are
    sets of their own, B samples each, and their statistics are averaged, as LeJEPA's code does with views. ``predictions``: without
    the texts. ``tower``: what the tower says of the views, before the predictor; texts then have to be fixed (``parts.text:
    {frozen: true, project: false}``).
    error: ``mean`` of the squares over dimensions (the paper's), or their ``sum``, which weighs the error E times as much against
    SIGReg; None: ``sum`` with ``tower``, else ``mean``.
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
        regularise: Literal["joint", "apart", "predictions", "tower"] = "joint",
        error: Literal["mean", "sum"] | None = None,
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
        self._noted: dict[str, float] = {}
        self.error = error or ("sum" if regularise == "tower" else "mean")
        self.couples = ("crops.pooled", "text.embedding" if regularise == "tower" else "text.pooled")

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
        text = p[TEXT_EMBEDDING] if self.regularise == "tower" else self._space[0].text(p["text.pooled"]).float()  # [B, E]
        sets = self._sets(views, predicted, text)
        along = directions(sets[0].shape[-1], self.n, seed).to(views.device)
        with torch.autocast(text.device.type, enabled=False):
            squares = (predicted - text[:, None]).square()
            error = squares.mean() if self.error == "mean" else squares.sum(-1).mean()
            shape = torch.stack([sigreg(x, along) for x in sets]).mean()
            loss: Tensor = (1 - self.regularity) * error + self.regularity * shape
        self._noted = {"error": float(error.detach()), "sigreg": float(shape.detach())}
        return loss

    def _sets(self, views: Tensor, predicted: Tensor, text: Tensor) -> list[Tensor]:
        """The sets of samples [N, E or D] that SIGReg sees."""
        if self.regularise == "tower":
            return [views.float().flatten(0, 1)]
        if self.regularise == "predictions":
            return [predicted.flatten(0, 1)]
        if self.regularise == "apart":
            return [*predicted.unbind(1), text]
        return [torch.cat([predicted.flatten(0, 1), text])]

    def metrics(self) -> dict[str, float]:
        """The two terms of the last loss, before their weights."""
        return self._noted
