"""Each of several towers alone through the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diptych.core.encodings import IMAGE_TOKENS, TEXT
from diptych.core.errors import DiptychError
from diptych.models.connectors.base import perceptron
from diptych.objectives.base import Objective
from diptych.objectives.generative import next_token_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM


class EachTower(Objective):
    """Captions from each tower of a ``joined`` vision part alone, by a projector of its own, through the language model; the mean
    of the towers' next-token losses (the pre-alignment of Eagle, Shi et al. 2024, arXiv:2408.15998, §2.4: experts of different
    origin first learn to speak to one language model, before they are joined). The projectors are not used afterwards.

    depth: linear layers of a projector, with GELU between them.
    """

    parts = ("lm", "vision")
    needs = (IMAGE_TOKENS, "text")
    predicts_text = True
    borrows = True

    def __init__(self, model: VLM, *, depth: int = 2):
        super().__init__(model)
        vision, lm = model.part("vision"), model.part("lm")
        widths = getattr(vision, "widths", None)
        if widths is None:
            raise DiptychError("objective each_tower: the vision part is a single tower; set parts.vision.kind: joined")
        self.widths: list[int] = list(widths)
        self._lm: list[Any] = [lm]  # in a list: it belongs to the model
        self.projectors = nn.ModuleList(perceptron(width, lm.width, depth) for width in self.widths)

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        text, lm = p[TEXT], self._lm[0]
        each = p[IMAGE_TOKENS].tokens.split_with_sizes(self.widths, 2)
        losses = [
            next_token_loss(lm.caption_logits(project(x), text.ids, text.mask), text.ids[:, 1:], text.mask[:, 1:])
            for project, x in zip(self.projectors, each, strict=True)
        ]
        total: Tensor = sum(losses[1:], losses[0])
        return total / len(losses)

    def terms(self, p: Pass) -> int:
        """How many terms ``forward`` is the mean of, so that pieces of a batch are weighed as the whole would be; 0: nothing to
        do.
        """
        return int(p[TEXT].mask[:, 1:].sum())
