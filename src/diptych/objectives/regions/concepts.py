"""Regions and the concepts that a teacher sees in them (RegionCLIP, Zhong et al. 2022, arXiv:2112.09106, §3.3).

Shapes: n regions, C concepts, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective
from diptych.objectives.regions.base import count_of, share_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def concept_losses(similarity: Tensor, taught: Tensor, temperature: float, distilled: float) -> tuple[Tensor, Tensor]:
    """The two losses of RegionCLIP's pretraining for each region: contrast with the concept that the teacher assigns to it, and the
    Kullback–Leibler divergence of the student's distribution over the concepts from the teacher's: [n] each.

    similarity: [n, C] cosines of the student's regions with the concepts; taught: the teacher's. temperature: of the contrast,
    whose negatives are the concepts that the teacher assigns to the other regions of the batch. distilled: temperature of the
    divergence.
    """
    label = taught.argmax(1)
    present = torch.zeros(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    present[label] = True
    logits = (similarity / temperature).masked_fill(~present, float("-inf"))
    contrast = F.cross_entropy(logits, label, reduction="none")
    student, teacher = (F.log_softmax(x / distilled, 1) for x in (similarity, taught))
    return contrast, (teacher.exp() * (teacher - student)).sum(1)


class RegionConcepts(Objective):
    """RegionCLIP's region-text pretraining: a teacher compares each region with the concepts of the source (field ``concepts``),
    and the student learns from its choice (``concept_losses``). The concept vectors are the teacher's, as in the paper, so the text
    tower does not change by it.

    teacher: its name; it needs the regions' part too. temperature: 0.01 in the paper. contrast, divergence: weights of the two
    losses.
    """

    couples: tuple[str, ...] = ("regions.embedding",)
    parts = ("regions",)

    def __init__(
        self,
        model: VLM,
        *,
        teacher: str,
        temperature: Annotated[float, Field(gt=0)] = 0.01,
        contrast: Annotated[float, Field(ge=0)] = 1.0,
        divergence: Annotated[float, Field(ge=0)] = 1.0,
    ):
        super().__init__(model)
        if not contrast + divergence:
            raise DiptychError("objective region_concepts: contrast and divergence are both 0; give one of them a weight")
        self.temperature, self.contrast, self.divergence = temperature, contrast, divergence
        self.taught, self.concepts = f"{teacher}:regions.embedding", f"{teacher}:concepts.classes.embedding"
        self.couples = ("regions.embedding", self.taught)
        self.needs = ("regions", "concepts", self.concepts)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar; 0 if there are no regions."""
        student, teacher = (p[name].float() for name in self.couples)
        if not count_of(p):
            result: Tensor = student.sum() * 0
            return result
        with torch.autocast(student.device.type, enabled=False):
            concepts = p[self.concepts].float().detach()
            contrast, divergence = concept_losses(
                student @ concepts.T, teacher.detach() @ concepts.T, self.temperature, self.temperature
            )
            rows, weight = share_of(p)
            return (self.contrast * contrast[rows] + self.divergence * divergence[rows]).mean() * weight
