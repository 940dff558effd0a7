"""CoCoOp: classification by texts that are encoded anew for each image.

Shapes: B images, C classes, T tokens, E embedding, P pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diptych.core.batch import Texts
from diptych.core.encodings import IMAGE_EMBEDDING, TEXT
from diptych.models.adapters.cocoop import Cocoop
from diptych.models.space import unit
from diptych.objectives.adapting.class_names import classification_loss
from diptych.objectives.base import Objective
from diptych.objectives.prompted import adapter_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class ConditionalPrompts(Objective):
    """Cross-entropy of an image over the texts of all classes, each encoded with the context that the adapter ``cocoop`` computes
    from this image (Zhou et al. 2022, arXiv:2203.05557, §3.2).

    The text tower reads B · C texts a step. at_once: how many of them at a time; more are read in pieces, which are computed again
    in the backward pass, so memory does not grow with B · C. temperature: of a buffer, so the scale is that of the run that the
    weights come from, where this objective has the name of the contrastive objective there (``info_nce: {kind: cocoop}``).
    score: ``cocoop`` scores any text for an image by encoding it for that image. The model cannot embed texts by themselves.
    """

    needs = ("image.embedding", "label", "label.classes")
    scores_as = "cocoop"
    parts = ("vision", "text", "space")
    borrows = True

    def __init__(self, model: VLM, *, temperature: float = 0.07, at_once: Annotated[int, Field(ge=1)] = 1024):
        super().__init__(model)
        self.at_once = at_once
        self.register_buffer("logit_scale", torch.tensor(math.log(1 / temperature)))
        self.logit_scale: Tensor
        adapter = adapter_of(model, Cocoop, "cocoop", "cocoop")
        self._with = (model.part("text"), model.part("space"), adapter)  # in a tuple: they are not the objective's

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.logit_scale.exp()

    def embed(self, texts: Texts, image: Tensor) -> Tensor:
        """Row i of the texts, encoded for row i of the image embeddings [P, E]: unit vectors [P, E]."""
        text, space, adapter = self._with
        with adapter.given(image):
            read = text(texts.ids, texts.mask, texts.strings)
        return unit(space.text(read.pooled))

    def classes_for(self, image: Tensor, classes: Texts) -> Tensor:
        """All classes, encoded for each image embedding [B, E]: unit vectors [B, C, E]."""
        C, pieces = len(classes), []
        size = max(1, self.at_once // C)
        every = torch.arange(C, device=image.device)
        for part in torch.split(image, size):

            def encoded(part: Tensor) -> Tensor:
                """[b, E] → [b, C, E]"""
                rows = classes[every.repeat(len(part))]
                return self.embed(rows, part.repeat_interleave(C, 0)).view(len(part), C, -1)

            again = size < len(image) and torch.is_grad_enabled()
            pieces.append(checkpoint(encoded, part, use_reentrant=False) if again else encoded(part))
        return torch.cat(pieces)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image = p[IMAGE_EMBEDDING]
        classes = self.classes_for(image, p["label.classes"])
        with torch.autocast(image.device.type, enabled=False):
            return classification_loss(image, classes, p["label"].index, self.scale)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        image = p[IMAGE_EMBEDDING][images]
        return (image * self.embed(p[TEXT][texts].trimmed(), image)).sum(-1)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {"scale": self.scale.item()}
