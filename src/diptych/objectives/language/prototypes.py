"""Pictures and captions as distributions over a language model's words (CoMP).

Shapes: B samples, T text tokens, D width of the language model, K words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diptych.core.encodings import TEXT, Key
from diptych.models.connectors.merging import mean_of
from diptych.models.layers.ragged import ImageTokens
from diptych.objectives.base import Objective

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

PREFIX = Key[ImageTokens]("image.prefix")


class PrototypeAlignment(Objective):
    """−Σ_k q_k log p_k, averaged over samples: p over the words by the picture, q by its caption (CoMP, Chen et al. 2025,
    arXiv:2503.18931, §3.3). Prototypes are the language model's output vectors of all words, of unit length; the picture is the
    mean of its tokens behind the connector, the caption the mean of its last hidden states without the picture. Neither prototypes
    nor captions get a gradient, so the loss trains tower and connector.

    p is the softmax of cosines / ``temperature``. q are cosines / ``epsilon``, exponentiated, then ``iterations`` times multiplied
    by a prior over words and normalised (Sinkhorn–Knopp with the words' marginal; with no bound on the other side the rounds are
    independent of the batch). The prior is the softmax of the words' frequencies / ``prior_temperature``. All values are those of
    the authors' code, whose frequencies come from a file; here they are counted in the captions of training.
    """

    parts = ("lm", "connector")
    needs = (PREFIX, "text")
    counts: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        temperature: Annotated[float, Field(gt=0)] = 0.005,
        epsilon: Annotated[float, Field(gt=0)] = 0.005,
        iterations: Annotated[int, Field(ge=0)] = 3,
        prior_temperature: Annotated[float, Field(gt=0)] = 0.05,
    ):
        super().__init__(model)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.prior_temperature = prior_temperature
        self.lm = [model.part("lm")]  # in a list: its weights are the model's
        self.register_buffer("counts", torch.zeros(self.lm[0].lm.vocabulary))

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text = p[TEXT]
        if self.training:
            self.counts += torch.bincount(text.ids[text.mask], minlength=len(self.counts)).to(self.counts)
        lm = self.lm[0].lm
        with torch.no_grad():
            states = lm.hidden(lm.embed(text.ids), text.mask).float()
            caption = (states * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True)
            words = F.normalize(lm.model.get_output_embeddings().weight.detach().float(), dim=1)
        return prototype_loss(
            mean_of(p[PREFIX]).float(), caption, words, self.prior(), self.temperature, self.epsilon, self.iterations
        )

    def prior(self) -> Tensor:
        """How likely each word is beforehand, [K]."""
        frequencies = self.counts.clamp(min=1) / self.counts.sum().clamp(min=1)
        return (frequencies / self.prior_temperature).softmax(0)


def prototype_loss(
    image: Tensor, caption: Tensor, words: Tensor, prior: Tensor, temperature: float, epsilon: float, iterations: int
) -> Tensor:
    """image and caption [B, D]; words [K, D], unit vectors; prior [K] → a scalar."""
    by_image, by_caption = (F.normalize(x, dim=1) @ words.T for x in (image, caption))
    q = (by_caption.detach() / epsilon + iterations * prior.log()).softmax(1)  # each round's normalisation cancels in the next
    return -(q * (by_image / temperature).log_softmax(1)).sum(1).mean()
