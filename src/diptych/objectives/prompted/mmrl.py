"""MMRL: two features of an image against one text, and neither side far from where it was.

Shapes: B images, C classes, T tokens, E embedding, M images, N texts, P pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import IMAGE, IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING, Key
from diptych.models.adapters.mmrl import Mmrl
from diptych.objectives.adapting.class_names import classification_loss
from diptych.objectives.base import Objective
from diptych.objectives.prompted import adapter_of

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

REPRESENTATION, CLASSES = Key[Tensor]("image.representation"), Key[Tensor]("label.classes.embedding")
KNOWN = 4096  # classes that are remembered
FACTOR = 6364136223846793005  # odd: powers of it spread ids over 64 bits


def mmrl_loss(
    image: Tensor,
    representation: Tensor,
    classes: Tensor,
    index: Tensor,
    scale: Tensor | float,
    image_was: Tensor,
    classes_were: Tensor,
    alpha: float,
    weight: float,
) -> Tensor:
    """α CE(x) + (1 − α) CE(r) + λ [mean_i (1 − x_i · x⁰_i) + mean_c (1 − w_c · w⁰_c)] (Guo & Gu 2025, arXiv:2503.08497).

    image x, representation r, image_was x⁰ (of the frozen model): [B, E]; classes w, classes_were w⁰: [C, E]; unit vectors. weight:
    λ.
    """
    own, other = (classification_loss(x, classes, index, scale) for x in (image, representation))
    loss = alpha * own + (1 - alpha) * other
    drift = (1 - (image * image_was).sum(-1)).mean() + (1 - (classes * classes_were).sum(-1)).mean()
    return loss + weight * drift


def text_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each text's tokens, int64 [N], the same for any padding; never 0."""
    powers = [pow(FACTOR, t + 1, 2**64) for t in range(ids.shape[1])]
    signed = torch.tensor([x - 2**64 if x >= 2**63 else x for x in powers], device=ids.device)
    keys = ((ids + 1) * mask * signed).sum(1)
    return torch.where(keys == 0, torch.ones_like(keys), keys)


class Represented(Objective):
    """``mmrl_loss``, with the adapter ``mmrl`` or ``mmrl++``. The towers without the adapter are the frozen model: they are read
    once more for every batch, without gradients. The scale is fixed at 1 / temperature, 100 as in the authors' code.
    frozen_weight: λ.

    features: what scores a text (score: ``mmrl``): ``both`` features of the image, α x·t + (1 − α) r·t, which the authors use for
    the classes that were learned; ``class``: x·t alone, theirs for new classes; ``known``: both for the texts of the classes that
    it was trained on (the first 4,096), the class feature for all others, so that nobody has to say which classes are new.
    """

    needs = ("image.embedding", "image.representation", "label.classes.embedding", "label", "image", "label.classes")
    scores_as = "mmrl"
    scores_all = True
    parts = ("vision", "text", "space")
    borrows = True
    known: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        alpha: Annotated[float, Field(ge=0, le=1)] = 0.7,
        frozen_weight: Annotated[float, Field(ge=0)] = 1.0,
        temperature: float = 0.01,
        features: Literal["known", "both", "class"] = "known",
    ):
        super().__init__(model)
        self.alpha, self.frozen_weight, self.features = alpha, frozen_weight, features
        self.register_buffer("logit_scale", torch.tensor(math.log(1 / temperature)))
        self.logit_scale: Tensor
        self.register_buffer("known", torch.zeros(KNOWN, dtype=torch.long))
        adapter = adapter_of(model, Mmrl, "mmrl", "mmrl")
        self._with = (model.part("vision"), model.part("text"), model.part("space"), adapter)  # in a tuple: not the objective's

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def frozen(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Embeddings of the batch's images and of the classes by the towers without the adapter: [B, E], [C, E]."""
        vision, text, space, adapter = self._with
        with adapter.without():
            image = space.image_embedding(vision.encode(p[IMAGE]))
            return image, space.text_embedding(text.encode(p["label.classes"]))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        image, representation, classes = p[IMAGE_EMBEDDING], p[REPRESENTATION], p[CLASSES]
        image_was, classes_were = self.frozen(p)
        if torch.is_grad_enabled():
            self._remember(p)
        with torch.autocast(image.device.type, enabled=False):
            return mmrl_loss(
                image,
                representation,
                classes,
                p["label"].index,
                self.scale,
                image_was,
                classes_were,
                self.alpha,
                self.frozen_weight,
            )

    def _remember(self, p: Pass) -> None:
        texts = p["label.classes"]
        keys = text_keys(texts.ids, texts.mask)[:KNOWN]
        self.known[: len(keys)] = keys

    def shares(self, p: Pass) -> Tensor:
        """The share of the representation in the score of each text, [N]: 1 − α or 0."""
        texts = p[TEXT]
        with_both = torch.full((len(texts),), self.features != "class", device=texts.ids.device)
        if self.features == "known":
            with_both = torch.isin(text_keys(texts.ids, texts.mask), self.known)
        return with_both * (1 - self.alpha)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        share, text = self.shares(p)[texts], p[TEXT_EMBEDDING][texts]
        by_class, by_representation = ((p[name][images] * text).sum(-1) for name in (IMAGE_EMBEDDING, REPRESENTATION))
        return (1 - share) * by_class + share * by_representation

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, M images and N texts: [M, N]."""
        share, text = self.shares(p), p[TEXT_EMBEDDING]
        return (1 - share) * (p[IMAGE_EMBEDDING] @ text.T) + share * (p[REPRESENTATION] @ text.T)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {"scale": self.scale.item()}
