"""A reward model: one number for an answer, learned from which of two is better (Bradley and Terry 1952; Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diptych.objectives.base import Objective
from diptych.objectives.preference.losses import ranking_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.data.fields.preferences import Answered, Pairs
    from diptych.models.vlm import VLM


def at_the_end(states: Tensor, rows: Answered) -> Tensor:
    """The state at each answer's last token, [B, D]. states: [B, T, D]."""
    place = torch.arange(rows.learned.shape[1], device=states.device).expand_as(rows.learned)
    last = place.masked_fill(~rows.learned, -1).amax(1)
    return states[torch.arange(len(states), device=states.device), last]


class Reward(Objective):
    """−log σ(r(chosen) − r(rejected)), the mean over pairs; r is a linear map of the last hidden state at an answer's end.

    centre: weight of (r(chosen) + r(rejected))², which keeps rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244, §3).
    margin: by how much the rewards of a pair should differ at least. With ``data.fields: {preferences: {kind: preferences, facts:
    behind}}`` the reward model is told facts of the picture (LLaVA-RLHF, Sun et al. 2023, arXiv:2309.14525, §2.3).
    """

    parts = ("lm",)
    needs = ("preferences.states", "preferences")

    def __init__(
        self,
        model: VLM,
        *,
        centre: Annotated[float, Field(ge=0)] = 0.0,
        margin: Annotated[float, Field(ge=0)] = 0.0,
    ):
        super().__init__(model)
        self.centre, self.margin = centre, margin
        self.head = nn.Linear(model.part("lm").width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1 / (model.part("lm").width + 1) ** 0.5)  # Stiennon et al. 2020, appendix B.1
        self._now = [0.0] * 3  # of this step's pieces: pairs, sum of margins, of right orders
        self._shown: dict[str, float] = {}

    def rewards(self, p: Pass) -> Tensor:
        """The rewards of the chosen and of the rejected answers, float32 [2, B]."""
        pairs: Pairs = p["preferences"]
        states: Tensor = p["preferences.states"]
        ends = [at_the_end(own, rows) for own, rows in zip(states, (pairs.chosen, pairs.rejected), strict=True)]
        found: Tensor = self.head(torch.stack(ends).float())[..., 0]
        return found

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        chosen, rejected = self.rewards(p)
        if self.training:
            margins = (chosen - rejected).detach()
            sums = (float(len(margins)), float(margins.sum()), float((margins > 0).sum()))
            self._now = [a + b for a, b in zip(self._now, sums, strict=True)]
        losses: Tensor = ranking_loss(chosen, rejected, self.margin) + self.centre * (chosen + rejected) ** 2
        return losses.mean()

    def terms(self, p: Pass) -> int:
        """How many pairs ``forward`` is the mean of."""
        return len(p["preferences"])

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """Notes margin and accuracy of the step."""
        pairs, margins, right = total(*self._now)
        self._now = [0.0] * 3
        if pairs:
            self._shown = {"margin": margins / pairs, "accuracy": right / pairs}

    def metrics(self) -> dict[str, float]:
        """Of the last step: mean margin of rewards, and the share of the pairs in the right order."""
        return dict(self._shown)
