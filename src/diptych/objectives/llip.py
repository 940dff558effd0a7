"""Contextual embeddings: the embedding of an image depends on the caption (Llip, Lavoie et al. 2024).

Shapes: M images, K mixture tokens, N texts, D widths, H heads, E embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.core.encodings import TEXT, TEXT_EMBEDDING
from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective
from diptych.objectives.contrastive import sigmoid_of_logits

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

CHUNK = 2**24  # entries of contextual embeddings held at a time (64 MB in float32)


def mixed_embeddings(query: Tensor, key: Tensor, value: Tensor, temperature: float) -> Tensor:
    """The embedding of every image for every caption: softmax over the mixture tokens of q·k / (temperature), a head at a time
    (section 3.2).

    query [N, H, d], key and value [M, H, K, d] → [M, N, H·d], before the output layer.
    """
    weights = torch.softmax(torch.einsum("nhd,mhkd->mnhk", query / temperature, key), -1)  # the queries are far fewer numbers
    return torch.einsum("mnhk,mhkd->mnhd", weights, value).flatten(2)


class Contextual(Objective):
    """Sigmoid loss over all pairs, with image i embedded for text j in the pair (i, j) (Llip, equations 2 to 4).

    Needs a tower with mixture tokens: ``parts.vision.class_tokens: K``. temperature: of the mixing. scale and bias are learned,
    from 10 and −10 as in SigLIP.
    """

    couples = ("image.class_tokens", "text.pooled", "text.embedding")
    needs = ("text",)
    scores_as = "contextual"
    scores_all = True
    parts = ("vision", "text")

    def __init__(self, model: VLM, *, heads: int = 4, temperature: float = 5.0, scale: float = 10.0, bias: float = -10.0):
        super().__init__(model)
        vision, text, E = model.part("vision"), model.part("text"), model.embed_dim
        if vision.extra < 2:
            raise DiptychError("objective contextual mixes several tokens of the image; set parts.vision.class_tokens, say to 16")
        if E % heads:
            raise DiptychError(f"objective contextual: {heads} heads do not divide the embedding's width {E}")
        self.heads, self.temperature = heads, temperature
        self.query, self.out = nn.Linear(text.width, E), nn.Linear(E, E)
        self.key, self.value = (
            nn.Linear(vision.width, E, bias=False),
            nn.Linear(vision.width, E),
        )  # a bias of the keys would have no effect on the softmax
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    def similarity(self, tokens: Tensor, pooled: Tensor, text: Tensor) -> Tensor:
        """Cosine of every text with every image embedded for that text: tokens [M, K, D], pooled [N, D'], text [N, E] unit → [M,
        N].
        """
        query = self.query(pooled).unflatten(1, (self.heads, -1))
        key, value = (layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.key, self.value))
        rows = max(1, CHUNK // max(1, text.numel()))
        parts = []
        for k, v in zip(key.split(rows), value.split(rows), strict=True):
            if rows < len(key) and torch.is_grad_enabled():  # mixed again in the backward pass
                parts.append(checkpoint(self._piece, query, k, v, text, use_reentrant=False))
            else:
                parts.append(self._piece(query, k, v, text))
        return torch.cat(parts)

    def _piece(self, query: Tensor, key: Tensor, value: Tensor, text: Tensor) -> Tensor:
        image = self.out(mixed_embeddings(query, key, value, self.temperature))  # [M, N, E], far more numbers than the cosines
        cosines: Tensor = torch.einsum("mne,ne->mn", image, text) / image.norm(dim=-1).clamp(min=1e-12)
        return cosines

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        tokens, pooled, text, meaning = p["image.class_tokens"], p["text.pooled"], p[TEXT_EMBEDDING], p[TEXT].meaning
        own = p.rows or slice(0, len(tokens))
        with torch.autocast(text.device.type, enabled=False):
            logits = self.logit_scale.exp() * self.similarity(tokens[own].float(), pooled.float(), text) + self.logit_bias
            total = sigmoid_of_logits(logits, own.start, None if meaning is None else meaning[own], meaning)
        loss: Tensor = total / (own.stop - own.start)
        return loss

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits image ``images[k]``, for index tensors [P] into the batch: [P]."""
        return self.scores(p.pairs(image=images, text=texts))

    def scores(self, p: Pass) -> Tensor:
        """How well text i fits image i, embedded for that text: [B]."""
        query = self.query(p["text.pooled"].float()).unflatten(1, (self.heads, -1))[:, None]  # [B, 1, H, d]
        tokens = p["image.class_tokens"].float()
        key, value = (layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.key, self.value))
        weights = torch.softmax(torch.einsum("bnhd,bhkd->bnhk", query, key) / self.temperature, -1)
        image = F.normalize(self.out(torch.einsum("bnhk,bhkd->bnhd", weights, value).flatten(2)), dim=-1)[:, 0]
        return (image * p[TEXT_EMBEDDING]).sum(-1)

    def all_scores(self, p: Pass) -> Tensor:
        """``pair_scores`` of every image with every text, M images and N texts: [M, N]."""
        return self.similarity(p["image.class_tokens"].float(), p["text.pooled"].float(), p[TEXT_EMBEDDING])

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as a temperature."""
        return {"scale": self.logit_scale.exp().item(), "bias": self.logit_bias.item()}
