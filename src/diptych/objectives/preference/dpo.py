"""Direct preference optimisation (Rafailov et al. 2023), with the wrong span weighted (RLHF-V) and mixed with a quality and a
generation loss (MPO).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from diptych.core.errors import DiptychError
from diptych.objectives.base import Objective
from diptych.objectives.preference.losses import answer_scores, dpo_loss, generation_loss, quality_loss

if TYPE_CHECKING:
    from diptych.core.encodings import Pass
    from diptych.data.fields.preferences import Pairs
    from diptych.models.vlm import VLM

Share = Annotated[float, Field(ge=0)]


class Preferences(Objective):
    """The chosen answer becomes likelier than the rejected one, compared with a reference model:
    preference · DPO + quality · BCO + generation · SFT, each a mean over pairs.

    beta: how much a change of probability counts; small: the model may move far from the reference. smoothing, robust: for pairs
    that may be the wrong way round (``losses.dpo_loss``). reference: the name of a teacher, a frozen copy of the model.
    span_weight: of the tokens in which the two answers differ; normalise: log-probabilities are weighted means, not sums (RLHF-V:
    5, true and beta 0.5). quality, generation: weights of MPO's other two losses (MPO: preference 0.8, quality 0.2, generation 1).
    shift: the quality loss compares rewards with the mean of all rewards of earlier steps, not with 0.
    """

    parts = ("lm",)
    predicts_text = True
    steps: Tensor
    mean: Tensor

    def __init__(
        self,
        model: VLM,
        *,
        beta: Annotated[float, Field(gt=0)] = 0.1,
        smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
        robust: bool = False,
        reference: str = "reference",
        span_weight: Share = 1.0,
        normalise: bool = False,
        preference: Share = 1.0,
        quality: Share = 0.0,
        generation: Share = 0.0,
        shift: bool = True,
    ):
        super().__init__(model)
        if preference == quality == generation == 0:
            raise DiptychError("dpo: preference, quality and generation are all 0, so nothing would be learned")
        self.beta, self.smoothing, self.robust, self.shift = beta, smoothing, robust, shift
        self.span_weight, self.normalise = span_weight, normalise
        self.preference, self.quality, self.generation = preference, quality, generation
        self.before = f"{reference}:preferences.logps"
        self.needs = ("preferences.logps", "preferences", self.before)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))  # of the rewards of all steps so far
        self._shown: dict[str, float] = {}
        self._now = [0.0] * 4  # of this step's pieces: pairs, sum of rewards, of margins, of right orders

    @property
    def can(self) -> frozenset[str]:
        """Capabilities (``core.capabilities``) that a model has learned by it."""
        return frozenset({"prompt"})

    def forward(self, p: Pass) -> Tensor:
        """The loss of a batch, a scalar."""
        pairs: Pairs = p["preferences"]
        logps: Tensor = p["preferences.logps"]
        with torch.no_grad():
            before: Tensor = p[self.before].to(logps.dtype)
        both = pairs.both()
        learned, marked = (x[:, 1:].view(2, len(pairs), -1) for x in (both.learned, both.marked))
        own, other = (answer_scores(x, learned, marked, self.span_weight, self.normalise) for x in (logps, before))
        ratio = own - other  # [2, B]
        rewards = self.beta * ratio
        loss = logps.new_zeros(len(pairs))
        if self.preference:
            loss = loss + self.preference * dpo_loss(ratio[0] - ratio[1], self.beta, self.smoothing, self.robust)
        if self.quality:
            loss = loss + self.quality * quality_loss(rewards[0], rewards[1], self.mean if self.shift else 0.0)
        if self.generation:
            loss = loss + self.generation * generation_loss(logps[0], learned[0])
        if self.training:
            margins = (rewards[0] - rewards[1]).detach()
            sums = (float(len(pairs)), float(rewards.detach().sum()), float(margins.sum()), float((margins > 0).sum()))
            self._now = [a + b for a, b in zip(self._now, sums, strict=True)]
        return loss.mean()

    def terms(self, p: Pass) -> int:
        """How many pairs ``forward`` is the mean of."""
        return len(p["preferences"])

    def after_step(self, total: Callable[..., list[float]]) -> None:
        """The mean of all rewards of the steps so far, each step counted once."""
        pairs, rewards, margins, right = total(*self._now)
        self._now = [0.0] * 4
        if pairs:
            self.steps += 1
            self.mean += (rewards / (2 * pairs) - self.mean) / self.steps
            self._shown = {"margin": margins / pairs, "accuracy": right / pairs, "reward": float(self.mean)}

    def metrics(self) -> dict[str, float]:
        """Of the last step: mean margin of rewards, share of the pairs in the right order; and the mean reward so far."""
        return dict(self._shown)
