"""Visual tokens that are replaced, and found again by the language model (Croc).

Shapes: B batch, N image tokens, T text tokens, K pool tokens, D width of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diptych.core.encodings import TEXT, Key
from diptych.core.errors import DiptychError
from diptych.core.extras import need
from diptych.objectives.base import Objective
from diptych.objectives.generative import next_token_loss

if TYPE_CHECKING:
    from diptych.core.batch import Texts
    from diptych.core.encodings import Pass
    from diptych.models.vlm import VLM

PREFIX = Key[Tensor]("image.prefix")


def assigned(tokens: Tensor, pool: Tensor, match: Literal["nearest", "one_to_one"]) -> Tensor:
    """Which pool token [K, D] each of n tokens [n, D] gets, [n]: the nearest by ℓ2; ``one_to_one``: no pool token twice, so that
    the sum of squared distances is least (the Hungarian algorithm).
    """
    distance = torch.cdist(tokens.float(), pool.float()).square()
    if match == "nearest":
        return distance.argmin(1)
    optimize: Any = need("scipy.optimize", extra="adapt", what="match: one_to_one")
    rows, columns = optimize.linear_sum_assignment(distance.cpu().numpy())
    found = torch.empty(len(tokens), dtype=torch.long)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found.to(tokens.device)


class VisualReconstruction(Objective):
    """A share of an image's tokens is replaced by tokens of a learned pool; the language model, in which image tokens see each
    other both ways, writes the caption, and a linear layer on its states rebuilds what was replaced (Croc, Xie et al. 2024,
    arXiv:2410.14332, §3.2): caption loss + weight · SmoothL1 over the replaced tokens, whose originals get no gradient from it.

    share: of the tokens. pool: its size. match: ``nearest`` (the released code) or ``one_to_one`` (the paper). regress: the weight.
    beta: where SmoothL1 turns from a square to a line. Image tokens are compared before they are scaled to word vectors.
    """

    parts = ("lm", "connector")
    needs = (PREFIX, "text")
    predicts_text = True
    borrows = True

    def __init__(
        self,
        model: VLM,
        *,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        pool: Annotated[int, Field(ge=1)] = 2048,
        match: Literal["nearest", "one_to_one"] = "nearest",
        regress: Annotated[float, Field(ge=0)] = 10.0,
        beta: Annotated[float, Field(gt=0)] = 0.01,
    ):
        super().__init__(model)
        lm, tokens = model.part("lm"), int(model.part("connector").tokens)
        if lm.gated:
            raise DiptychError(
                "objective visual_reconstruction: layers of the fusion part look at the image, so it is not read as tokens"
            )
        self.hidden = max(1, round(share * tokens))
        if match == "one_to_one" and pool < self.hidden:
            raise DiptychError(
                f"objective visual_reconstruction: pool: {pool} is less than the {self.hidden} tokens that are replaced"
            )
        self.match: Literal["nearest", "one_to_one"] = match
        self.regress, self.beta = regress, beta
        self.pool = nn.Parameter(torch.randn(pool, lm.width))
        self.head = nn.Linear(lm.width, lm.width)
        self._lm: list[Any] = [lm]  # in a list: it belongs to the model

    def replaced(self, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens [B, N, D] with a new draw of them replaced, and which, [B, N] bool."""
        B, N, _ = prefix.shape
        order = torch.rand(B, N, device=prefix.device).argsort(1)
        gone = order.argsort(1) < self.hidden
        with torch.no_grad():
            which = [assigned(row[hit], self.pool, self.match) for row, hit in zip(prefix, gone, strict=True)]
        return prefix.masked_scatter(gone[..., None], self.pool.to(prefix.dtype)[torch.cat(which)]), gone

    def read(self, prefix: Tensor, text: Texts) -> tuple[Tensor, int]:
        """States [B, P + N + T − 2, D] of the opening, the image and the words, of which the image's tokens see each other both
        ways; and P, the tokens before the image.
        """
        lm, N = self._lm[0], prefix.shape[1]
        opening = lm._opening(prefix)
        x = torch.cat([opening, lm.lm.embed(text.ids[:, 1:-1])], 1)
        real = torch.cat([torch.ones(opening.shape[:2], dtype=torch.bool, device=x.device), text.mask[:, 1:-1]], 1)
        place = torch.arange(x.shape[1], device=x.device)
        before = opening.shape[1] - N
        image = (place >= before) & (place < before + N)
        looks = (place[:, None] >= place) | image[:, None] & image
        states: Tensor = lm.lm.hidden_where(x, looks & real[:, None], place)
        return states, before

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        prefix, text, lm = p[PREFIX], p[TEXT], self._lm[0]
        shown, gone = self.replaced(prefix)
        states, before = self.read(shown, text)
        N = prefix.shape[1]
        written = next_token_loss(lm.lm.head(states[:, before + N - 1 :]), text.ids[:, 1:], text.mask[:, 1:])
        found = self.head(states[:, before : before + N][gone].to(self.head.weight.dtype)).float()
        return written + self.regress * F.smooth_l1_loss(found, prefix[gone].detach().float(), beta=self.beta)
