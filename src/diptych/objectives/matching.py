"""Image-text matching: does this text belong to this image? Wrong pairs come from the batch: by similarity, or at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.encodings import IMAGE_EMBEDDING, TEXT, TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.models.fusion.qformer import best_query
from diptych.objectives.base import Objective, Scaled
from diptych.objectives.contrastive import same_meaning

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


def mine_negatives(
    similarity: Tensor, meaning: Tensor | None, sharpness: float | Tensor, back: Tensor | None = None, floor: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """For each image a wrong text and for each text a wrong image, drawn with a probability that grows with similarity: with
    weights softmax(sharpness · similarity) + floor (ALBEF, Li et al. 2021, §3.2).

    similarity [B, B] of images (rows) and texts, back [B, B] of texts (rows) and images; None: the same, transposed → text index
    per image [B], image index per text [B].
    """
    back = similarity.T if back is None else back
    weights = torch.softmax(similarity.float() * sharpness, 1), torch.softmax(back.float() * sharpness, 1)
    wrong = wrong_pairs(len(similarity), meaning, similarity.device)
    text, image = (torch.multinomial((w + floor) * wrong + 1e-12, 1)[:, 0] for w in weights)
    return text, image


def wrong_pairs(size: int, meaning: Tensor | None, device: torch.device) -> Tensor:
    """[B, B] bool, True where text j does not belong to image i: it is another's, and means something else."""
    wrong = ~torch.eye(size, dtype=torch.bool, device=device)
    same = same_meaning(meaning)
    return wrong if same is None else wrong & ~same


def random_negatives(size: int, meaning: Tensor | None, device: torch.device) -> Tensor:
    """For each image a wrong text, each of the batch with the same probability: text index per image [B]."""
    return torch.multinomial(wrong_pairs(size, meaning, device) + 1e-12, 1)[:, 0]


class Matching(Objective):
    """A two-way classifier on the fused tokens of both sides; the mining is meaningful only together with a contrastive objective.
    A wrong pair that the batch does not have, since all of it means the same, counts 0.

    negatives: ``mined``, a similar wrong text for each image and a similar wrong image for each text (ALBEF); ``random``, a wrong
    text for each image, any of the batch (FLAVA). batch_share: the part of the batch that is matched; each of its pairs costs three
    fused passes, or two with random negatives.
    sharpness: how strongly mining prefers similar pairs: a number, or the name of a contrastive objective whose learned scale it is
    (ALBEF, BLIP). floor: added to the weight of every wrong pair (BLIP: 1e-4). momentum: the name of an averaged teacher, whose
    embeddings the similarities are taken to, as in the contrastive loss (ALBEF, BLIP).
    sides: ``text``, the text's pooled fused token is read; ``both``, its product with the image's, number by number (MaskVLM, with
    class tokens in the recipe's fusion).
    pooler: between the head's two layers; tanh as in BERT and FLAVA; none: one layer, with a logit each for "no" and "yes" (BLIP;
    for BLIP-2, where the mean of the queries is pooled, this is the mean of their answers).
    """

    couples: tuple[str, ...] = ("image.embedding", "text.embedding", "image.tokens", "text.tokens")
    scores_as = "matching"
    parts = ("vision", "text", "fusion")
    needs: tuple[str, ...] = ("text.fused", "text")

    def __init__(
        self,
        model: VLM,
        *,
        negatives: Literal["mined", "random"] = "mined",
        batch_share: float = 1.0,
        sharpness: float | str = 20.0,
        floor: Annotated[float, Field(ge=0)] = 1e-6,
        momentum: str = "",
        sides: Literal["text", "both"] = "text",
        pooler: Literal["gelu", "tanh", "none"] = "gelu",
    ):
        super().__init__(model)
        self.negatives, self.batch_share, self.sides = negatives, batch_share, sides
        self.sharpness, self.floor, self.momentum = sharpness, floor, momentum
        self._scaled: tuple[nn.Module, ...] = ()  # in a tuple: the objective is not ours
        if negatives == "random":
            idle = {"sharpness": sharpness != 20.0, "floor": floor != 1e-6, "momentum": bool(momentum)}
            if name := next((name for name, given in idle.items() if given), None):
                raise DiptychError(f"objective matching: {name} is for mined negatives; remove it, or set negatives: mined")
        self.queries = model.graph.gives("image.query_embedding")  # an image has several embeddings, of which the nearest counts
        if self.queries:
            self.couples = ("image.query_embedding", *self.couples[1:])
        if momentum:
            if self.queries:
                raise DiptychError("objective matching: momentum needs one embedding an image, not several queries; remove it")
            self.couples = (*self.couples, f"{momentum}:image.embedding", f"{momentum}:text.embedding")
        width = model.part("fusion").width
        if sides == "both":
            self.needs = (*self.needs, "image.fused")
            image_width = getattr(model.part("fusion"), "image_width", width)
            if image_width != width:
                raise DiptychError(
                    f"matching: sides: both multiplies the vectors of image and text, which are {image_width} and {width} wide; "
                    "give parts.vision and parts.text the same width, or set sides: text"
                )
        if pooler == "none":
            self.head: nn.Module = nn.Linear(width, 2)
        else:
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU() if pooler == "gelu" else nn.Tanh(), nn.Linear(width, 1))

    def uses(self) -> dict[str, str]:
        """The objective whose learned scale the mining takes."""
        return {"sharpness": self.sharpness} if isinstance(self.sharpness, str) else {}

    def attach(self, others: Mapping[str, nn.Module]) -> None:
        """Take the learned scale of the objective that ``sharpness`` names. DiptychError if it has none."""
        if "sharpness" in others:
            other = others["sharpness"]
            if not isinstance(other, Scaled) and not hasattr(other, "logit_scale"):
                raise DiptychError(f"{self.sharpness} has no learned scale; give another objective, or a number")
            self._scaled = (other,)

    @property
    def sharp(self) -> float | Tensor:
        """The factor of similarities in the weights of the mining, without a gradient."""
        if not self._scaled:
            assert not isinstance(self.sharpness, str)
            return self.sharpness
        other: Any = self._scaled[0]
        scale: Tensor = other.scale if isinstance(other, Scaled) else other.logit_scale.exp()
        return scale.detach()

    def logits(self, p: Pass) -> Tensor:
        """Log-odds [B] that text i belongs to image i, read at the text's pooled fused token, or at those of both sides."""
        read = p["text.fused"].pooled
        if self.sides == "both":
            read = read * p["image.fused"].pooled
        answers: Tensor = self.head(read).float()
        return answers[:, 0] if answers.shape[1] == 1 else answers[:, 1] - answers[:, 0]

    def similarity(self, p: Pass) -> Tensor:
        """[B, B] of images (rows) and texts: the cosine, or that of the nearest query of the image."""
        text = p[TEXT_EMBEDDING]
        return best_query(p["image.query_embedding"], text) if self.queries else p[IMAGE_EMBEDDING] @ text.T

    def mined(self, p: Pass) -> tuple[Tensor, Tensor]:
        """A wrong text per image and a wrong image per text, int64 [B] each."""
        back: Tensor | None = None
        if self.momentum:
            image, text = (p[f"{self.momentum}:{name}"].detach() for name in (IMAGE_EMBEDDING, TEXT_EMBEDDING))
            similarity, back = p[IMAGE_EMBEDDING].detach() @ text.T, p[TEXT_EMBEDDING].detach() @ image.T
        else:
            similarity = self.similarity(p).detach()
        return mine_negatives(similarity, p[TEXT].meaning, self.sharp, back, self.floor)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        return self.logits(p.pairs(image=images, text=texts))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text: Tensor
        image: Tensor | None
        if self.negatives == "mined":
            text, image = self.mined(p)
        else:
            text, image = random_negatives(p.size, p[TEXT].meaning, p[TEXT].ids.device), None
        own, weight = p.some(self.batch_share), 1.0
        if p.rows is not None:  # processes have different numbers of pairs, and their losses are averaged
            everyones = math.floor((p.size - 1) * self.batch_share) + 1
            weight = len(own) / everyones * p.size / (p.rows.stop - p.rows.start)
            if not weight:  # one pair with weight 0: every process must take part in the exchange of gradients
                own = own.new_tensor([p.rows.start])
        m = len(own)
        wrong = wrong_pairs(p.size, p[TEXT].meaning, text.device)  # where there is none, the drawn pair is a right one
        images, texts, real = [own, own], [own, text[own]], [torch.ones_like(own, dtype=torch.bool), wrong.any(1)[own]]
        if image is not None:
            images, texts, real = [*images, image[own]], [*texts, own], [*real, wrong.any(0)[own]]
        pairs = p.pairs(image=torch.cat(images), text=torch.cat(texts))
        target = torch.zeros(len(images) * m, device=text.device)
        target[:m] = 1.0
        return weight * F.binary_cross_entropy_with_logits(self.logits(pairs), target, torch.cat(real).float())
