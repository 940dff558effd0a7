"""The tight type of CLIP4Clip (Luo et al. 2021, arXiv:2104.08860, §3.3): one transformer reads the sentence and the frames
of a clip together, and says how well they fit.

Shapes: M clips, K texts, F frames, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.batch import Tokens
from diptych.models.layers.attention import QuickGELU, Transformer
from diptych.models.layers.masks import padding_bias
from diptych.objectives.base import Objective
from diptych.objectives.contrastive import meanings, same_meaning
from diptych.objectives.filip import late_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

PAIRS = 4096  # clips with texts that are read at a time


class TightContrast(Objective):
    """Symmetric InfoNCE over the scores of every clip with every text of the batch.

    A pair is the sequence of the text's vector and the clip's frames, with learned places, through a transformer of ``depth``
    layers. The score is a linear map of the first output, after a linear map and QuickGELU, as in the authors'
    code; it has no temperature. Each pair costs a pass of its own, so a search in many clips is slow.
    false_negatives: as in ``InfoNCE``. The recipe's score ``tight`` is that of a pair.
    """

    couples: tuple[str, ...] = ("video.frame_embedding", "text.embedding")
    needs = ("text",)
    scores_as = "tight"

    def __init__(
        self,
        model: VLM,
        *,
        depth: Annotated[int, Field(ge=1)] = 4,
        heads: Annotated[int, Field(ge=1)] = 4,
        false_negatives: Literal["mask", "keep"] = "mask",
    ):
        super().__init__(model)
        self.false_negatives: Literal["mask", "keep"] = false_negatives
        width, frames = model.embed_dim, int(model.part("time").frames)
        self.places = nn.Parameter(torch.randn(1 + frames, width) * 0.02)
        self.transformer = Transformer(width, depth, heads, activation="quick_gelu")
        self.pool, self.output = nn.Linear(width, width), nn.Linear(width, 1)
        self.activation = QuickGELU()

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        scores = self.all_scores(p)
        own = p.rows or slice(0, len(scores))
        same = same_meaning(meanings(p, self.false_negatives), p.rows)
        return late_loss(scores[own], scores.T[own], own.start, same)

    def all_scores(self, p: Pass) -> Tensor:
        """The score of every clip with every text, [M, K]."""
        clips, texts = len(p["video.frame_embedding"].tokens), len(p["text.embedding"])
        pairs = torch.cartesian_prod(torch.arange(clips), torch.arange(texts)).to(p["text.embedding"].device)
        return self.pair_scores(p, pairs[:, 0], pairs[:, 1]).view(clips, texts)

    def pair_scores(self, p: Pass, images: Tensor, texts: Tensor) -> Tensor:
        """How well text ``texts[k]`` fits clip ``images[k]``, for index tensors [P] into the batch: [P]."""
        video: Tokens = p["video.frame_embedding"]
        starts = range(0, len(images), PAIRS)
        return torch.cat([self._scores(video, p["text.embedding"], images[i : i + PAIRS], texts[i : i + PAIRS]) for i in starts])

    def _scores(self, video: Tokens, sentence: Tensor, images: Tensor, texts: Tensor) -> Tensor:
        """``pair_scores`` of a part of the pairs."""
        assert video.mask is not None
        x = torch.cat([sentence[texts][:, None], video.tokens[images]], 1)
        there = F.pad(video.mask[images], (1, 0), value=True)
        x = self.transformer(x + self.places[: x.shape[1]], padding_bias(there))
        pooled = self.pool(x[:, 0])
        scores: Tensor = self.output(self.activation(pooled))[:, 0].float()
        return scores
