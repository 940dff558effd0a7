"""Terms against forgetting: the model that is fine-tuned stays near a frozen teacher, the model as it was.

Shapes: B batch, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE_EMBEDDING, TEXT_EMBEDDING
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def similarity_distillation(
    image: Tensor, text: Tensor, image_was: Tensor, text_was: Tensor, scale: Tensor | float, rows: slice | None = None
) -> Tensor:
    """The mean over images of KL(q_i ‖ p_i), and the same of texts over images, averaged: p_i is the softmax over the batch's texts
    of scale · x_i · y_j, q_i that of the teacher's vectors (after ZSCL, Zheng et al. 2023, arXiv:2303.06628, §4.1, which has the
    cross-entropy, the same up to a constant).

    All vectors [B, E] of unit length; rows: only these images and texts are compared, with all (a process's share).
    """
    own = slice(0, len(image)) if rows is None else rows
    total = image.new_zeros(())
    for a, b, a_was, b_was in ((image, text, image_was, text_was), (text, image, text_was, image_was)):
        log_p = (scale * a[own] @ b.T).log_softmax(1)
        log_q = (scale * a_was[own] @ b_was.T).log_softmax(1)
        total = total + (log_q.exp() * (log_q - log_p)).sum(1).mean()
    return total / 2


def vector_distance(x: Tensor, was: Tensor) -> Tensor:
    """1 − cos, the mean over rows of unit vectors x and the teacher's [B, E] (MMRL, Guo & Gu 2025, arXiv:2503.08497, has this
    term).
    """
    return (1 - (x * was).sum(-1)).mean()


class Distillation(Objective):
    """Stay near a teacher: ``teachers: {base: {from: start}}`` is the model as it was when the run began.

    teacher: its name. of: ``similarities``: which texts each image resembles, and the reverse (``similarity_distillation``);
    ``vectors``: where each image and text lies (``vector_distance``, the mean of both sides), which is the stronger condition.
    temperature: of the similarities.
    """

    def __init__(
        self,
        model: VLM,
        *,
        teacher: str = "base",
        of: Literal["similarities", "vectors"] = "similarities",
        temperature: Annotated[float, Field(gt=0)] = 0.05,
    ):
        super().__init__(model)
        self.teacher, self.of, self.scale = teacher, of, 1 / temperature
        needed = (IMAGE_EMBEDDING, TEXT_EMBEDDING, f"{teacher}:{IMAGE_EMBEDDING}", f"{teacher}:{TEXT_EMBEDDING}")
        if of == "similarities":
            self.couples = needed
        else:
            self.needs = needed

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, text = p[IMAGE_EMBEDDING], p[TEXT_EMBEDDING]
        image_was, text_was = (p[f"{self.teacher}:{name}"].detach() for name in (IMAGE_EMBEDDING, TEXT_EMBEDDING))
        with torch.autocast(image.device.type, enabled=False):
            if self.of == "similarities":
                return similarity_distillation(image, text, image_was, text_was, self.scale, p.rows)
            return (vector_distance(image, image_was) + vector_distance(text, text_was)) / 2
