"""Classification by class names: an image over the text embeddings of all classes.

Shapes: B batch, C classes, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

MOST = math.log(100)  # CLIP's limit of the scale


def class_logits(image: Tensor, classes: Tensor, scale: Tensor | float) -> Tensor:
    """scale · x_i · w_c, [B, C], in float32 at least, for unit vectors x [B, E] and w [C, E]; or w [B, C, E], if each image has
    class vectors of its own.
    """
    exact = torch.promote_types(image.dtype, torch.float32)
    image, classes = image.to(exact), classes.to(exact)
    return scale * (image @ classes.T if classes.ndim == 2 else torch.einsum("be,bce->bc", image, classes))


def classification_loss(image: Tensor, classes: Tensor, index: Tensor, scale: Tensor | float) -> Tensor:
    """−1/B Σ_i log softmax_c(scale · x_i · w_c) at c = index_i (CoOp, Zhou et al. 2022, eq. 1 and 3). Vectors as for
    ``class_logits``, index int64 [B].
    """
    return F.cross_entropy(class_logits(image, classes, scale), index)


class ClassNames(Objective):
    """``classification_loss`` over the text embeddings of all class names (``label.classes``; their template is an option of the
    field: ``data.fields: {label: {kind: label, template: a photo of a {}}}``).

    The scale comes with the weights that a run starts from, if the objective has the name of the contrastive objective there
    (``info_nce: {kind: class_names}``), or if they are of transformers. learn_scale: whether it is trained too; then it is at most
    100 after each step. bias: holds SigLIP's learned offset, which a softmax does not depend on, so that an adapted SigLIP has it
    when it is exported.
    """

    needs = ("image.embedding", "label.classes.embedding", "label")
    trains = ("text.embedding",)  # class names are texts: the model scores any text through the same vectors

    def __init__(
        self,
        model: VLM,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        learn_scale: bool = False,
        bias: bool = False,
    ):
        super().__init__(model)
        start = torch.tensor(math.log(1 / temperature))
        self.logit_scale: Tensor
        if learn_scale:
            self.logit_scale = nn.Parameter(start)
        else:
            self.register_buffer("logit_scale", start)
        if bias:
            self.register_buffer("logit_bias", torch.tensor(-10.0))

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.logit_scale.exp()

    def class_logits(self, p: Pass) -> Tensor:
        """Logits of a pass's images over its class names, [B, C]."""
        return class_logits(p["image.embedding"], p["label.classes.embedding"], self.scale)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, classes, index = p["image.embedding"], p["label.classes.embedding"], p["label"].index
        with torch.autocast(image.device.type, enabled=False):
            return classification_loss(image, classes, index, self.scale)

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Limit a scale that learns."""
        if self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(max=MOST)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log: the scale."""
        return {"scale": self.scale.item()}
